"""What a sweep's file may say, and what is wrong with one; `sweep.py` makes points of it.

    base: ../train/real_small.yaml                 # beside this file, or from where you submit
    run: margin-{point}-m{head.margin}-s{seed}     # the points' run.name; left out: made of all that varies
    points: {arcface: {head: {name: arcface}}, plain: {head: {name: normface}}}      # named overrides, each one a point
    random: {count: 20, draws: {optimizer.lr: {log: [1e-4, 1e-2]}}}                  # drawn values: 20 points
    search: {count: 40, metric: dev/mMP@5, draws: {...}}                             # in the place of all other axes
    zip: {length.epochs: [3, 6], data.batch: [64, 128]}                              # walks in step: two points
    grid: {head.margin: [0.2, 0.3]}                # every value with every other
    folds: 5                                       # grid: {data.fold: [0, 1, 2, 3, 4]}
    seeds: 3                                       # grid: {seed: [0, 1, 2]}
    drop: [{point: plain, head.margin: 0.2}]       # points to leave out
    halving: {first: 0.1, factor: 3}               # points that are behind the others stop early
    then: ../evaluate/real_small.yaml              # an evaluation of each point's export

A value that is a mapping replaces the base's whole section, since a section is chosen by its `name`; a dotted key
changes one value.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from jobs.training.halving import Rungs
from launcher.sweeps.draws import Random
from launcher.sweeps.search import Search
from retrieval_train.config import FileName, Section

POINT, RANDOM, TRIAL = "point", "random", "trial"
"""What `run` and `drop` may name beside keys: one of `points`, the number of a drawn point, of a trial."""
FOLD, SEED = "data.fold", "seed"
"""Keys of which the table has the mean."""
NUMBERS = (RANDOM, TRIAL)
"""Of points whose values say more."""
_OURS = {"run": "`run` names the points", "run.name": "`run` names the points", "job": "all points are of one job"}

Given = Mapping[str, Sequence[Any]]
"""Axes of the command line: key -> values."""
Problems = list[tuple[str, str]]


class Config(Section):
    """A sweep's file."""

    job: Literal["sweep"] = "sweep"
    """Makes `config=FILE` the same as `--sweep FILE`."""
    base: Path
    """The config that all points share: a path from this file's folder, or from where submit is called."""
    run: str | None = None
    """Pattern of the points' names, with {key} for each key that varies; None: `<file>-<key><value>-...`."""
    points: dict[FileName, dict[str, Any]] = Field(default={})
    """Name -> overrides."""
    random: Random | None = None
    """Values that are drawn."""
    search: Search | None = None
    """Values that follow from how other points did, in the place of every other axis."""
    zip: dict[str, list[Any]] = Field(default={})
    """Key -> values, all of one length: the first of each, the second of each, ..."""
    grid: dict[str, list[Any]] = Field(default={})
    """Key -> values, each crossed with all others."""
    folds: int | list[int] | None = None
    """The values of `data.fold`, or how many: 3 is [0, 1, 2]; the evaluation of `then` searches in the same fold."""
    seeds: int | list[int] | None = None
    """The values of `seed`, or how many: 3 is [0, 1, 2]."""
    drop: list[dict[str, Any]] = Field(default=[])
    """Points to leave out: all that have every value of an entry."""
    halving: Rungs | None = None
    """Stop points that are behind the others, by what their evaluations on the way say; null: none."""
    then: Path | None = None
    """Config of a job with a `model`, run for the export of each point; a path as `base`."""

    def crossed(self, given: Given) -> dict[str, list[Any]]:
        """The axes whose values are each crossed with all others: those of `given` in the place of the file's."""
        axes: Given = {**self.grid, **self.replicas()}
        return {key: list(values) for key, values in {**axes, **given}.items()}

    def replicas(self) -> dict[str, list[int]]:
        """What `folds` and `seeds` say."""
        said = {FOLD: self.folds, SEED: self.seeds}
        return {
            key: list(range(values)) if isinstance(values, int) else values
            for key, values in said.items()
            if values is not None
        }

    def varied(self) -> dict[str, list[str]]:
        """Every key of the base that some point changes -> where in the file it stands."""
        found: dict[str, list[str]] = {}
        for axis, keys in self._axes():
            for key in keys:
                found.setdefault(key, []).append(axis)
        return found

    def _axes(self) -> Iterator[tuple[str, Any]]:
        yield "points", {key for point in self.points.values() for key in point}
        yield "random", self.random.draws if self.random else {}
        yield "search", self.search.draws if self.search else {}
        yield "zip", self.zip
        yield "grid", self.grid
        yield "folds", [] if self.folds is None else [FOLD]
        yield "seeds", [] if self.seeds is None else [SEED]

    def known(self, given: Given) -> dict[str, list[Any] | None]:
        """What `run` and `drop` may name -> its values, those that the command line put others in the place of included;
        None where they are drawn."""
        known: dict[str, list[Any] | None] = {POINT: list(self.points)} if self.points else {}
        if self.random:
            known |= {RANDOM: list(range(self.random.count)), **dict.fromkeys(self.random.draws)}
        if self.search:
            known |= {TRIAL: None, **dict.fromkeys(self.search.draws)}
        for axes in (self.zip, self.crossed({}), given):
            for key, values in axes.items():
                known[key] = [*(known.get(key) or []), *values]
        return known


def problems(config: Config, given: Given) -> Problems:
    """Every mistake that can be told before there are points."""
    return [
        *_bad_keys(config, given),
        *_bad_values(config, given),
        *_bad_lengths(config),
        *_bad_overlaps(config),
        *_bad_pattern(config, given),
        *_bad_drops(config, given),
        *_bad_beside_a_search(config, given),
    ]


def _bad_keys(config: Config, given: Given) -> Problems:
    found: Problems = []
    if not (config.varied() or config.points or given):
        text = "nothing varies; give grid, zip, points, random, folds or seeds, as in grid: {seed: [0, 1, 2]}"
        found.append(("grid", text))
    places = [(f"grid.{key}", key) for key in config.grid] + [(f"zip.{key}", key) for key in config.zip]
    places += [(f"points.{name}.{key}", key) for name, point in config.points.items() for key in point]
    for axis, drawn in (("random", config.random), ("search", config.search)):
        places += [(f"{axis}.draws.{key}", key) for key in (drawn.draws if drawn else {})]
    for path, key in places:
        if key in _OURS:
            found.append((path, f"cannot vary: {_OURS[key]}"))
        elif not re.fullmatch(r"\w+(\.\w+)*", key):
            found.append((path, f"{key!r} is no key of a config; write them as head.margin"))
    return found


def _bad_overlaps(config: Config) -> Problems:
    found = []
    for key, axes in config.varied().items():
        path = axes[-1] if axes[-1] in ("folds", "seeds") else f"{axes[-1]}.{key}"
        found += [(path, f"{axis} changes it, too; keep one of both") for axis in axes[:-1]]
    return found


def _bad_beside_a_search(config: Config, given: Given) -> Problems:
    if config.search is None:
        return []
    beside = ("points", "random", "zip", "grid", "folds", "seeds", "drop")
    why = "does not go with search, whose trials are all that varies; leave one of both out"
    found = [(axis, why) for axis in beside if getattr(config, axis)]
    if config.then is not None:
        found.append(("then", "does not go with search; evaluate the best trial's export by a config of its own"))
    return [*found, *(("command line", f"{key}: several values do not go with search") for key in given)]


def _bad_values(config: Config, given: Given) -> Problems:
    found: Problems = []
    for axis, values in (("grid", {**config.grid, **given}), ("zip", config.zip)):
        for key, several in values.items():
            if not several:
                found.append((f"{axis}.{key}", "has no value"))
            elif axis != "zip" and (twice := [v for place, v in enumerate(several) if v in several[:place]]):
                found.append((f"{axis}.{key}", f"has {twice[0]!r} twice"))
    for word, said in (("fold", config.folds), ("seed", config.seeds)):
        if isinstance(said, int) and said < 1:
            found.append((f"{word}s", f"{said} is no number of {word}s; give 1 or more, or a list of them"))
        elif isinstance(said, list) and len(set(said)) != max(len(said), 1):
            found.append((f"{word}s", f"{said}: give each {word} once, and one at least"))
    return found


def _bad_lengths(config: Config) -> Problems:
    found = []
    if len({len(several) for several in config.zip.values()}) > 1:
        lengths = ", ".join(f"{key} {len(several)}" for key, several in config.zip.items())
        found.append(("zip", f"its keys walk in step and need as many values each; there are: {lengths}"))
    return found


def _bad_pattern(config: Config, given: Given) -> Problems:
    known = config.known(given)
    try:
        parts = list(string.Formatter().parse(config.run or ""))
    except ValueError as error:
        return [("run", f"{config.run!r} is not readable ({error}); write a key in braces, as in {{head.margin}}")]
    fields = [(field, spec or conversion) for _, field, spec, conversion in parts if field is not None]
    odd = [field for field, more in fields if field not in known or more]
    allowed = ", ".join(f"{{{key}}}" for key in known)
    return [("run", f"{{{field}}} is nothing that varies; there are: {allowed}") for field in odd]


def _bad_drops(config: Config, given: Given) -> Problems:
    known = config.known(given)
    found = []
    for number, entry in enumerate(config.drop):
        if not entry:
            found.append((f"drop.{number}", "is empty: it would drop every point"))
        for key, value in entry.items():
            place = f"drop.{number}.{key}"
            if key not in known:
                found.append((place, f"is nothing that varies; there are: {', '.join(known)}"))
                continue
            values = known[key]
            if values is None:
                found.append((place, "its values are drawn; name a point by its number, as random: 3"))
            elif value not in values:
                found.append((place, f"{value!r} is none of its values: {', '.join(map(str, values))}"))
    return found
