"""Which run is which task of a SLURM job: `tasks.json` in the folder that submitit keeps for the job.

A job of one run has one task; a job array has one for each point of a sweep.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from retrieval_train.rundir import RunDir, read_json, write_json


def write(folder: Path, tasks: Sequence[RunDir | Path]) -> None:
    """Before the job is submitted: runs, or folders of runs to be (deferred.py)."""
    known = [{"run": str(task.path)} if isinstance(task, RunDir) else {"stage": str(task)} for task in tasks]
    write_json(folder / "tasks.json", {"schema": 1, "tasks": known})


def mine(folder: Path) -> RunDir:
    """The run of this task. Raises ValueError where it cannot be made."""
    task = _task(folder)
    if "run" in task:
        return RunDir(Path(task["run"]))
    from launcher.pipelines import deferred

    return deferred.begin(Path(task["stage"]), job_id())


def ended(folder: Path, run: RunDir) -> None:
    """After a start of this task's run that is not followed by another one by itself."""
    if "stage" in (task := _task(folder)):
        from launcher.pipelines import deferred

        deferred.end(Path(task["stage"]), run)


def _task(folder: Path) -> dict[str, str]:
    task: dict[str, str] = read_json(folder / "tasks.json")["tasks"][int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]
    return task


def job_id() -> str:
    """This job as submitit and `ticket.json` call it: 123, or 123_4 in an array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
