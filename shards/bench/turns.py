"""Everybody in turn, A B C A B C …, in processes that live on between turns: one for the contestants of each module.

What something else does to the machine for a while then slows all of them alike, and imports are not counted. The first
round is not counted either: it fills the page cache and starts what starts late. Nothing is synced to the disk by anyone.
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

from shards.bench.contestants import Case

Contestant = Callable[[Case], Any]
Processes = Callable[[Contestant], ProcessPoolExecutor]
Watch = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement."""

    seconds: float
    cpu_s: float
    """Of the process and those that it started, user and system."""


@dataclass(frozen=True, slots=True)
class Turns:
    """All measurements of one contestant."""

    turns: tuple[Turn, ...]

    @property
    def seconds(self) -> float:
        """The median."""
        return median(turn.seconds for turn in self.turns)

    @property
    def cpu_s(self) -> float:
        """The median."""
        return median(turn.cpu_s for turn in self.turns)

    @property
    def range_s(self) -> tuple[float, float]:
        """Shortest and longest."""
        seconds = [turn.seconds for turn in self.turns]
        return min(seconds), max(seconds)


@contextmanager
def open_processes() -> Iterator[Processes]:
    """Yields the function that gives a contestant's process."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        of_module = cache(lambda module: stack.enter_context(ProcessPoolExecutor(1, context)))
        yield lambda contestant: of_module(contestant.__module__)


def take_turns(
    contestants: Mapping[str, Contestant], case: Case, rounds: int, processes: Processes, watch: Watch
) -> dict[str, Turns]:
    """Measurements by name; the parts of a contestant's own measuring as `name: part`."""
    found: dict[str, list[Turn]] = {}
    for number in range(rounds + 1):
        for at, (name, contestant) in enumerate(contestants.items()):
            case.out.mkdir()
            try:
                parts = processes(contestant).submit(measure, contestant, case).result()
            finally:
                shutil.rmtree(case.out)
            for part, turn in parts.items() if number else ():
                found.setdefault(f"{name}: {part}" if part else name, []).append(turn)
            watch((rounds + 1) * len(contestants), number * len(contestants) + at + 1, 0)
    return {name: Turns(tuple(turns)) for name, turns in found.items()}


def measure(contestant: Contestant, case: Case) -> dict[str, Turn]:
    """One turn, in the contestant's process; "" is the whole of it."""
    gc.collect()
    started, before = time.perf_counter(), used_cpu_s()
    parts = contestant(case) or {}
    whole = Turn(time.perf_counter() - started, used_cpu_s() - before)
    return {"": whole, **{name: Turn(*part) for name, part in parts.items()}}


def used_cpu_s() -> float:
    """By this process and by those of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
