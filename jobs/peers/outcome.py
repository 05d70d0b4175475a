"""What the races gave, as numbers: rates, ratios and goals."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from jobs.peers.demand import Demand
from jobs.peers.race import Rates

SUITE, BARE, BARE_SUITE = "this suite", "bare loop", "bare loop, our decoding"
OPEN_CLIP, MOSAICML, IMAGE_FOLDER = "open_clip recipe", "mosaicml-streaming", "torchvision ImageFolder"
WEBDATASET_DCT = "webdataset, DCT, uint8"
RESUMED = 1_000_000
QUIET = 0.9
FIRST_BATCH_S, RESUME_S = 2.0, 1.0
LIBRARIES = ("torch", "torchvision", "pillow", "simplejpeg", "webdataset")


@dataclass(frozen=True)
class Race:
    """All contestants on the same images with so many workers on so many cores."""

    images: str
    """What they read."""
    is_full_size: bool
    workers: int
    rates: Mapping[str, Rates]
    """By title."""

    @property
    def title(self) -> str:
        return f"{self.images}, {self.workers} worker{'s' if self.workers > 1 else ''}"

    def times(self, other: str) -> float | None:
        """How many times as fast as the other one our loader is; None where one of them is absent."""
        if SUITE not in self.rates or other not in self.rates:
            return None
        return self.rates[SUITE].times(self.rates[other])

    def times_by_cpu(self, other: str) -> float | None:
        """The same by CPU time."""
        if SUITE not in self.rates or other not in self.rates:
            return None
        return self.rates[SUITE].times_by_cpu(self.rates[other])

    @property
    def share_had(self) -> float:
        """The share of their cores that the contestants had, at the median; the rest was idle or others'."""
        shares = [rates.images_per_s / rates.images_per_cpu_s / self.workers for rates in self.rates.values()]
        return median(shares) if shares else 1.0


@dataclass(frozen=True)
class Goal:
    """A number to reach."""

    what: str
    wanted: str
    found: str
    is_met: bool


@dataclass(frozen=True)
class Outcome:
    """Everything."""

    races: Sequence[Race]
    absent: Mapping[str, str]
    """Why a contestant is missing, by title."""
    opening: Mapping[int, Sequence[float]]
    """First step -> seconds to the first batch: the first in a new process, then more in the same one."""
    demand: Demand | None
    about: Mapping[str, Any]
    """Images, rounds, machine: what the numbers depend on."""
    command: str = ""
    goals: Sequence[Goal] = field(default=(), init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "goals", [*_goals_of_races(self.races), *_goals_of_opening(self.opening)])

    def as_json(self) -> dict[str, Any]:
        """report.json."""
        per_core = {
            race.title: {name: rates.images_per_s / race.workers for name, rates in race.rates.items()}
            for race in self.races
        }
        return {
            "schema": 1,
            "command": self.command,
            "about": dict(self.about),
            "metrics": per_core,
            "ratios": {race.title: {name: race.times(name) for name in race.rates} for race in self.races},
            "ratios_by_cpu": {
                race.title: {name: race.times_by_cpu(name) for name in race.rates} for race in self.races
            },
            "goals": [vars(goal) for goal in self.goals],
            "absent": dict(self.absent),
            "opening": [{"step": step, "seconds": list(seconds)} for step, seconds in self.opening.items()],
            "cores_per_gpu": {**vars(self.demand), "cores": self.demand.cores} if self.demand else None,
            "races": [
                {
                    "images": race.images,
                    "workers": race.workers,
                    "turns": {
                        name: {
                            "images_per_s": list(rates.per_s),
                            "images_per_cpu_s": list(rates.per_cpu_s),
                            "first_batch_s": rates.first_batch_s,
                        }
                        for name, rates in race.rates.items()
                    },
                }
                for race in self.races
            ],
        }


def wanted_times(*, is_full_size: bool, workers: int) -> dict[str, float]:
    """How many times as fast as others our loader shall be."""
    if workers > 1:
        return {OPEN_CLIP: 2.5}
    return {OPEN_CLIP: 3.5 if is_full_size else 3.0, MOSAICML: 3.0, BARE: 0.9}


def _goals_of_races(races: Sequence[Race]) -> list[Goal]:
    goals = []
    for race in races:
        for other, wanted in wanted_times(is_full_size=race.is_full_size, workers=race.workers).items():
            times = race.times(other)
            if times is not None:
                goals.append(Goal(f"{race.title}: to {other}", f">= {wanted}", f"{times:.2f}", times >= wanted))
    return goals


def _goals_of_opening(opening: Mapping[int, Sequence[float]]) -> list[Goal]:
    goals = []
    for step, seconds in opening.items():
        most = RESUME_S if step else FIRST_BATCH_S
        what = f"first batch after building the loader{f', resumed at step {step:,}' if step else ''}"
        goals.append(Goal(what, f"< {most:g} s", f"{seconds[0]:.2f} s", seconds[0] < most))
    return goals


def describe_machine() -> dict[str, Any]:
    """What the numbers depend on."""
    versions = {name: metadata.version(name) for name in LIBRARIES if _is_installed(name)}
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    load = round(os.getloadavg()[0], 2)
    usable = len(os.sched_getaffinity(0))
    return {"processor": _processor(), "cores": usable, "load": load, "system": system, **versions}


def _is_installed(name: str) -> bool:
    return bool(list(metadata.distributions(name=name)))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
