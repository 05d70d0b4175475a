"""A pipeline is stages, each a run, and which of them need others. Pure but for reading its file (`pipeline_file.py`)."""

from __future__ import annotations

import difflib
import graphlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher import yaml_reader
from launcher.pipelines.pipeline_file import Config, Resources
from launcher.sweeps.points import several
from retrieval_train import config as configs
from retrieval_train.config import ConfigError

Problems = list[tuple[str, str]]

_PLACES = ("runs_root", "shards_root", "run.device", "run.threads")
"""Said without a stage's name, they hold for all stages."""
_TAKEN = ("run", "runs_root", "shards_root", "name")
_NAMED = re.compile(r"(?<!\$)\{([A-Za-z0-9][A-Za-z0-9._-]*)\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_STAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


@dataclass(frozen=True)
class Step:
    """A stage with the command line's part in it."""

    name: str
    file: Path
    overrides: tuple[str, ...]
    """`key=value`s; {stage} in them stands for that stage's run folder."""
    needs: tuple[str, ...]
    """The stages that have to be done before."""
    unnamed: frozenset[str]
    """Those of them that no value names: what they leave behind may be anything."""
    resources: Resources


@dataclass(frozen=True)
class Pipeline:
    """Its stages in an order in which they can run."""

    where: str
    name: str
    steps: tuple[Step, ...]
    said: tuple[str, ...] = ()
    """The command line's `key=value`s as they were given."""


def find(file: str, overrides: Sequence[str]) -> Pipeline | None:
    """The pipeline that the file is; None for any other config. Raises ConfigError with every mistake."""
    path = Path(file)
    if not _says_pipeline(path):
        return None
    return make(yaml_reader.read_mapping(path), overrides, file=path)


def make(values: Mapping[str, Any], overrides: Sequence[str], *, file: Path) -> Pipeline:
    """The pipeline of a file's values. Raises ConfigError with every mistake.

    `<stage>.key=value` is for a stage, `<stage>.resources.nodes=2` for where it runs; places hold for all stages.
    """
    raw = values.get("stages")
    given = _given(overrides, [str(name) for name in raw] if isinstance(raw, Mapping) else [])
    checked = configs.check(Config, _with_resources(values, given.resources), where=str(file))
    stages = checked.stages
    assigned = {name: (*_assignments(one.set), *given.places, *given.of[name]) for name, one in stages.items()}
    named = {name: names_in(list(items)) for name, items in assigned.items()}
    needs = {name: tuple(dict.fromkeys((*one.needs, *named[name]))) for name, one in stages.items()}
    problems = _bad_names(list(stages)) + _unknown_needs(stages, named)
    order = _ordered(needs, problems)
    if problems:
        raise ConfigError(str(file), problems)
    steps = tuple(
        Step(
            name=name,
            file=_beside(file, stages[name].config),
            overrides=assigned[name],
            needs=needs[name],
            unnamed=frozenset(needs[name]) - set(named[name]),
            resources=stages[name].resources,
        )
        for name in order
    )
    name = given.name or checked.name or re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem)
    return Pipeline(str(file), name, steps, said=tuple(overrides))


def names_in(value: Any) -> list[str]:
    """The stages that a value of a config names, as {stage}."""
    if isinstance(value, Mapping):
        return [name for inner in value.values() for name in names_in(inner)]
    if isinstance(value, (list, tuple)):
        return [name for inner in value for name in names_in(inner)]
    return _NAMED.findall(value) if isinstance(value, str) else []


def fill(value: Any, folders: Mapping[str, Path]) -> Any:
    """The same value with the folders of the stages' runs in it."""
    if isinstance(value, Mapping):
        return {key: fill(inner, folders) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [fill(inner, folders) for inner in value]
    if not isinstance(value, str):
        return value
    return _NAMED.sub(lambda found: str(folders.get(found[1], found[0])), value)


def _says_pipeline(path: Path) -> bool:
    """Told from the text: what is wrong with a file is told by who reads it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return re.search(r"^job\s*:\s*['\"]?pipeline\b", text, flags=re.MULTILINE) is not None


# --- the command line's part


@dataclass
class _Given:
    of: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Stage -> `key=value`s."""
    places: list[str] = field(default_factory=list)
    resources: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    name: str = ""


def _given(overrides: Sequence[str], stages: Sequence[str]) -> _Given:
    """What each `key=value` is for. Raises ConfigError."""
    given, problems = _Given(), []
    for item in overrides:
        key, equals, text = item.partition("=")
        stage, _, inner = key.partition(".")
        if not equals or not key:
            problems.append((item, "not of the form key=value"))
        elif len(several(item)[1]) > 1:
            problems.append((item, "gives several values, and a pipeline is no sweep; submit it once for each"))
        elif key in _PLACES:
            given.places.append(item)
        elif key == "name":
            given.name = text
            if not _NAME.fullmatch(text):
                problems.append((item, "is no name: at most 80 letters, digits, '.', '_' and '-'"))
        elif stage not in stages or not inner:
            instead = f"as {[*stages, 'train'][0]}.{key}=..."
            problems.append((item, f"begins with no stage{_meant(stage, stages)}; {instead}"))
        elif inner.startswith("resources."):
            given.resources[stage][inner.removeprefix("resources.")] = yaml_reader.value(text, item)
        else:  # {train}/export begins a mapping for YAML
            quoted = json.dumps(text) if names_in(text) and text[:1] not in ("'", '"', "[") else text
            given.of[stage].append(f"{inner}={quoted}")
    if problems:
        raise ConfigError("command line", problems)
    return given


def _with_resources(values: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The file's values with the command line's resources in them; what is no mapping is told by who checks it."""
    stages = values.get("stages")
    if not isinstance(stages, Mapping):
        return dict(values)
    changed = dict(stages)
    for name, more in given.items():
        own = stages[name].get("resources", {}) if isinstance(stages[name], Mapping) else None
        if isinstance(own, Mapping):
            changed[name] = {**stages[name], "resources": {**own, **more}}
    return {**values, "stages": changed}


def _assignments(values: Mapping[str, Any]) -> list[str]:
    """`key=value`s, sections before what lies in them; one is emptied first, so that a mapping replaces it."""
    found = []
    for key, value in sorted(values.items(), key=lambda item: item[0].count(".")):
        found += [f"{key}=null"] if isinstance(value, Mapping) else []
        found.append(f"{key}={json.dumps(value)}")
    return found


def _beside(file: Path, named: Path) -> Path:
    """As `base:` of any config: from the file's folder; from where one stands if there is nothing."""
    beside = Path(os.path.normpath(file.parent / named))
    return named if not beside.exists() and named.exists() else beside


# --- what is wrong


def _bad_names(names: Sequence[str]) -> Problems:
    odd = [
        (f"stages.{name}", "is no name of a stage: at most 40 letters, digits, '_' and '-'")
        for name in names
        if not _STAGE.fullmatch(name)
    ]
    taken = [
        (f"stages.{name}", f"{name}=... on the command line means something else; another name")
        for name in names
        if name in _TAKEN
    ]
    return odd + taken + ([] if names else [("stages", "there is none")])


def _unknown_needs(stages: Mapping[str, Any], named: Mapping[str, Sequence[str]]) -> Problems:
    told = [
        (f"stages.{name}.needs", f"'{need}' is no stage{_meant(need, list(stages))}")
        for name, one in stages.items()
        for need in one.needs
        if need not in stages
    ]
    return told + [
        (f"stages.{name}.set", f"{{{need}}} names no stage{_meant(need, list(stages))}")
        for name, needs in named.items()
        for need in dict.fromkeys(needs)
        if need not in stages
    ]


def _meant(word: str, stages: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(word, stages, n=1)
    return (f"; did you mean {nearest[0]}?" if nearest else ";") + f" there are: {', '.join(stages)}"


def _ordered(needs: Mapping[str, Sequence[str]], problems: Problems) -> list[str]:
    """The file's order as far as what is needed comes first."""
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        problems.append(("stages", f"they wait for each other: {' needs '.join(reversed(error.args[1]))}"))
        return []
    order: list[str] = []
    left = [name for name in needs if all(need in needs for need in needs[name])]
    while ready := next((name for name in left if set(needs[name]) <= set(order)), None):
        order.append(ready)
        left.remove(ready)
    return order
