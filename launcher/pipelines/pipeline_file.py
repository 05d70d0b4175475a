"""What a pipeline's file may say; `pipeline.py` makes stages in order of it.

    job: pipeline
    stages:
      shards: {config: ../shards/sample.yaml, resources: {nodes: 1, tasks_per_node: 1, gpus_per_node: 0}}
      train: {config: ../train/demo.yaml, needs: [shards]}
      report: {config: ../evaluate/demo.yaml, set: {model: "{train}/export"}}

`{train}` in a value stands for the run folder of stage train, and makes that a need.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from launcher.clusters.durations import minutes
from retrieval_train.config import FileName, Section


class Resources(Section):
    """What a stage takes, in the words of submit's options; it comes before what the command line says for all."""

    nodes: int | None = Field(default=None, ge=1)
    gpus_per_node: int | None = Field(default=None, ge=0)
    tasks_per_node: int | None = Field(default=None, ge=1)
    cpus_per_gpu: int | None = Field(default=None, ge=1)
    cpus_per_task: int | None = Field(default=None, ge=1)
    mem: float | None = Field(default=None, gt=0)
    """GB of each node."""
    time: int | str | None = None
    """Minutes, H:MM:SS or D-HH:MM."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    reservation: str | None = None
    comment: str | None = None
    sbatch: tuple[str, ...] = ()
    """More options of sbatch, each as key=value."""

    @field_validator("time")
    @classmethod
    def _whole_minutes(cls, time: int | str | None) -> int | None:
        found = None if time is None else math.ceil(minutes(str(time)))
        if found is not None and found < 1:
            raise ValueError(f"{time!r} is no time above 0")
        return found

    def given(self) -> dict[str, Any]:
        """Those that are said, as submit's parsed options. A stage without GPUs has no cores by the GPU, either."""
        said = {name: list(v) if isinstance(v, tuple) else v for name, v in self if name in self.model_fields_set}
        return ({"cpus_per_gpu": None} if said.get("gpus_per_node") == 0 else {}) | said


class Stage(Section):
    """One run."""

    config: Path
    """Its config: a path from the pipeline's file, or from where submit is called."""
    set: dict[str, Any] = Field(default={})
    """Dotted key -> value, over the config; a mapping replaces the whole section."""
    needs: tuple[str, ...] = ()
    """Stages that have to be done before, besides those that `set` names as {stage}."""
    resources: Resources = Resources()
    """Where it runs."""


class Config(Section):
    """A pipeline's file."""

    job: Literal["pipeline"]
    """Tells it from other configs."""
    name: FileName | None = None
    """What its runs have in common, for `status.py` and the tracker; None: the file's."""
    stages: dict[str, Stage]
    """Name -> stage."""
