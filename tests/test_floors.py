"""Imports only go down, each library has one door, and a login node imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("shards", "retrieval_train", "jobs", "launcher")
FLOORS = [  # longest prefix wins
    ("launcher", 4),
    ("jobs", 3),
    ("retrieval_train.engine", 2),
    ("retrieval_train.evaluation", 2),
    ("retrieval_train.learner", 1.5),
    ("retrieval_train.data", 1),
    ("retrieval_train.models", 1),
    ("retrieval_train.heads", 1),
    ("retrieval_train.losses", 1),
    ("retrieval_train", 0),
    ("shards", 0),
]
SIBLINGS = {  # on one floor, and never each other
    1: ("retrieval_train.data", "retrieval_train.models", "retrieval_train.heads", "retrieval_train.losses"),
    2: ("retrieval_train.engine", "retrieval_train.evaluation"),
}
# what a batch is, and how an image is seen, is what data and models agree on
SHARED = ("retrieval_train.data.batch", "retrieval_train.data.view")
# bytes of URLs have one home; checkpoints at a URL are no shard sets, and need only those
BYTES = ("shards.files", "shards.remote")
MIRROR = "retrieval_train.engine.mirror"
# the job that is the command line of shards
COMMANDS = ("jobs.shards", ("shards.cli", "shards.errors"))
DOORS = {
    "deepspeed": ("retrieval_train/engine/sharded.py",),
    "torch.distributed": ("retrieval_train/world.py",),
    "webdataset": ("retrieval_train/data/", "jobs/peers/"),
    "faiss": ("retrieval_train/evaluation/",),
    "peft": ("retrieval_train/models/lora.py",),
    "timm": ("retrieval_train/models/backbones/", "retrieval_train/engine/optimizers/"),
    "open_clip": ("retrieval_train/models/backbones/",),
    "wandb": ("retrieval_train/tracking.py",),
    "omegaconf": ("retrieval_train/config.py",),
    "submitit": ("launcher/starts/executors.py",),
    "optuna": ("launcher/sweeps/search.py",),
}
HEAVY = {"torch", "timm", "peft", "deepspeed", "faiss", "wandb", "torchvision"}


def sources() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def floor(name: str) -> float | None:
    return next((number for prefix, number in FLOORS if is_in(name, prefix)), None)


def part(name: str) -> str | None:
    return next((package for group in SIBLINGS.values() for package in group if is_in(name, package)), None)


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_only_go_down(file: Path) -> None:
    mine = module_name(file)
    for name in imported(file):
        theirs = floor(name)
        if theirs is None:
            continue
        here = floor(mine)
        assert here is not None and theirs <= here, f"{mine} (floor {here}) imports {name} (floor {theirs})"
        if part(mine) and part(name) and part(mine) != part(name) and theirs == here:
            assert any(is_in(name, shared) for shared in SHARED), f"{mine} imports its sibling {name}"
        if is_in(mine, "shards"):
            assert is_in(name, "shards"), f"shards imports {name}"
        elif is_in(name, "shards") and not is_in(mine, "launcher"):
            if mine == MIRROR:
                assert any(is_in(name, home) for home in BYTES), (
                    f"{mine} imports {name}; it may import {' and '.join(BYTES)}"
                )
                continue
            if mine == COMMANDS[0] and any(is_in(name, door) for door in COMMANDS[1]):
                continue
            allowed = ("retrieval_train.data", "jobs")
            assert any(is_in(mine, package) for package in allowed), f"{mine} reads shard sets past data/: {name}"
            is_files = is_in(mine, "retrieval_train.data") and is_in(name, "shards.files")
            assert is_in(name, "shards.manifest") or is_files, f"{mine} imports {name}; shards.manifest is the door"


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_each_library_has_one_door(file: Path) -> None:
    path = str(file.relative_to(ROOT))
    for name in imported(file):
        for library, doors in DOORS.items():
            if is_in(name, library):
                assert path.startswith(doors), f"{path} imports {name}; the door of {library} is {', '.join(doors)}"


def test_there_is_no_drawer_for_odd_things() -> None:
    odd = {"utils", "util", "common", "helpers", "misc"}
    assert not [file for file in sources() if odd & set(file.relative_to(ROOT).with_suffix("").parts)]


@pytest.mark.parametrize("job", ["train", "find_lr", "export", "evaluate", "centres", "benchmark"])
def test_the_config_of_a_job_imports_nothing_heavy(job: str) -> None:
    code = f"import sys, jobs.{job}; print(*{sorted(HEAVY)!r} & sys.modules.keys())".replace("*[", "*{").replace(
        "] &", "} &"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
