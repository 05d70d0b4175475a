"""The points of a sweep as checked configs: its file and its base are read, every mistake is told, nothing is started."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs import job
from jobs.job import JobConfig
from jobs.training.halving import Rungs
from launcher import yaml_reader
from launcher.sweeps import additions, sweep
from launcher.sweeps.search import Search, Study
from launcher.sweeps.sweep import Point
from launcher.sweeps.sweep_file import Config as SweepFile
from retrieval_train import config as configs
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir

_PLACES = ("runs_root", "shards_root", "run.device", "run.threads")
"""Said on the command line, they hold for the evaluations, too."""
_THEN = "then."


@dataclass(frozen=True)
class Sweep:
    """A sweep with the command line's part in it."""

    where: str
    points: list[Point]
    base: Path
    then: Path | None = None
    overrides: list[str] = field(default_factory=list)
    """`key=value`s for every point."""
    then_overrides: list[str] = field(default_factory=list)
    """`key=value`s for every evaluation."""
    said: list[str] = field(default_factory=list)
    """The command line's `key=value`s as they were given."""
    name: str = "sweep"
    """What its points have in common, for the tracker."""
    drawn: frozenset[str] = frozenset()
    """Keys whose values are drawn from a range."""
    halving: Rungs | None = None
    search: Search | None = None
    """With it, `points` are those by which it is checked."""
    run: str | None = None
    """As the file has it."""
    _read: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Name of a point -> its config's values."""

    def trial(self, number: int, values: Mapping[str, Any]) -> Point:
        return sweep.trial_point(self.run, self.name, number, values)

    @cached_property
    def study(self) -> Study:
        """The search's trials. A base that was changed begins another study."""
        assert self.search is not None, "only where the sweep has a `search`"
        values = self._first_values
        about = {**values, "search": self.search.model_dump(mode="json", exclude={"count"})}
        digest = additions.meeting_place(about, self.search.draws, name=self.name).name[-8:]
        return Study(Path.cwd() / values.get("runs_root", "runs") / ".stages" / self.name, digest, self.search)

    def config(self, point: Point) -> JobConfig:
        """The point's config, checked. Raises ConfigError."""
        return job.check(self._values(point), where=f"{self.where}, point {point.name}")

    def _values(self, point: Point) -> dict[str, Any]:
        """The point's config as it is written; read once, which takes longer than all else that is done with it."""
        if point.name not in self._read:
            overrides = [*self._added, *point.assignments(), *self.overrides]
            self._read[point.name] = configs.read(self.base, overrides=overrides)
        return self._read[point.name]

    @cached_property
    def _first_values(self) -> dict[str, Any]:
        """The first point's, without what comes with being in a sweep."""
        return configs.read(self.base, overrides=[*self.points[0].assignments(), *self.overrides])

    @cached_property
    def _added(self) -> list[str]:
        """`key=value`s that come with being in a sweep, below what the points and the command line say."""
        values = self._first_values
        known = job.find(values.get("job"), where=str(self.base)).Config.model_fields
        found = additions.of_tracking(values, group=self.name) if "tracking" in known else []
        if self.halving is None:
            return found
        if "halving" not in known:
            raise ConfigError(self.where, [("halving", f"is for job train; {self.base} is of job {values['job']}")])
        varied = {key for point in self.points for key in point.overrides}
        folder = additions.meeting_place(values, varied, name=self.name)
        return [*found, *additions.of_halving(self.halving, folder)]

    def evaluation(self, point: Point, run: RunDir) -> JobConfig:
        """The config that evaluates the export in the point's run folder. Raises ConfigError where there is none."""
        assert self.then is not None, "only where the sweep has `then`"
        values = self._then_values(point.name, run.export)
        return job.check(values, where=f"{self.where}, evaluation of {point.name}")

    def _then_values(self, name: str, export: Path) -> dict[str, Any]:
        assert self.then is not None
        return configs.read(self.then, overrides=self.then_assignments(name, export))

    def then_assignments(self, name: str, export: Path) -> list[str]:
        """`key=value`s that make `then` the evaluation of point `name`."""
        ours = [f"run.name={name}-evaluation", f"model={json.dumps(str(export))}"]
        point = next(point for point in self.points if point.name == name)
        return [*additions.of_fold(self._values(point), self._then_as_given), *self.then_overrides, *ours]

    @cached_property
    def _then_as_given(self) -> dict[str, Any]:
        """What all evaluations have in common."""
        return configs.read(self.then, overrides=self.then_overrides) if self.then is not None else {}

    def then_problems(self) -> list[tuple[str, str]]:
        """What is wrong with the evaluations, as far as it can be told before there is an export."""
        if self.then is None:
            return []
        longest = max((point.name for point in self.points), key=len)
        try:
            values = self._then_values(longest, Path("export"))
            kind = job.find(values.get("job"), where=str(self.then)).Config
            if "model" not in kind.model_fields:
                return [("then", f"{self.then} is of job {values['job']}, which takes no model; give one of evaluate")]
            found = configs.check(kind, values, where=str(self.then)).problems()
        except ConfigError as error:
            return [(f"then.{path}", text) for path, text in error.problems]
        return [(f"then.{path}", text) for path, text in found if path != "model"]


def find(file: str, overrides: Sequence[str], *, is_named: bool) -> Sweep | None:
    """The sweep that the command line means, or None for a single run. Raises ConfigError.

    A sweep is a file given by `--sweep` (`is_named`) or that says `job: sweep` or one of its axes; or any config with
    several values for one key. `key=a,b` is one more axis; `key=value` holds for all points, or takes the place of
    the key's values in `grid`. `then.key=value` is the evaluations'.
    """
    path = Path(file)
    mine = [item for item in overrides if not item.startswith(_THEN)]
    theirs = [item.removeprefix(_THEN) for item in overrides if item.startswith(_THEN)]
    if is_named or _says_sweep(path):
        values, prefix = _load(path), re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem)
    elif any(len(several(item)[1]) > 1 for item in overrides):
        values, prefix = {"base": path.name}, ""
    else:
        return None
    checked = configs.check(SweepFile, values, where=file)
    given, rest = _given(checked, mine)
    if not prefix:
        plain = configs.read(path, overrides=rest).get("run")
        prefix = str(plain.get("name", path.stem)) if isinstance(plain, Mapping) else path.stem
    found = sweep.points(values, where=file, prefix=prefix, given=given)
    draws = {key: draw for axis in (checked.random, checked.search) if axis for key, draw in axis.draws.items()}
    if theirs and checked.then is None:
        raise ConfigError("command line", [(_THEN + theirs[0], "the sweep has no `then`: there are no evaluations")])
    return Sweep(
        where=file,
        points=found,
        base=_beside(path, checked.base),
        then=_beside(path, checked.then) if checked.then else None,
        overrides=rest,
        then_overrides=[item for item in rest if item.partition("=")[0] in _PLACES] + theirs,
        said=list(overrides),
        name=prefix,
        drawn=frozenset(key for key, draw in draws.items() if draw.is_number),
        halving=checked.halving,
        search=checked.search,
        run=checked.run,
    )


def checked(made: Sweep) -> list[tuple[Point, JobConfig]]:
    """The config of every point. Raises one ConfigError with every problem of any of them, each told once."""
    found: list[tuple[Point, JobConfig]] = []
    told: dict[tuple[str, str], list[str]] = {(path, text): [] for path, text in made.then_problems()}
    for point in made.points:
        try:
            config = made.config(point)
        except ConfigError as error:
            for problem in error.problems:
                told.setdefault(problem, []).append(point.name)
            continue
        found.append((point, config))
    if told:
        raise ConfigError(made.where, [(path, text + _whose(names, made)) for (path, text), names in told.items()])
    return found


def _says_sweep(path: Path) -> bool:
    """Told from the text: no other config has such keys. What is wrong with a file is told by who reads it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return (
        re.search(
            r"^(job\s*:\s*['\"]?sweep\b|(grid|zip|points|random|search|folds|seeds)\s*:)", text, flags=re.MULTILINE
        )
        is not None
    )


def _whose(names: Sequence[str], made: Sweep) -> str:
    if not names or len(names) == len(made.points):
        return ""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f" ({'points' if len(names) > 1 else 'point'} {', '.join(names[:2])}{more})"


def _beside(file: Path, named: Path) -> Path:
    """As `base:` of any config: from the file's folder; from where one stands if there is nothing."""
    beside = Path(os.path.normpath(file.parent / named))
    return named if not beside.exists() and named.exists() else beside


# --- the command line's part


def several(item: str) -> tuple[str, list[str]]:
    """`key=a,b` as the key and ['a', 'b']: commas in brackets, braces or a quoted text do not divide."""
    key, _, text = item.partition("=")
    parts, depth, quote, begun = [], 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and not text[begun:place].strip():  # it's: no quote begins within a word
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        elif letter == "," and depth <= 0:
            parts.append(text[begun:place])
            begun = place + 1
    return key, [*parts, text[begun:]]


def _given(file: SweepFile, overrides: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """The axes of the command line, and the overrides that hold for all points."""
    keys, grid = file.varied(), file.crossed({})
    given: dict[str, list[Any]] = {}
    rest, problems = [], []
    for item in overrides:
        key, texts = several(item)
        whole = [other for other in sorted(keys) if other == key or other.startswith(f"{key}.")]
        if key in ("run", "run.name"):
            problems.append((item, "names the points: say it by `run` in the sweep's file"))
        elif len(texts) > 1 or key in grid:
            if key in keys and key not in grid:
                problems.append((item, f"{keys[key][0]} of the sweep's file gives its values"))
            elif any(not text.strip() for text in texts):
                problems.append((item, "has an empty value; quote a text with commas: key='\"a, b\"'"))
            else:
                given[key] = [yaml_reader.value(text, item) for text in texts]
        elif whole:
            problems.append((item, f"would undo what varies: {', '.join(whole)}"))
        else:
            rest.append(item)
    if problems:
        raise ConfigError("command line", problems)
    return given, rest


def _load(path: Path) -> dict[str, Any]:
    try:
        values = yaml_reader.read_mapping(path)
    except ConfigError as error:
        if not path.is_file() or b"\nrun: {" not in b"\n" + path.read_bytes():
            raise
        hint = [(key, f"{text}; quote it: run: '{{...}}'") for key, text in error.problems]
        raise ConfigError(str(path), hint) from error
    if values.get("job", "sweep") != "sweep":
        problem = (
            f"{values['job']!r}: this is no sweep; a sweep's file has base and what varies, as grid: {{seed: [0, 1]}}"
        )
        raise ConfigError(str(path), [("job", problem)])
    return values
