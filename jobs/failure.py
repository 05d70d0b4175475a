"""Why a run ended before it was done: told apart, because what to do next differs.

An exception says its kind by a class attribute `failure`; without one a ValueError is what a user has to correct, and
anything else our own error. Every rank that fails writes its own file into the run folder; whoever requeues believes the
gravest of them, since the others fail because of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from dataclasses import asdict, dataclass
from typing import Literal

from retrieval_train.rundir import RunDir, read_json, write_json

Kind = Literal[
    "preempted",  # told to stop, and saved
    "timed_out",  # the time limit came, and it saved
    "node_failure",  # the scheduler lost a node
    "bad_node",  # the pre-flight named one
    "hang",  # a rank made no step for too long
    "killed",  # a rank's process died by a signal
    "lost_rank",  # a collective broke: another rank or its network is gone, and nobody said why
    "out_of_memory",
    "not_finite",  # the loss was no number, again and again
    "user_error",  # config, data, files: the words say what to correct
    "error",  # ours: an exception that nobody expected
    "cancelled",
]

# how torch.distributed says that somebody else is gone
_BROKEN_GPU = re.compile(
    r"uncorrectable ECC|fallen off the bus|CUDA-capable device\(s\) is/are busy|[Hh]ardware stack error"
)
_BROKEN = re.compile(r"^Dist(Backend|Network|Store)Error|gloo/transport|closed by peer|reset by peer|NCCL (error|WARN)")


@dataclass(frozen=True)
class Failure:
    """One rank's reason."""

    kind: Kind
    words: str
    """For the run's user."""
    nodes: tuple[str, ...] = ()
    """At fault, where that is known."""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """A user's mistake is told in its own words; ours with its type."""
        is_told = isinstance(error, ValueError) or hasattr(error, "failure")
        words = str(error) if is_told else f"{type(error).__name__}: {error}"
        if not is_told and _BROKEN_GPU.search(words):
            return cls("bad_node", f"{node_name()}: {words}", (node_name(),))
        other: Kind = "user_error" if is_told else "lost_rank" if _BROKEN.search(words) else "error"
        return cls(getattr(error, "failure", other), words, tuple(getattr(error, "nodes", ())))


_GRAVITY: tuple[Kind, ...] = (
    *("user_error", "out_of_memory", "not_finite", "bad_node", "error", "hang", "killed", "cancelled"),
    *("node_failure", "timed_out", "preempted", "lost_rank"),
)


@dataclass(frozen=True)
class Told:
    """A failure as it lies in the run folder."""

    failure: Failure
    rank: int
    host: str
    time: float
    """Seconds since 1970."""


def tell(run: RunDir, rank: int, failure: Failure, *, is_verdict: bool = False) -> bool:
    """Write it down; whether it is the gravest so far. A launcher's `is_verdict` counts more than what ranks say."""
    told = {"schema": 1, **asdict(failure), "rank": rank, "host": node_name(), "time": time.time()}
    name = "verdict" if is_verdict else str(rank)
    write_json(run.failures / f"{name}.json", told)
    gravest = read(run)
    return gravest is None or is_verdict or gravest.rank == rank


def read(run: RunDir) -> Told | None:
    """The gravest failure of this start, the earliest of several; None where no rank told any."""
    found = []
    for file in run.failures.glob("*.json") if run.failures.is_dir() else ():
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):  # being cleared; half seen on a shared disk
            values = read_json(file)
            failure = Failure(values["kind"], values["words"], tuple(values["nodes"]))
            one = Told(failure, values["rank"], values["host"], values["time"])
            found.append((file.stem != "verdict", _GRAVITY.index(failure.kind), one.time, one))
    return min(found, key=lambda each: each[:3])[3] if found else None


def clear(run: RunDir) -> None:
    """Forget what an earlier start failed of: before any rank of this one begins."""
    run.error.unlink(missing_ok=True)
    for file in run.failures.glob("*.json"):
        file.unlink(missing_ok=True)


def node_name() -> str:
    """This machine, as SLURM calls it where it runs here."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
