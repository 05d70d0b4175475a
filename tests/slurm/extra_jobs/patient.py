"""A job for the tests on SLURM: it runs until it is told to end. `conftest.py` puts it into a copy of the repo."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jobs.job import JobConfig
from retrieval_train.rundir import RunDir, write_json

if TYPE_CHECKING:
    from retrieval_train.world import World


class Config(JobConfig):
    job: Literal["patient"] = "patient"
    until: str = ""
    """It ends when there is a file of that name; empty: at once."""
    dies: int = 0
    """At so many starts its last rank dies without a word."""
    note: str = ""
    """Free text."""


def run(config: Config, run: RunDir, world: World) -> dict[str, float]:
    starts = run.path / "starts" / str(world.rank)
    starts.mkdir(parents=True, exist_ok=True)
    number = len(list(starts.iterdir()))
    write_json(starts / f"{number}.json", {"host": os.uname().nodename, "note": config.note})
    if number < config.dies and world.rank == world.size - 1:
        while len(list(starts.parent.glob(f"*/{number}.json"))) < world.size:  # else the others count one start less
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)
    while (number < config.dies) or (config.until and not Path(config.until).exists()):
        time.sleep(0.1)
    return {}
