"""`state.json` of a checkpoint, read without torch: a login node looks at checkpoints, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retrieval_train.rundir import read_json

SCHEMA = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: which file, and what to do."""


class Damaged(CheckpointError):
    """A checkpoint with a file that is missing, cut or has another sum."""


def peek(folder: Path) -> dict[str, Any]:
    """`state.json`, the other files not looked at. Raises CheckpointError for a folder that this code cannot read."""
    file = folder / "state.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} is no checkpoint: it has no state.json")
    try:
        state = read_json(file)
    except ValueError as error:
        raise Damaged(f"{file} is damaged ({error}); take another checkpoint") from error
    if not isinstance(state, dict) or not all(isinstance(state.get(key), int) for key in ("schema", "step")):
        raise Damaged(f"{file} is damaged: it says no schema and step; take another checkpoint")
    if state["schema"] > SCHEMA:
        raise CheckpointError(f"{folder} has schema {state['schema']}, this code reads up to {SCHEMA}; update the code")
    return state
