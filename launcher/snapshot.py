"""The code that a run was started with, copied into its folder: tomorrow's edits do not change a queued run.

The copy is what the job executes, first on its path; the repo is not. `provenance` says where the copy comes from.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.cluster import REPO, NoAnswer, ask
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


@contextlib.contextmanager
def held() -> Iterator[Code]:
    """The working tree as it is now, kept until the block ends: runs that start hours later execute the same code."""
    with tempfile.TemporaryDirectory(prefix="code-") as name:
        take(Path(name) / "code")
        yield Code(Path(name) / "code", provenance())


def take(target: Path, *, source: Path = REPO) -> None:
    """Copy the packages and configs of the working tree (or `source`) to `target`, replacing what was there."""
    leave_out = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    with written_aside(target) as aside:
        for name in _COPIED:
            if (source / name).is_dir():
                shutil.copytree(source / name, aside / name, ignore=leave_out)


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
