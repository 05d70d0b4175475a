"""What a part of the benchmark found, ready for the screen and for a file."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from shards import __version__
from shards.pool import usable_cpus
from shards.showing.tables import Table


@dataclass(frozen=True, slots=True)
class Goal:
    """A number that the tool shall reach."""

    what: str
    wanted: str
    found: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one part."""

    name: str
    notes: tuple[str, ...]
    """What was measured and how."""
    tables: tuple[Table, ...]
    goals: tuple[Goal, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """All measurements, for the file."""

    def as_json(self) -> dict[str, Any]:
        """For the file."""
        return {"notes": self.notes, "goals": [asdict(goal) for goal in self.goals], **self.numbers}


def goal_table(outcomes: list[Outcome]) -> Table:
    """All goals."""
    goals = [goal for outcome in outcomes for goal in outcome.goals]
    rows = [(goal.what, goal.wanted, goal.found, "yes" if goal.holds else "no") for goal in goals]
    return Table("goals", ("", "wanted", "here", "holds"), rows)


def describe_machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "shards": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor_name(),
        "cpus": usable_cpus(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def processor_name() -> str:
    """As the system calls it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            named = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        named = []
    return named[0] if named else platform.processor() or "unknown"
