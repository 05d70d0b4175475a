"""Asynchronous successive halving: a run that is behind the others of its sweep stops early (ASHA, Li et al. 2020).

A rung is a share of a run's length: first, first * factor, first * factor^2, ... At the first evaluation from a rung on, a
run puts its value into the sweep's folder, looks at what the others had there, and goes on if it is among the best 1 /
factor. Nobody waits and nobody controls: what a run knows is what was there when it came.

    <folder>/<judge>/rung-0.1/<run folder's name>.json     {"run", "step", "value", "seen", "better", "stops"}

<judge> is a digest of the metric and the data that it is measured on: nothing else can be compared.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from retrieval_train.config import Section, place
from retrieval_train.rundir import read_json, write_json

if TYPE_CHECKING:
    from jobs.training.judge import Config as Judge
    from retrieval_train.world import World

log = logging.getLogger(__name__)


class Rungs(Section):
    """Where runs are compared."""

    first: float = Field(default=0.1, gt=0, lt=1)
    """The first rung: a share of the run's length."""
    factor: int = Field(default=3, ge=2)
    """A run goes on from a rung when it is among the best 1 / factor of those that came there, and while fewer than
    `factor` did; each rung is so many times the one before."""

    def shares(self) -> list[float]:
        """All of them; at the end of the length there is nothing to stop."""
        found = [self.first]
        while found[-1] * self.factor < 1:
            found.append(found[-1] * self.factor)
        return found


class Config(Rungs):
    """Stop a run that is behind the others of its sweep. Judged by `evaluate.metric`, where more is better."""

    folder: Path = Field(json_schema_extra=place())
    """What the runs of one sweep tell each other; on a disk that all of them see."""


@dataclass(frozen=True)
class Verdict:
    """Why a run stops."""

    share: float
    """The rung, as a share of the length."""
    step: int
    better: int
    """Runs that had a better value at this rung ..."""
    seen: int
    """... of so many, this one included."""


class Halving:
    """Of one run. `look` is collective."""

    def __init__(self, config: Config, *, name: str, judge: str, num_steps: int, world: World) -> None:
        """`judge` is the digest of what values mean (`digest_of`)."""
        self._config, self._name, self._num_steps, self._world = config, name, num_steps, world
        self._folder = config.folder / judge
        self.verdict: Verdict | None = None
        """None: it goes on."""

    def look(self, history: Sequence[tuple[int, float]]) -> None:
        """Judge by all evaluations up to here: (step, value), by step. What was judged once, a start before this one
        included, is not judged again."""
        before = self.verdict
        self.verdict = self._world.from_first(self._judge(history) if self._world.rank == 0 else None)
        if self.verdict is not None and before is None:
            share, step, better, seen = self.verdict.share, self.verdict.step, self.verdict.better, self.verdict.seen
            text = "halved at step %d, %.0f%% of the length: %d of %d runs of the sweep were better there"
            log.info(text, step, 100 * share, better, seen)

    def figures(self) -> dict[str, float]:
        """For the tracker, of the step that ends the run."""
        return {"halved_at": self.verdict.share, "halved_rank": self.verdict.better + 1} if self.verdict else {}

    def _judge(self, history: Sequence[tuple[int, float]]) -> Verdict | None:
        for share, step, value in self._reached(history):
            try:
                if (told := self._told(share, step, value))["stops"]:
                    return Verdict(share, step, told["better"], told["seen"])
            except OSError as error:  # what a run does without: it only ends later
                log.warning("%s: this run is not compared at %.0f%%: %s", self._folder, 100 * share, error)
        return None

    def _reached(self, history: Sequence[tuple[int, float]]) -> Iterator[tuple[float, int, float]]:
        """Each rung with the first evaluation from it on, if that came before the next rung."""
        shares = self._config.shares()
        begins = [max(1, math.ceil(round(share * self._num_steps, 6))) for share in shares]
        for share, begin, end in zip(shares, begins, [*begins[1:], self._num_steps], strict=True):
            found = next(((step, value) for step, value in history if begin <= step < end), None)
            if found is not None:
                yield share, *found

    def _told(self, share: float, step: int, value: float) -> dict[str, Any]:
        """What this run wrote at the rung, now or in an earlier start."""
        file = self._folder / _file(share, self._name)
        if (mine := _read(file)) is not None:
            return mine
        others = [told["value"] for path in file.parent.glob("*.json") if (told := _read(path)) is not None]
        seen, better = len(others) + 1, sum(other > value for other in others)
        stops = seen >= self._config.factor and better >= seen // self._config.factor
        mine = {"run": self._name, "step": step, "value": value, "seen": seen, "better": better, "stops": stops}
        write_json(file, mine)
        return mine


def forget(config: Config, name: str) -> None:
    """The notes of the run in the folder `name`: it begins anew, and what it was before says nothing of it."""
    for share in config.shares():
        try:
            for note in config.folder.glob(f"*/{glob.escape(_file(share, name))}"):
                note.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: the notes of the run's former life are still there: %s", config.folder, error)


def stopped_at(config: Config, name: str) -> float | None:
    """The share of its length at which the run in the folder `name` was stopped; None where it was not."""
    for share in config.shares():
        told = [_read(path) for path in config.folder.glob(f"*/{glob.escape(_file(share, name))}")]
        if any(mine is not None and mine["stops"] for mine in told):
            return share
    return None


def digest_of(judge: Judge, shards_root: Path) -> str:
    """What values of the judge's metric mean."""
    text = json.dumps([judge.metric, judge.split, judge.digests(shards_root)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _file(share: float, name: str) -> str:
    return f"rung-{share:.4g}/{name}.json"


def _read(file: Path) -> dict[str, Any] | None:
    """None where there is none, or one that is no note of a run."""
    try:
        told = read_json(file)
    except (FileNotFoundError, ValueError):
        return None
    is_note = isinstance(told, dict) and isinstance(told.get("value"), (int, float)) and "stops" in told
    return told if is_note else None
