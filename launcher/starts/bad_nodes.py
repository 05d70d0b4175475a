"""Nodes that failed, remembered beside the runs: `<runs_root>/.nodes.json`, so that no run of this folder is sent there.

A node that failed twice within a week is left out of all submits and requeues; `status.py nodes --forget NODE` after it
was mended. What a pre-flight says of a node is certain: the run that heard it leaves the node out at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from retrieval_train.rundir import write_json

_NUM_FAILURES = 2
_REMEMBERED_S = 7 * 86400.0


@dataclass(frozen=True)
class Incident:
    """Once that a node failed."""

    time: float
    """Seconds since 1970."""
    run: str
    kind: str
    words: str


def read(runs_root: Path) -> dict[str, list[Incident]]:
    """Node -> its incidents of the last week, oldest first."""
    try:
        values = json.loads(_file(runs_root).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    since = time.time() - _REMEMBERED_S
    found = {
        node: [Incident(**item) for item in items if item["time"] > since] for node, items in values["nodes"].items()
    }
    return {node: incidents for node, incidents in sorted(found.items()) if incidents}


def note(runs_root: Path, nodes: Sequence[str], incident: Incident) -> None:
    """Add the incident to each of the nodes."""
    with _changing(runs_root) as known:
        for node in nodes:
            known.setdefault(node, []).append(incident)


def forget(runs_root: Path, node: str) -> bool:
    """Whether the node was known."""
    with _changing(runs_root) as known:
        return known.pop(node, None) is not None


def to_leave_out(runs_root: Path) -> tuple[str, ...]:
    """The nodes that failed too often."""
    return tuple(node for node, incidents in read(runs_root).items() if len(incidents) >= _NUM_FAILURES)


@contextlib.contextmanager
def _changing(runs_root: Path) -> Iterator[dict[str, list[Incident]]]:
    runs_root.mkdir(parents=True, exist_ok=True)
    with (runs_root / ".nodes.lock").open("w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: an incident may be lost
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        known = read(runs_root)
        yield known
        values = {node: [asdict(incident) for incident in incidents] for node, incidents in known.items()}
        write_json(_file(runs_root), {"schema": 1, "nodes": values})


def _file(runs_root: Path) -> Path:
    return runs_root / ".nodes.json"
