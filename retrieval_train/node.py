"""What a rank finds on its machine before anything begins: its GPU, room on disks, versions, clock."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from retrieval_train.meeting import first_line

T = TypeVar("T")

FREE, BUSY = 0.9, 0.5  # of a GPU's memory: below the first another process is on it, below the second it is in use
_RELEASED_S = 10.0  # what the start before this one held on the GPU is gone by then
_CODE = ("retrieval_train", "jobs", "launcher", "shards")
_PACKAGES = ("torch", "deepspeed", "timm", "peft", "pydantic", "numpy")


@dataclass(frozen=True)
class Gpu:
    """The one that a rank would take."""

    uuid: str
    name: str
    free_gib: float
    total_gib: float


@dataclass(frozen=True)
class Facts:
    """What one rank finds on its machine."""

    node: str
    began: float
    """Its clock at the moment at which all ranks had met."""
    gpu: Gpu | None = None
    disks: dict[str, tuple[str, float]] = field(default_factory=dict)
    """What it is for -> (folder, free GB)."""
    versions: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    """What could not be looked at -> the error that it gave."""

    @classmethod
    def of(cls, told: dict[str, Any]) -> Facts:
        return cls(**told | {"gpu": Gpu(**told["gpu"]) if told["gpu"] else None})


def look(
    node: str, *, began: float, device: Literal["auto", "cpu", "cuda"], folders: Mapping[str, Path], is_first: bool
) -> Facts:
    """Of this rank's machine. `folders` by what they are for; the first rank of a node reads all our code for its digest.

    What raises RuntimeError (CUDA) or OSError (a file system) is one of the rank's problems, not the end of it.
    """
    problems: dict[str, str] = {}

    def found(what: str, probe: Callable[[], T]) -> T | None:
        try:
            return probe()
        except (RuntimeError, OSError) as error:
            problems[what] = f"{type(error).__name__}: {first_line(error)}"
            return None

    gpu = None if device == "cpu" else found("GPU", _gpu)
    code = found("our code", lambda: code_digest(Path(__file__).resolve().parents[1])) if is_first else None
    free_gb = {name: found(name, lambda path=path: _free_gb(path)) for name, path in folders.items()}  # type: ignore[misc]
    disks = {name: (str(folders[name]), free) for name, free in free_gb.items() if free is not None}
    versions = found("versions", lambda: _versions(is_cpu=gpu is None)) or {}
    return Facts(node, began, gpu, disks, versions | ({"our code": code} if code else {}), problems)


def _gpu() -> Gpu | None:
    import torch

    if not torch.cuda.device_count():
        return None
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    about = torch.cuda.get_device_properties(index)
    until = time.monotonic() + _RELEASED_S
    free, total = torch.cuda.mem_get_info(index)
    while free < BUSY * total and time.monotonic() < until:
        time.sleep(0.5)
        free, total = torch.cuda.mem_get_info(index)
    uuid = str(getattr(about, "uuid", index))
    return Gpu(uuid, about.name, round(free / 2**30, 1), round(total / 2**30, 1))


def _free_gb(path: Path) -> float:
    """Of the disk that the folder is, or will be, on."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return round(shutil.disk_usage(there).free / 1e9, 3)


def _versions(*, is_cpu: bool) -> dict[str, str]:
    import torch

    versions = {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    versions["CUDA runtime"] = str(torch.version.cuda)
    if not is_cpu:
        versions["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        driver = Path("/proc/driver/nvidia/version")
        found = re.search(r"Kernel Module.*?  ([\d.]+)", driver.read_text()) if driver.is_file() else None
        versions["CUDA driver"] = found[1] if found else "unknown"
    return versions


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def code_digest(root: Path) -> str:
    """Of all our source files under `root`."""
    digest = hashlib.sha256()
    for file in sorted(file for name in _CODE for file in (root / name).rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def expanded(names: str) -> list[str]:
    """SLURM's short form of a list of nodes: `a[01-03,7]-x,b` are a01-x, a02-x, a03-x, a7-x and b."""
    found: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", names):
        done = [""]
        for text, inside in re.findall(r"([^\[]+)|\[([^\]]*)\]", part):
            choices = [text] if text else [number for span in inside.split(",") for number in _span(span)]
            done = [before + choice for before in done for choice in choices]
        found += done
    return found


def _span(span: str) -> list[str]:
    first, _, last = span.partition("-")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]
