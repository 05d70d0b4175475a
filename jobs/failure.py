"""Why a run ended before it was done: told apart, because what to do next differs.

An exception says its kind by a class attribute `failure`; without one a ValueError is what a user has to correct, and
anything else our own error. `tell_failure` (job.py) writes it into the run folder, where whoever requeues reads it.
"""

from __future__ import annotations

import re
import socket
from dataclasses import asdict, dataclass
from typing import Any, Literal

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
        other: Kind = "user_error" if is_told else "lost_rank" if _BROKEN.search(words) else "error"
        return cls(getattr(error, "failure", other), words, tuple(getattr(error, "nodes", ())))

    def as_dict(self, *, rank: int) -> dict[str, Any]:
        """What `failure.json` holds; `host` is the machine that this is called on."""
        return {"schema": 1, **asdict(self), "rank": rank, "host": socket.gethostname()}
