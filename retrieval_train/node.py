"""What a rank finds on its machine before anything begins: its GPU, room on disks, versions, clock."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

FREE = 0.9  # of a GPU's memory; less means that somebody else's process is on it
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

    @classmethod
    def of(cls, told: dict[str, Any]) -> Facts:
        return cls(**told | {"gpu": Gpu(**told["gpu"]) if told["gpu"] else None})


def look(
    node: str, *, began: float, device: Literal["auto", "cpu", "cuda"], folders: Mapping[str, Path], is_first: bool
) -> Facts:
    """Of this rank's machine. `folders` by what they are for; the first rank of a node reads all our code for its digest."""
    gpu = None if device == "cpu" else _gpu()
    code = {"our code": code_digest(Path(__file__).resolve().parents[1])} if is_first else {}
    disks = {name: (str(path), _free_gb(path)) for name, path in folders.items()}
    return Facts(node, began, gpu, disks, {**_versions(is_cpu=gpu is None), **code})


def _gpu() -> Gpu | None:
    import torch

    if not torch.cuda.device_count():
        return None
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    about = torch.cuda.get_device_properties(index)
    until = time.monotonic() + _RELEASED_S
    free, total = torch.cuda.mem_get_info(index)
    while free < FREE * total and time.monotonic() < until:
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
