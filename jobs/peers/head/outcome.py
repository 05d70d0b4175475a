"""What the races of heads gave, as numbers: times, memory, ratios and goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.peers.head.race import Turns
from jobs.peers.outcome import Goal
from retrieval_train.engine.memory import Load, memory_of

SUITE, BARE = "this suite", "bare products"
SUITE_BF16, SUITE_SAMPLED = "this suite, bf16", "this suite, sampled"
METRIC_LEARNING = "pytorch-metric-learning"
PARTIAL_FC, PARTIAL_FC_SAMPLED = "PartialFC, our reading", "PartialFC, our reading, sampled"
_BLOCK_MB = 2  # a head's on the CPU, where the races run
MOST_OF_BARE, FASTER, FASTER_SAMPLED, MEMORY = 1.6, 2.7, 1.5, 0.5


@dataclass(frozen=True)
class Race:
    """All contestants with the same classes, optimizer and ranks."""

    classes: int
    dim: int
    batch: int
    optimizer: str
    ranks: int
    turns: Mapping[str, Turns]
    """By title."""

    @property
    def title(self) -> str:
        ranks = f", {self.ranks} ranks" if self.ranks > 1 else ""
        return f"{self.classes:,} classes, {self.optimizer}{ranks}"

    @property
    def gflop(self) -> float:
        """10^9 floating-point operations of the three products."""
        return 6 * self.batch * self.classes * self.dim / 1e9

    @property
    def bytes_moved(self) -> int:
        """What they read and write at least, each once: the centres twice, their gradient, the logits three times."""
        return 4 * self.classes * (3 * self.dim + 3 * self.batch)

    @property
    def goals(self) -> list[Goal]:
        found: list[Goal] = []
        turns = self.turns

        def judge(what: str, mine: str, other: str, wanted: float) -> None:
            if mine in turns and other in turns:
                times = turns[other].over(turns[mine])
                found.append(Goal(f"{self.title}: {what}", f">= {wanted:g} x", f"{times:.2f} x", times >= wanted))

        if SUITE in turns and BARE in turns:
            times = turns[SUITE].over(turns[BARE])
            is_met = times <= MOST_OF_BARE
            found.append(Goal(f"{self.title}: time over {BARE}", f"<= {MOST_OF_BARE:g} x", f"{times:.2f} x", is_met))
        for other in (METRIC_LEARNING, PARTIAL_FC):
            judge(f"faster than {other}", SUITE, other, FASTER)
            if SUITE in turns and other in turns:
                ours, theirs = turns[SUITE], turns[other]
                for what, share in (
                    ("memory of a step", ours.step_mb / theirs.step_mb),
                    ("memory with centres and moments", ours.memory_mb / theirs.memory_mb),
                ):
                    told = f"{self.title}: {what}, over {other}"
                    found.append(Goal(told, f"<= {MEMORY:g} x", f"{share:.2f} x", share <= MEMORY))
        judge(f"sampled, faster than {PARTIAL_FC_SAMPLED}", SUITE_SAMPLED, PARTIAL_FC_SAMPLED, FASTER_SAMPLED)
        return found


@dataclass(frozen=True)
class Held:
    """Memory of one rank of ours."""

    classes: int
    ranks: int
    optimizer: str
    megabytes: float
    is_measured: bool


@dataclass(frozen=True)
class Outcome:
    """Everything."""

    races: Sequence[Race]
    absent: Mapping[str, str]
    """Why a contestant is missing, by title."""
    held: Sequence[Held]
    about: Mapping[str, Any]
    command: str = ""
    goals: Sequence[Goal] = field(default=(), init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "goals", [goal for race in self.races for goal in race.goals])

    def as_json(self) -> dict[str, Any]:
        """report.json."""
        return {
            "schema": 1,
            "command": self.command,
            "about": dict(self.about),
            "metrics": {
                race.title: {name: turns.median_s for name, turns in race.turns.items()} for race in self.races
            },
            "memory_mb": {
                race.title: {name: turns.memory_mb for name, turns in race.turns.items()} for race in self.races
            },
            "goals": [vars(goal) for goal in self.goals],
            "absent": dict(self.absent),
            "memory_per_rank": [vars(held) for held in self.held],
            "races": [
                {
                    "classes": race.classes,
                    "optimizer": race.optimizer,
                    "ranks": race.ranks,
                    "gflop": race.gflop,
                    "bytes": race.bytes_moved,
                    "turns": {name: vars(turns) for name, turns in race.turns.items()},
                }
                for race in self.races
            ],
        }


def by_arithmetic(classes: int, ranks: int, *, dim: int, rows: int, optimizer: str) -> float:
    """Megabytes of one rank: centres, gradient, moments, and what is kept of the logits."""
    moments = {"sgd": 0, "adamw": 2}[optimizer]
    load = Load(trained=0, ranks=ranks, classes=classes, dim=dim, rows=rows, moments=moments, block_mb=_BLOCK_MB)
    memory = memory_of(load)
    return (memory.centres + memory.logits) / 1e6
