"""A sweep is a config and what varies in it. Pure: a mapping in, a list of points (a name and overrides) out.

Each axis of the file (`sweep_file.py`) is a list of choices, and a point is one choice of each. Whatever varies more than
these can say is one more function from the file to choices.
"""

from __future__ import annotations

import itertools
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.sweeps.sweep_file import FOLD, NUMBERS, POINT, RANDOM, SEED, TRIAL, Config, Given, Problems, problems
from retrieval_train import config as configs
from retrieval_train.config import ConfigError

REPLICAS = (FOLD, SEED)
"""What only tells repetitions of one setting apart."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    """Its `run.name`."""
    values: Mapping[str, Any]
    """What tells it from the others: key (or `point`, `random`) -> value."""
    overrides: Mapping[str, Any]
    """Dotted key -> value, sections before what lies in them; `run.name` is among them."""

    def assignments(self) -> list[str]:
        """`key=value`s for `config.read`. A section is emptied first, so that a mapping replaces it."""
        found = []
        for key, value in self.overrides.items():
            found += [f"{key}=null"] if isinstance(value, Mapping) else []
            found.append(f"{key}={json.dumps(value)}")
        return found

    @property
    def setting(self) -> str:
        """What it has in common with the other seeds and folds."""
        return " ".join(
            in_a_name(value) if key == POINT else f"{key}={in_a_name(value)}"
            for key, value in self.values.items()
            if key not in (*REPLICAS, *NUMBERS)
        )


def points(values: Mapping[str, Any], *, where: str, prefix: str, given: Given | None = None) -> list[Point]:
    """The points in order, the last key of `grid` and then the seeds fastest. Raises ConfigError with every mistake.

    `prefix` begins the names where the file has no `run`. `given` are axes of the command line: in the place of those
    of `grid` with the same key, or more of them. Of a search they are those by which it can be checked.
    """
    config, given = configs.check(Config, values, where=where), given or {}
    if found := problems(config, given):
        raise ConfigError(where, found)
    made = []
    for chosen in itertools.product(*_axes(config, given)):
        point = _point(config.run, prefix, chosen)
        if not any(all(point.values[key] == value for key, value in entry.items()) for entry in config.drop):
            made.append(point)
    if found := _bad_names(config, made):
        raise ConfigError(where, found)
    return made


@dataclass(frozen=True)
class _Choice:
    """One of an axis."""

    values: Mapping[str, Any]
    """What a point is told by."""
    overrides: Mapping[str, Any]


def _axes(config: Config, given: Given) -> Iterator[list[_Choice]]:
    if config.points:
        yield [_Choice({POINT: name}, overrides) for name, overrides in config.points.items()]
    if config.random:
        yield [_Choice({RANDOM: number, **row}, row) for number, row in config.random.rows()]
    if config.search:
        yield [_trial(number, row) for number, row in config.search.corners()]
    if config.zip:
        rows = [dict(zip(config.zip, row, strict=True)) for row in zip(*config.zip.values(), strict=True)]
        yield [_Choice(row, row) for row in rows]
    crossed = config.crossed(given)
    last = {key: crossed.pop(key) for key in config.replicas()}
    for key, values in (*crossed.items(), *last.items()):
        yield [_Choice({key: value}, {key: value}) for value in values]


def trial_point(run: str | None, prefix: str, number: int, values: Mapping[str, Any]) -> Point:
    """The point of a trial of a search; `run` is the file's."""
    return _point(run, prefix, [_trial(number, values)])


def _trial(number: int, values: Mapping[str, Any]) -> _Choice:
    return _Choice({TRIAL: number, **values}, values)


# --- names


def _point(pattern: str | None, prefix: str, chosen: Sequence[_Choice]) -> Point:
    values = {key: value for choice in chosen for key, value in choice.values.items()}
    overrides = {key: value for choice in chosen for key, value in choice.overrides.items()}
    if pattern is None:
        told = {key: value for key, value in values.items() if key not in NUMBERS}
        parts = [in_a_name(v) if key == POINT else key.rpartition(".")[2] + in_a_name(v) for key, v in told.items()]
        name = "-".join([prefix, *parts])
    else:
        name = "".join(
            text + (in_a_name(values[key]) if key is not None else "")
            for text, key, _, _ in string.Formatter().parse(pattern)
        )
    by_depth = dict(sorted(overrides.items(), key=lambda item: item[0].count(".")))
    return Point(name, values, {**by_depth, "run.name": name})


def in_a_name(value: Any) -> str:
    """A value as part of a folder's name."""
    if isinstance(value, Mapping):
        return in_a_name(value.get("name", "section"))
    if isinstance(value, (list, tuple)):
        return "-".join(map(in_a_name, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(value))


def _bad_names(config: Config, found: Sequence[Point]) -> Problems:
    if not found:
        return [("drop", "drops every point")]
    path = "points" if config.run is None else "run"
    names = [point.name for point in found]
    told: Problems = [
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
            told.append((path, text))
    return told
