"""Contestants in processes of their own take turns, A B C A B C …, a few steps each, and stand still in between.

A contestant is as many processes as there are ranks. Those that are too large to be in memory together are opened for each
turn and closed after it.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from jobs.peers.head.task import Task
from jobs.peers.race import Contestant, Entry, PeerError, usable_cores

PROCESS = "jobs.peers.head.process"
TABLES = 8
"""What a contestant may need, in tables of class centres."""
SHARE = 0.6
"""Of the free memory that all contestants together may take."""


@dataclass(frozen=True)
class Entrant:
    """Who takes part, and in what way."""

    entry: Entry
    sample_rate: float = 1.0
    products: str = "fp32"
    most_ranks: int = 2**20

    @property
    def title(self) -> str:
        return self.entry.title


@dataclass(frozen=True)
class Turns:
    """What one contestant's turns gave, round by round."""

    step_s: tuple[float, ...]
    """Wall-clock seconds of a step."""
    cpu_s: tuple[float, ...]
    """CPU seconds of a step, of all its ranks."""
    memory_mb: float
    """High-water mark of its steps over what its process had before: the largest of its ranks."""
    step_mb: float
    """The same over what stays between steps: without centres and moments."""

    @property
    def median_s(self) -> float:
        return median(self.step_s)

    def over(self, other: Turns) -> float:
        """How many times the other's time it takes: the median over the rounds, each compared within itself."""
        return median(mine / theirs for mine, theirs in zip(self.step_s, other.step_s, strict=True))

    @property
    def cores_had(self) -> float:
        """At the median, how many cores worked for it."""
        return median(cpu / step for cpu, step in zip(self.cpu_s, self.step_s, strict=True))


class Team:
    """The ranks of one contestant, asked together."""

    def __init__(self, entry: Entry, log: Path, *, ranks: int, cores: int) -> None:
        port = _free_port() if ranks > 1 else 0
        self._contestants = []
        for rank in range(ranks):
            env = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            one = Contestant(
                entry, log, process=PROCESS, threads=max(1, cores // ranks), env=env if ranks > 1 else None
            )
            self._contestants.append(one)
        self._cores = usable_cores(cores)
        self._missing = f"not installed: pip install {entry.package or '{}'}"
        for one in self._contestants:  # all import at the same time
            one.tell(do="hello")

    def hear_hello(self) -> None:
        """Raises PeerError where something is not installed."""
        for missing in [one.hear().get("missing") for one in self._contestants]:
            if missing:
                raise PeerError(self._missing.format(missing))

    def open(self, task: Task) -> list[dict[str, Any]]:
        """Raises PeerError."""
        ranks = len(self._contestants)
        threads = max(1, len(self._cores) // ranks)
        tasks = [
            dataclasses.replace(
                task, rank=rank, ranks=ranks, threads=threads, cores=self._cores if ranks == 1 else self._part(rank)
            )
            for rank in range(ranks)
        ]
        return self._ask([{"do": "open", "task": dataclasses.asdict(mine)} for mine in tasks])

    def ask(self, **question: Any) -> list[dict[str, Any]]:
        """Every rank's answer. Raises PeerError."""
        return self._ask([question] * len(self._contestants))

    def _ask(self, questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        for one, question in zip(self._contestants, questions, strict=True):
            one.tell(**question)
        return [one.hear() for one in self._contestants]

    def _part(self, rank: int) -> tuple[int, ...]:
        """A rank's own cores; more ranks than cores share them."""
        each, ranks = len(self._cores), len(self._contestants)
        return self._cores[rank * each // ranks : (rank + 1) * each // ranks] or self._cores

    def end(self) -> None:
        for one in self._contestants:
            one.end()


@contextmanager
def started(entrants: Sequence[Entrant], logs: Path, *, ranks: int, cores: int) -> Iterator[dict[str, Team]]:
    """A team of each, by title; not yet heard."""
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        teams = {}
        for entrant in entrants:
            log = logs / f"{entrant.entry.module}.log"
            teams[entrant.title] = found = Team(entrant.entry, log, ranks=ranks, cores=cores)
            stack.callback(found.end)
        yield teams


def take_turns(
    entrants: Sequence[Entrant],
    task: Task,
    logs: Path,
    *,
    ranks: int,
    cores: int,
    rounds: int,
    steps: int,
    shown: Callable[[int], None],
) -> tuple[dict[str, Turns], dict[str, str]]:
    """Turns by title, and why some have none. `shown` is called with the turns taken."""
    failed: dict[str, str] = {}
    opened: dict[str, list[dict[str, Any]]] = {}
    turns: dict[str, list[list[dict[str, float]]]] = {}
    stay = len(entrants) * TABLES * 4 * task.classes * task.dim < SHARE * free_bytes()
    with started(entrants, logs, ranks=ranks, cores=cores) as teams:
        for number in range(-1, rounds):
            for at, entrant in enumerate(entrants):
                title = entrant.title
                if title in failed:
                    continue
                try:
                    if number < 0:
                        teams[title].hear_hello()
                        continue
                    if title not in opened or not stay:
                        opened[title] = teams[title].open(_for(entrant, task))
                    turns.setdefault(title, []).append(teams[title].ask(do="turn", steps=steps))
                    if not stay:
                        teams[title].ask(do="close")
                except PeerError as error:
                    if entrant.entry.is_needed:
                        raise
                    failed[title] = str(error)
                shown(max(number, 0) * len(entrants) + at + 1)
    return {title: _turns(opened[title], found) for title, found in turns.items() if title not in failed}, failed


def _for(entrant: Entrant, task: Task) -> Task:
    return dataclasses.replace(task, sample_rate=entrant.sample_rate, products=entrant.products)  # type: ignore[arg-type]


def _turns(opened: Sequence[dict[str, Any]], found: Sequence[Sequence[dict[str, float]]]) -> Turns:
    return Turns(
        step_s=tuple(max(rank["step_s"] for rank in turn) for turn in found),
        cpu_s=tuple(sum(rank["cpu_s"] for rank in turn) for turn in found),
        memory_mb=max(rank["memory_mb"] for rank in opened),
        step_mb=max(rank["step_mb"] for rank in opened),
    )


def measure_memory(entrant: Entrant, task: Task, logs: Path, *, ranks: int, cores: int) -> float:
    """Megabytes of the largest rank's steps. Raises PeerError."""
    with started([entrant], logs, ranks=ranks, cores=cores) as teams:
        teams[entrant.title].hear_hello()
        return max(float(rank["memory_mb"]) for rank in teams[entrant.title].open(_for(entrant, task)))


def free_bytes() -> int:
    """Memory that a process could get now."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
