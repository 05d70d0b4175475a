"""Why one start of a run on SLURM ended: from what its ranks told, what srun said, and what SLURM calls it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace

from jobs import failure as failures
from jobs.failure import Told
from launcher.starts import attempts, slurm_job
from launcher.starts.attempts import Attempt, Ending
from launcher.starts.launch import TERMINATED
from retrieval_train.rundir import RunDir

_GONE = re.compile(r"srun: error: (?P<node>\S+): tasks? (?P<task>\d+)[^:]*: (?P<how>.*)")
_PATIENCE_S = 10.0  # for a shared file system to show here what was written on another node
# SLURM's words for a start whose supervisor was ended before it could say anything
_WORDS: dict[str, Ending] = {
    "CANCELLED": "cancelled",
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
    "OUT_OF_MEMORY": "out_of_memory",
    "TIMEOUT": "timed_out",
    "PREEMPTED": "preempted",
    "REQUEUED": "preempted",
    "FAILED": "killed",
}


@dataclass(frozen=True)
class Death:
    """The first task that srun saw end badly."""

    node: str
    rank: int
    how: str
    """srun's words: Killed, Segmentation fault, Exited with exit code 1."""

    @property
    def is_silent(self) -> bool:
        """Whether it could not say why: Python's own errors end with a code."""
        return not self.how.startswith("Exited with exit code")

    @property
    def was_told(self) -> bool:
        """Whether a signal that means `stop` ended it: the rank was not where it could save."""
        return self.how in ("User defined signal 2", "Terminated", f"Exited with exit code {TERMINATED}")


@dataclass(frozen=True)
class Seen:
    """What the supervisor saw of one start."""

    death: Death | None = None
    lost: tuple[str, ...] = ()
    """Nodes that srun lost."""
    is_late: bool = False
    """The time limit is as good as reached."""
    ran_out: bool = False
    """It came before the ranks had saved."""
    is_cancelled: bool = False
    """The user ended a run of an allocation."""


def death_of(line: str) -> Death | None:
    """What a line of srun's messages says of a task."""
    found = _GONE.match(line)
    return Death(found["node"], int(found["task"]), found["how"].strip()) if found else None


def of(run: RunDir, attempt: Attempt, seen: Seen, *, signal_delay_s: float) -> Attempt:
    """The attempt, ended."""
    attempt, state = replace(attempt, ended=time.time()), run.state
    if state == "done":
        return replace(attempt, kind="done")
    stopped: Ending = "timed_out" if seen.is_late else "preempted"
    if state == "preempted":
        return replace(attempt, kind=stopped, words="saved and stopped")
    if seen.is_cancelled:
        return replace(attempt, kind="cancelled", words="cancelled")
    if seen.ran_out:
        words = f"saving took longer than signal_delay_s ({signal_delay_s:g}); give more in the cluster's file"
        return replace(attempt, kind="timed_out", words=words)
    told = failures.read(run) if seen.death is not None and seen.death.is_silent else _told(run)
    is_odd = told is None or told.failure.kind in ("error", "lost_rank")  # what others say of a rank that is gone
    if seen.lost and is_odd:
        return replace(attempt, kind="node_failure", words=f"lost {', '.join(seen.lost)}", at_fault=seen.lost)
    if seen.death is not None and is_odd:
        if seen.death.was_told and (told is None or told.failure.kind == "lost_rank"):
            return replace(attempt, kind=stopped, words="told to stop where it could not save")
        if seen.death.is_silent:
            return _silent(attempt, seen.death)
    return _as_told(attempt, told, seen.death)


def _told(run: RunDir) -> Told | None:
    """With patience: an error that a rank wrote on another node may not be here yet."""
    until = time.monotonic() + _PATIENCE_S
    while (told := failures.read(run)) is None and time.monotonic() < until:
        time.sleep(0.5)
    return told


def _silent(attempt: Attempt, death: Death) -> Attempt:
    kind: Ending = "out_of_memory" if "memory" in death.how.lower() else "killed"
    return replace(attempt, kind=kind, words=f"rank {death.rank} on {death.node} ended without a word: {death.how}")


def _as_told(attempt: Attempt, told: Told | None, death: Death | None) -> Attempt:
    if told is not None:
        failure = told.failure
        return replace(attempt, kind=failure.kind, words=failure.words, at_fault=failure.nodes)
    words = f"rank {death.rank} on {death.node}: {death.how}" if death else "srun ended, and no rank said why"
    return replace(attempt, kind="error", words=words)


def of_the_start_before(last: Attempt, *, step: int | None, is_recent: bool) -> Attempt:
    """An attempt that ended together with its supervisor: a lost first node, a preemption without warning.

    `is_recent`: nothing but the queue lies between.
    """
    end = slurm_job.end_of_the_start_before(last.job_id, last.nodes, last.begun, is_recent=is_recent)
    kind = _WORDS.get(end.state, "node_failure" if end.lost else "preempted")
    at_fault = (last.at_fault or end.lost) if kind == "node_failure" else ()
    ended_as = f"ended by SLURM{f' as {end.state}' if end.state else ''} without warning"
    words = f"lost {', '.join(at_fault)}" if at_fault else ended_as
    return replace(last, ended=time.time(), step=step, kind=kind, words=words, at_fault=at_fault)


def step_of(run: RunDir, *, counts_steps: bool) -> int | None:
    """Of the newest checkpoint; None in a job that makes none."""
    return attempts.step_of(run) if counts_steps else None
