"""What /proc says of processes: which ones live, and whether a pid is still the process that it was."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

_PROC = Path("/proc")


def boot_id() -> str:
    """Another word after each start of the machine: pids of before mean nothing then."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def started(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None when it does not live (a zombie does not)."""
    fields = _fields(_PROC / str(pid))
    return int(fields[19]) if fields else None


def group_members(group: int) -> list[int]:
    """The living processes of a process group."""
    folders = (entry for entry in _PROC.iterdir() if entry.name.isdigit())
    return [int(entry.name) for entry in folders if (fields := _fields(entry)) and int(fields[2]) == group]


def end(pids: list[int], *, patience_s: float = 2.0) -> None:
    """SIGTERM, and SIGKILL for those that live on after `patience_s`."""
    begun = {pid: started(pid) for pid in pids}
    for pid in pids:
        _send(pid, signal.SIGTERM)
    until = time.monotonic() + patience_s
    while time.monotonic() < until and any(ticks is not None and started(pid) == ticks for pid, ticks in begun.items()):
        time.sleep(0.05)
    for pid, ticks in begun.items():
        if ticks is not None and started(pid) == ticks:
            _send(pid, signal.SIGKILL)


def _fields(folder: Path) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on (the name before it may hold anything), or None when dead."""
    try:
        text = (folder / "stat").read_text(errors="replace")
    except OSError:  # it ended while we looked
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
