"""A job for the tests of searches: its metric is highest at one rate, and takes no time."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Literal

from jobs.job import JobConfig
from retrieval_train.rundir import RunDir, write_json

if TYPE_CHECKING:
    from retrieval_train.world import World


class Config(JobConfig):
    job: Literal["climber"]
    rate: float
    depth: int = 1


def height(rate: float, depth: int) -> float:
    return 1.0 / (1.0 + math.log10(rate / 0.01) ** 2) + 0.01 * depth


def run(config: Config, run: RunDir, world: World) -> dict[str, float]:
    value = height(config.rate, config.depth)
    with run.metrics.open("a") as file:
        for step, share in ((1, 0.5), (2, 1.0)):
            file.write(json.dumps({"step": step, "dev/mMP@5": share * value}) + "\n")
    write_json(run.report, {"metrics": {"merged": {"mMP@5": value, "R@1": value}}})
    return {"mMP@5": value}
