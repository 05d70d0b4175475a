"""Runs by name: a run folder, the name of one below the runs' root, or the sweep or pipeline that many belong to."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.ticket import SlurmTicket
from retrieval_train.rundir import RunDir, read_json


def all_runs(runs_root: Path) -> list[RunDir]:
    """Every run folder there; not the links to them."""
    if not runs_root.is_dir():
        return []
    folders = (RunDir(path) for path in runs_root.iterdir() if not path.name.startswith(".") and not path.is_symlink())
    return [run for run in folders if is_run(run)]


def is_run(run: RunDir) -> bool:
    try:
        return run.state is not None
    except (AssertionError, NotADirectoryError, UnicodeDecodeError):  # a folder with another kind of `state` in it
        return False


def find(name: str, runs_root: Path) -> RunDir:
    """One run. Raises ValueError that names a similar one."""
    run = _one(name, runs_root)
    if run is not None:
        return run
    known = [run.path.name for run in all_runs(runs_root)]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"{name} is no run; {hint}`runs --runs-root {runs_root}` lists {len(known)}")


def find_many(names: Sequence[str], runs_root: Path) -> list[tuple[RunDir, str | None]]:
    """Each run once, with the sweep or pipeline by whose name it was asked for (None: by its own). Raises ValueError."""
    found: dict[Path, tuple[RunDir, str | None]] = {}
    for name in names:
        run = _one(name, runs_root)
        if run is not None:
            found[run.path] = (run, None)
            continue
        members = [run for run in all_runs(runs_root) if group_of(plan_of(run)) == name]
        for run in members or [find(name, runs_root)]:
            found.setdefault(run.path.resolve(), (RunDir(run.path.resolve()), name))
    return list(found.values())


def waiting(group: str, runs_root: Path) -> list[SlurmTicket]:
    """The jobs of those stages of a sweep or pipeline that have no run folder yet: they wait for others (deferred.py)."""
    folders = (runs_root / ".stages" / group).glob("*/ticket.json")
    return [SlurmTicket(**read_json(file)) for file in sorted(folders) if not (file.parent / "run").is_symlink()]


def plan_of(run: RunDir) -> dict[str, Any]:
    """What plan.json says; nothing where there is none, or half of one."""
    try:
        plan = read_json(run.plan)
    except (OSError, json.JSONDecodeError):
        return {}
    return plan if isinstance(plan, dict) else {}


def group_of(plan: dict[str, Any]) -> str | None:
    """The sweep or pipeline that the run is a part of."""
    name = plan.get("sweep") or plan.get("pipeline")
    return str(name) if name else None


def _one(name: str, runs_root: Path) -> RunDir | None:
    for path in (Path(name), runs_root / name):
        run = RunDir(path.resolve())
        if run.path.is_dir() and is_run(run):
            return run
    return None
