"""A job for the launcher's tests: `conftest.py` puts it into jobs/ of a copy of the repo. It ends as it is told to."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jobs.job import JobConfig, Preempted, Progress
from retrieval_train.rundir import RunDir, write_json

if TYPE_CHECKING:
    from retrieval_train.world import World


class Config(JobConfig):
    job: Literal["noop"] = "noop"
    does: Literal["end", "fail", "refuse", "die", "exit", "wait", "stop_once", "stop"] = "end"
    """How it ends."""
    rank: int = 0
    """The rank that fails, refuses, dies or exits; the others wait."""
    steps: int = 3
    """How many steps of `step_s` it takes."""
    step_s: float = 0.0
    """Seconds of each step."""
    sums: bool = False
    """Whether the ranks add up their numbers first, which takes torch."""
    note: str = ""
    """Free text."""

    def problems(self) -> list[tuple[str, str]]:
        return [("note", "'missing' is a set that is not there")] if self.note == "missing" else []


def run(config: Config, run: RunDir, world: World) -> dict[str, float]:
    starts = run.path / "starts" / str(world.rank)
    starts.mkdir(parents=True, exist_ok=True)
    num_starts = len(list(starts.iterdir()))
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    about: dict[str, Any] = {name: os.environ.get(name) for name in (*names, "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID")}
    about |= {"cwd": str(Path.cwd()), "code": __file__, "host": os.uname().nodename, "sum": _sum(config, world)}
    write_json(starts / f"{num_starts}.json", about)
    print("words on stdout", json.dumps(about))
    progress = Progress(run, world, "noop", total=config.steps, unit="steps")
    for step in range(config.steps):
        time.sleep(config.step_s)
        progress.show(step + 1, note=config.note)
    _end(config, world, num_starts)
    return {"steps": float(config.steps)}


def _sum(config: Config, world: World) -> float | None:
    if not config.sums:
        return None
    import torch

    return float(world.sum(torch.tensor([world.rank + 1.0])).item())


def _end(config: Config, world: World, num_starts: int) -> None:
    if config.does == "stop" or (config.does == "stop_once" and num_starts == 0):
        raise Preempted("saved")
    if config.does in ("end", "stop_once"):
        return
    if config.does == "wait" or world.rank != config.rank:
        time.sleep(300)
    if config.does == "fail":
        raise RuntimeError(f"the tensors of rank {world.rank} do not fit")
    if config.does == "refuse":
        raise ValueError("the set 'food' has no class with two images; make it with --min-images 2")
    if config.does == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stderr.write("last words of a library\n")
    os._exit(7)
