"""The code that a run was started with, copied beside the runs: tomorrow's edits do not change a queued run.

The copy is what the job executes, first on its path; the repo is not. Runs of the same code share it. `provenance` says
where it comes from.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import os
import platform
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.clusters.cluster import REPO, NoAnswer, ask
from retrieval_train.rundir import written_aside

_COPIED = ("shards", "retrieval_train", "jobs", "launcher", "configs")
_TOLD = (
    *("torch", "deepspeed", "timm", "open_clip_torch", "peft", "webdataset", "faiss-cpu", "faiss-gpu", "wandb"),
    *("submitit", "pydantic", "omegaconf", "numpy", "retrieval-train"),
)


@dataclass(frozen=True)
class Code:
    """Packages and configs as they were at one moment, and where they come from."""

    folder: Path
    provenance: dict[str, Any]


def keep(runs_root: Path) -> Code:
    """The working tree as it is now, in `<runs_root>/.code/<digest>`: copied unless it lies there already."""
    files = [file for name in _COPIED for file in sorted((REPO / name).rglob("*")) if _is_copied(file)]
    held = {file.relative_to(REPO): file.read_bytes() for file in files}  # so that what is written is what was hashed
    digest = hashlib.sha256()
    for inner, content in held.items():
        digest.update(f"{inner}\0{len(content)}\0".encode() + content)
    folder = runs_root / ".code" / digest.hexdigest()[:16]
    if not folder.is_dir():
        with written_aside(folder) as aside:
            for inner, content in held.items():
                (aside / inner).parent.mkdir(parents=True, exist_ok=True)
                (aside / inner).write_bytes(content)
    return Code(folder, provenance())


def _is_copied(file: Path) -> bool:
    inner = file.relative_to(REPO).parts
    is_source = not any(part.startswith(".") or part == "__pycache__" for part in inner) and file.suffix != ".pyc"
    return is_source and file.is_file()


def use(code: Code, run_code: Path) -> None:
    """Make `run_code`, a run's `code`, lead to it."""
    aside = run_code.with_name(f".{run_code.name}.{os.getpid()}")
    aside.symlink_to(os.path.relpath(code.folder, run_code.parent))
    if run_code.is_dir() and not run_code.is_symlink():  # a copy, as runs of former versions have
        shutil.rmtree(run_code)
    aside.replace(run_code)


def provenance() -> dict[str, Any]:
    """Commit, versions, machine and time, for plan.json. Nothing of the environment: it may hold secrets."""
    return {
        "git": _git(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: version for name in _TOLD if (version := _version(name))},
        "host": socket.gethostname(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _git() -> dict[str, Any] | None:
    """Commit and whether the working tree differs from it; None where the code is in no git repository."""
    here = ["git", "-C", str(REPO)]
    with contextlib.suppress(NoAnswer):
        top, commit = ask([*here, "rev-parse", "--show-toplevel", "HEAD"]).splitlines()
        if Path(top) != REPO:  # an installed copy that happens to lie inside somebody's repository
            return None
        changed = ask([*here, "status", "--porcelain", "--", *(name for name in _COPIED if (REPO / name).is_dir())])
        return {"commit": commit, "dirty": bool(changed.strip())}
    return None


def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None
