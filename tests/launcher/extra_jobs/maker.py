"""A job for the tests of sweeps that ends with an export, and takes no time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from jobs.job import JobConfig
from retrieval_train.config import Section
from retrieval_train.rundir import RunDir, write_json

if TYPE_CHECKING:
    from retrieval_train.world import World


class Head(Section):
    name: Literal["margin", "plain"]
    margin: float | None = None

    @model_validator(mode="after")
    def _only_one_has_a_margin(self) -> Head:
        if self.name == "plain" and self.margin is not None:
            raise ValueError("plain has no margin")
        return self


class Config(JobConfig):
    job: Literal["maker"]
    head: Head
    """A section that is chosen by its name."""
    rate: float = 1.0
    """No part of the result."""
    fails_with: str = ""
    """It ends badly while there is a file of that name."""
    edits_code: bool = False
    """Breaks the working tree, as one who edits it while a sweep runs."""


def run(config: Config, run: RunDir, world: World) -> dict[str, float]:
    if config.edits_code:
        Path("jobs/maker.py").write_text("broken")
        Path("jobs/judge.py").write_text("broken")
    if config.fails_with and Path(config.fails_with).exists():
        raise ValueError("there is no such margin")
    made: dict[str, Any] = {"sha256": run.path.name, "score": (config.head.margin or 0.0) + config.seed / 100}
    write_json(run.export / "model.json", made)
    return {"score": made["score"]}
