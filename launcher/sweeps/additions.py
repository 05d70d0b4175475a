"""What a sweep puts into its points' configs beside what varies: halving, its name for the tracker, and a point's fold into
its evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jobs.training.halving import Rungs

_NOT_WHAT = ("run", "tracking", "runs_root", "shards_root", "halving")
"""Sections that do not tell whether two sweeps are the same."""


def of_fold(trained: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """`key=value`s by which an evaluation searches in the fold that its point held out, where it searches in a set that
    was trained on; `trained` and `then` are both configs' values."""
    data, searched = (values.get("data") for values in (trained, then))
    if not isinstance(data, Mapping) or not isinstance(searched, Mapping) or data.get("fold") is None:
        return []
    is_trained_on = searched.get("set") in (data.get("mixture") or ())
    return [f"data.fold={json.dumps(data['fold'])}"] if is_trained_on else []


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
