"""A sweep is a config and what varies in it. Pure: a mapping in, a list of points (a name and overrides) out.

    base: ../train/real_small.yaml                 # beside this file, or from where you submit
    run: margin-{point}-m{head.margin}-s{seed}     # the points' run.name; left out: made of all that varies
    points: {arcface: {head: {name: arcface}}, plain: {head: {name: normface}}}      # named overrides, each one a point
    grid: {head.margin: [0.2, 0.3], seed: [0, 1]}  # every value with every other
    zip: {length.epochs: [3, 6], data.batch: [64, 128]}                              # walks in step: two points
    drop: [{point: plain, head.margin: 0.2}]       # points to leave out
    then: ../evaluate/real_small.yaml              # an evaluation of each point's export

A value that is a mapping replaces the base's whole section, since a section is chosen by its `name`; a dotted key
changes one value. Whatever varies more than these four can say is one more function from a mapping to points.
"""

from __future__ import annotations

import itertools
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from retrieval_train import config as configs
from retrieval_train.config import ConfigError, FileName, Section

POINT = "point"
"""Stands for the name of one of `points`, in `run` and `drop`."""
_OURS = {"run": "`run` names the points", "run.name": "`run` names the points", "job": "all points are of one job"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")

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
    grid: dict[str, list[Any]] = Field(default={})
    """Key -> values, each crossed with all others."""
    zip: dict[str, list[Any]] = Field(default={})
    """Key -> values, all of one length: the first of each, the second of each, ..."""
    drop: list[dict[str, Any]] = Field(default=[])
    """Points to leave out: all that have every value of an entry."""
    then: Path | None = None
    """Config of a job with a `model`, run for the export of each point; a path as `base`."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    """Its `run.name`."""
    values: Mapping[str, Any]
    """What tells it from the others: key (or `point`) -> value."""
    overrides: Mapping[str, Any]
    """Dotted key -> value, sections before what lies in them; `run.name` is among them."""

    def assignments(self) -> list[str]:
        """`key=value`s for `config.read`. A section is emptied first, so that a mapping replaces it."""
        found = []
        for key, value in self.overrides.items():
            found += [f"{key}=null"] if isinstance(value, Mapping) else []
            found.append(f"{key}={json.dumps(value)}")
        return found


def points(
    values: Mapping[str, Any], *, where: str, prefix: str, given: Mapping[str, Sequence[Any]] | None = None
) -> list[Point]:
    """The points in order, the last key of `grid` fastest. Raises ConfigError with every mistake.

    `prefix` begins the names where the file has no `run`. `given` are axes of the command line: in the place of those
    of `grid` with the same key, or more of them.
    """
    config = configs.check(Config, values, where=where)
    given = given or {}
    problems = [*_bad_axes(config, given), *_bad_pattern(config, given), *_bad_drops(config, given)]
    if problems:
        raise ConfigError(where, problems)
    found = []
    for chosen in itertools.product(*_axes(config, given)):
        differs = {key: value for values, _ in chosen for key, value in values.items()}
        if not any(all(differs[key] == value for key, value in entry.items()) for entry in config.drop):
            changed = {key: value for _, overrides in chosen for key, value in overrides.items()}
            found.append(_point(config.run, prefix, differs, changed))
    if problems := _bad_names(config, found):
        raise ConfigError(where, problems)
    return found


def varied(values: Mapping[str, Any], *, where: str) -> set[str]:
    """Every key that some point changes."""
    config = configs.check(Config, values, where=where)
    return {*config.grid, *config.zip, *(key for overrides in config.points.values() for key in overrides)}


# --- axes


_Choice = tuple[Mapping[str, Any], Mapping[str, Any]]  # what the point is told by, and what it changes


def _axes(config: Config, given: Mapping[str, Sequence[Any]]) -> Iterator[list[_Choice]]:
    if config.points:
        yield [({POINT: name}, overrides) for name, overrides in config.points.items()]
    if config.zip:
        rows = [dict(zip(config.zip, row, strict=True)) for row in zip(*config.zip.values(), strict=True)]
        yield [(row, row) for row in rows]
    for key, values in {**config.grid, **given}.items():
        yield [({key: value}, {key: value}) for value in values]


def _point(pattern: str | None, prefix: str, values: Mapping[str, Any], overrides: Mapping[str, Any]) -> Point:
    if pattern is None:
        parts = [in_a_name(v) if key == POINT else key.rpartition(".")[2] + in_a_name(v) for key, v in values.items()]
        name = "-".join([prefix, *parts])
    else:
        name = "".join(
            text + (in_a_name(values[key]) if key is not None else "")
            for text, key, _, _ in string.Formatter().parse(pattern)
        )
    by_depth = dict(sorted(overrides.items(), key=lambda item: item[0].count(".")))
    return Point(name, dict(values), {**by_depth, "run.name": name})


def in_a_name(value: Any) -> str:
    """A value as part of a folder's name."""
    if isinstance(value, Mapping):
        return in_a_name(value.get("name", "section"))
    if isinstance(value, (list, tuple)):
        return "-".join(map(in_a_name, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(value))


# --- mistakes


def _bad_axes(config: Config, given: Mapping[str, Sequence[Any]]) -> Problems:
    problems: Problems = []
    if not (config.points or config.zip or config.grid or given):
        problems.append(("grid", "nothing varies; give grid, zip or points, as in grid: {seed: [0, 1, 2]}"))
    places = [(f"grid.{key}", key) for key in config.grid] + [(f"zip.{key}", key) for key in config.zip]
    places += [(f"points.{name}.{key}", key) for name, point in config.points.items() for key in point]
    for path, key in places:
        if key in _OURS:
            problems.append((path, f"cannot vary: {_OURS[key]}"))
        elif not re.fullmatch(r"\w+(\.\w+)*", key):
            problems.append((path, f"{key!r} is no key of a config; write them as head.margin"))
    for axis, values in (("grid", {**config.grid, **given}), ("zip", config.zip)):
        for key, several in values.items():
            if not several:
                problems.append((f"{axis}.{key}", "has no value"))
            elif axis == "grid" and (twice := [v for place, v in enumerate(several) if v in several[:place]]):
                problems.append((f"grid.{key}", f"has {twice[0]!r} twice"))
    if len({len(several) for several in config.zip.values()}) > 1:
        lengths = ", ".join(f"{key} {len(several)}" for key, several in config.zip.items())
        problems.append(("zip", f"its keys walk in step and need as many values each; there are: {lengths}"))
    in_points = {key for point in config.points.values() for key in point}
    pairs = (("zip", config.zip, "grid", config.grid), ("points", in_points, "grid", config.grid))
    for one, mine, other, theirs in (*pairs, ("points", in_points, "zip", config.zip)):
        problems += [(f"{other}.{key}", f"{one} changes it, too; keep one of both") for key in theirs if key in mine]
    return problems


def _bad_pattern(config: Config, given: Mapping[str, Sequence[Any]]) -> Problems:
    known = _known(config, given)
    try:
        parts = list(string.Formatter().parse(config.run or ""))
    except ValueError as error:
        return [("run", f"{config.run!r} is not readable ({error}); write a key in braces, as in {{head.margin}}")]
    fields = [(field, spec or conversion) for _, field, spec, conversion in parts if field is not None]
    odd = [field for field, more in fields if field not in known or more]
    allowed = ", ".join(f"{{{key}}}" for key in known)
    return [("run", f"{{{field}}} is nothing that varies; there are: {allowed}") for field in odd]


def _bad_drops(config: Config, given: Mapping[str, Sequence[Any]]) -> Problems:
    known = _known(config, given)
    problems = []
    for number, entry in enumerate(config.drop):
        if not entry:
            problems.append((f"drop.{number}", "is empty: it would drop every point"))
        for key, value in entry.items():
            if key not in known:
                problems.append((f"drop.{number}.{key}", f"is nothing that varies; there are: {', '.join(known)}"))
            elif value not in known[key]:
                values = ", ".join(map(str, known[key]))
                problems.append((f"drop.{number}.{key}", f"{value!r} is none of its values: {values}"))
    return problems


def _known(config: Config, given: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Key -> its values, those that the command line put others in the place of included."""
    known: dict[str, list[Any]] = {POINT: list(config.points)} if config.points else {}
    for key, values in [*config.zip.items(), *config.grid.items(), *given.items()]:
        known[key] = [*known.get(key, []), *values]
    return known


def _bad_names(config: Config, found: Sequence[Point]) -> Problems:
    if not found:
        return [("drop", "drops every point")]
    path = "points" if config.run is None else "run"
    names = [point.name for point in found]
    problems = [
        (path, f"'{name}' is no name of a run: at most 80 letters, digits, '.', '_' and '-'; give a shorter `run`")
        for name in names
        if not _NAME.fullmatch(name)
    ]
    for name in dict.fromkeys(names):
        same = [point for point in found if point.name == name]
        if len(same) > 1:
            differ = [key for key in same[0].values if any(p.values[key] != same[0].values[key] for p in same)]
            text = (
                f"{len(same)} points are called '{name}'; put {' and '.join(f'{{{key}}}' for key in differ)} into run"
            )
            problems.append((path, text))
    return problems
