"""A job for the tests of sweeps that judges an export of `maker`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jobs.job import JobConfig
from retrieval_train.config import LinkedPath
from retrieval_train.rundir import RunDir, read_json, write_json

if TYPE_CHECKING:
    from retrieval_train.world import World


class Config(JobConfig):
    job: Literal["judge"]
    model: LinkedPath
    """An export."""
    top: int = 1
    """What is added to the score."""

    def problems(self) -> list[tuple[str, str]]:
        return [] if (self.model / "model.json").is_file() else [("model", f"{self.model} is no export")]

    def inputs(self) -> dict[str, str]:
        return {"model": read_json(self.model / "model.json")["sha256"]}


def run(config: Config, run: RunDir, world: World) -> dict[str, float]:
    model = read_json(config.model / "model.json")
    metrics = {"mMP@5": model["score"], "R@1": model["score"] + config.top}
    write_json(run.report, {"metrics": {"merged": metrics}, "model": {"sha256": model["sha256"]}})
    return metrics
