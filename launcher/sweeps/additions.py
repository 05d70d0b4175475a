"""What a sweep puts into its points' configs beside what varies: a fold's sets, halving, and its name for the tracker."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs.training.halving import Rungs
from retrieval_train.config import ConfigError

_MIXTURES = (("data", "mixture"), ("data", "unlabelled", "mixture"))
_SETS = (("data", "set"), ("evaluate", "set"))
"""Where a config names sets: as the keys of a mapping, and as a value."""
_NOT_WHAT = ("run", "tracking", "runs_root", "shards_root", "halving")
"""Sections that do not tell whether two sweeps are the same."""


def of_sets(values: Mapping[str, Any], sets: Mapping[str, str], *, where: str) -> list[str]:
    """`key=value`s that put each set's stand-in in its place. Raises ConfigError for a set that the config does not name."""
    found, names = [], []
    for path, value in _there(values, _MIXTURES):
        if isinstance(value, Mapping):
            names += list(value)
            changed = {sets.get(name, name): weight for name, weight in value.items()}
            found += [f"{path}=null", f"{path}={json.dumps(changed)}"]
    for path, name in _there(values, _SETS):
        names.append(str(name))
        found.append(f"{path}={json.dumps(sets.get(str(name), name))}")
    if odd := [name for name in sets if name not in names]:
        there = ", ".join(sorted(set(names))) or "none"
        raise ConfigError(
            where, [(f"folds.{name}", f"no such set is in the config; there are: {there}") for name in odd]
        )
    return found


def of_tracking(values: Mapping[str, Any], *, group: str) -> list[str]:
    """`key=value`s for W&B: points belong together, unless the config says with whom else."""
    wandb = (values.get("tracking") or {}).get("wandb") or {}
    ours = {"group": wandb.get("group") or group, "tags": wandb.get("tags") or ["sweep"]}
    return [f"tracking.wandb={json.dumps(ours)}"]


def of_halving(rungs: Rungs, folder: Path) -> list[str]:
    """`key=value`s by which a point compares itself with the others."""
    return [f"halving={json.dumps(rungs.model_dump() | {'folder': str(folder)})}"]


def meeting_place(values: Mapping[str, Any], varied: Collection[str], *, name: str) -> Path:
    """The folder in which the points of a sweep tell each other how they stand. A base that was changed has another one:
    what its points reach is not to be compared. `values` are those of any point."""
    text = json.dumps(_without({*varied, *_NOT_WHAT}, values), sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Path(values.get("runs_root", "runs")) / ".sweeps" / f"{name}-{digest}"


def _without(keys: Collection[str], values: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """Less the dotted keys and what they lead to."""
    return {
        key: _without(keys, value, f"{under}{key}.") if isinstance(value, Mapping) else value
        for key, value in values.items()
        if f"{under}{key}" not in keys
    }


def _there(values: Mapping[str, Any], paths: tuple[tuple[str, ...], ...]) -> Iterator[tuple[str, Any]]:
    for path in paths:
        inner: Any = values
        for key in path:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if inner is not None:
            yield ".".join(path), inner
