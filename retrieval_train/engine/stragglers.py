"""Which rank is slow, and on which machine: all ranks wait for the slowest, so its time is the step's.

Legend: W ranks.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import re
import socket
import statistics
import time
from pathlib import Path

import torch

from retrieval_train.world import World

log = logging.getLogger(__name__)

SLOW = 1.25  # times the median step, from which on a rank is told of
IN_A_ROW = 3  # agreements, so that one slow file or one save is nothing to tell
TOLD_EVERY_S = 1800.0
MOST_SKEW_S = 1.0


class Stragglers:
    """Times of this rank, and now and then those of all. The constructor and `agree` are collective."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.hosts = world.every(socket.gethostname())
        self._own_s: list[float] = []
        self._slowest, self._in_a_row, self._told_at = -1, 0, -TOLD_EVERY_S

    def note(self, own_s: float) -> None:
        """What this rank took for one step without waiting for other ranks: the wait for its rows, and its images through the
        embedder (under ZeRO 3 other ranks' weights are waited for in it)."""
        self._own_s.append(own_s)

    def agree(self) -> dict[str, float | str]:
        """Figures over all ranks and the steps since the last call."""
        own = statistics.fmean(self._own_s) if self._own_s else 0.0
        self._own_s = []
        own_W1 = torch.tensor([[own]], dtype=torch.float64, device=self._world.device)
        own_W = self._world.gather(own_W1, [1] * self._world.size).flatten().tolist()
        slowest = own_W.index(max(own_W))
        # of two ranks the median is the faster one
        ratio = own_W[slowest] / max(statistics.median_low(own_W), 1e-9)
        self._tell(slowest, ratio)
        return {
            "own_mean_s": round(statistics.fmean(own_W), 4),
            "own_max_s": round(own_W[slowest], 4),
            "slowest_rank": slowest,
            "slowest_host": self.hosts[slowest],
            "slowest_ratio": round(ratio, 3),
        }

    def _tell(self, slowest: int, ratio: float) -> None:
        is_again = slowest == self._slowest and ratio > SLOW
        self._in_a_row = self._in_a_row + 1 if is_again else int(ratio > SLOW)
        self._slowest = slowest
        now = time.monotonic()
        if self._world.rank == 0 and self._in_a_row >= IN_A_ROW and now - self._told_at > TOLD_EVERY_S:
            self._told_at = now
            log.warning("rank %d on %s takes %.1f x the median step", slowest, self.hosts[slowest], ratio)


def clock_skew_s(world: World) -> float:
    """How far the ranks' clocks are apart, to some milliseconds; warns when their logs do not line up. Collective."""
    world.barrier()  # the first may open connections, which takes some ranks longer
    world.barrier()
    told = world.every((time.time(), socket.gethostname()))
    middle = statistics.median_low([now for now, _ in told])
    skew = max(now for now, _ in told) - min(now for now, _ in told)
    if skew > MOST_SKEW_S and world.rank == 0:
        now, host = max(told, key=lambda one: abs(one[0] - middle))
        log.warning("the clock of %s is %+.1f s off the others': times in the logs do not line up", host, now - middle)
    return skew


def host_facts() -> dict[str, str | int | float]:
    """What this machine is, for the log."""
    facts: dict[str, str | int | float] = {
        "host": socket.gethostname(),
        "kernel": platform.release(),
        "cpu": _first(r"model name\s*: (.*)", Path("/proc/cpuinfo")) or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "deepspeed")},
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpus"] = torch.cuda.device_count()
        facts["driver"] = _first(r"Kernel Module.*?  ([\d.]+)", Path("/proc/driver/nvidia/version"))
    return facts


def _first(pattern: str, path: Path) -> str:
    found = re.search(pattern, path.read_text()) if path.is_file() else None
    return found[1].strip() if found else ""
