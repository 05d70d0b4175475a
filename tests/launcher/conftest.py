"""A copy of the repo with one more job, `noop`, on which the launcher is run as its users run it: as a command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from launcher.starts import processes
from retrieval_train.rundir import RunDir, read_json

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """\
job: noop
run: {name: it, device: cpu, preflight: false}
"""

# ranks that meet over files: torch takes 2 s to start, and most tests are about the launcher
_QUICK_WORLD = """\
import contextlib, os, pathlib, time

class World:
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    meetings = 0

    def barrier(self):
        self.meetings += 1
        place = pathlib.Path("meetings", os.environ["MASTER_PORT"], str(self.meetings))
        place.mkdir(parents=True, exist_ok=True)
        (place / str(self.rank)).touch()
        while len(list(place.iterdir())) < self.size:
            time.sleep(0.02)

@contextlib.contextmanager
def open_world(device, **limits):
    yield World()
"""


@dataclass(frozen=True)
class Repo:
    """A clone of ours in a folder of its own, and the environment of its user."""

    path: Path
    env: dict[str, str] = field(default_factory=dict)

    def submit(self, *args: str, env: dict[str, str] | None = None, timeout_s: float = 60) -> Ended:
        """`python launcher/submit.py ARGS config=noop.yaml`, to its end."""
        return self.python("launcher/submit.py", *args, "config=noop.yaml", env=env, timeout_s=timeout_s)

    def status(self, *args: str) -> Ended:
        return self.python("launcher/status.py", *args)

    def python(self, *args: str, env: dict[str, str] | None = None, timeout_s: float = 60) -> Ended:
        child = self.start(*args, env=env)
        try:
            out, err = child.communicate(timeout=timeout_s)
        finally:
            child.kill()
        return Ended(child.returncode, out, err)

    def start(self, *args: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        env = self.env | (env or {})
        return subprocess.Popen([sys.executable, *args], cwd=self.path, env=env, stdout=pipe, stderr=pipe, text=True)

    def run(self, name: str = "it") -> RunDir:
        """The newest run of that name."""
        return RunDir((self.path / "runs" / name).resolve())

    def started(self, run: RunDir, rank: int, start: int = 0) -> dict[str, Any]:
        """What a rank saw of itself at its first (second, ...) start."""
        told: dict[str, Any] = json.loads((run.path / "starts" / str(rank) / f"{start}.json").read_text())
        return told

    def copy(self, path: Path) -> Repo:
        """The same code without its runs."""
        shutil.copytree(self.path, path, ignore=shutil.ignore_patterns("runs", "__pycache__"))
        return Repo(path, self.env)


def program(folder: Path, name: str, does: str) -> Path:
    """A shell script in `folder`/bin, in the place of one of SLURM's programs."""
    file = folder / "bin" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\n{does}\n")
    file.chmod(0o755)
    return file


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def copy_of_the_repo(path: Path, *, quick: bool) -> Path:
    leave_out = shutil.ignore_patterns("__pycache__")
    for name in ("shards", "retrieval_train", "jobs", "launcher", "configs/cluster"):
        shutil.copytree(ROOT / name, path / name, ignore=leave_out)
    shutil.copy(ROOT / "tests/launcher/extra_jobs/noop.py", path / "jobs/noop.py")
    (path / "noop.yaml").write_text(CONFIG)
    if quick:
        (path / "retrieval_train/world.py").write_text(_QUICK_WORLD)
        (path / "quick").mkdir()
        (path / "quick/torch.py").write_text("def set_num_threads(count):\n    pass\n")
    return path


@pytest.fixture(scope="session")
def empty_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH without sbatch: the tests must not find the SLURM of the machine they run on."""
    return str(tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory, empty_path: str) -> Repo:
    path = copy_of_the_repo(tmp_path_factory.mktemp("original") / "repo", quick=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CUDA_VISIBLE_DEVICES")}
    return Repo(path, kept | {"PATH": empty_path, "PYTHONPATH": str(path / "quick"), "COLUMNS": "200"})


@pytest.fixture
def repo(original: Repo, tmp_path: Path) -> Iterator[Repo]:
    """The repo, in a folder whose name shells and SLURM could trip over; its runs end with the test."""
    repo = original.copy(tmp_path / "it's a repo")
    yield repo
    for path in repo.path.glob("runs/it-*/logs/scheduler/ticket.json"):
        processes.end(processes.group_members(read_json(path)["pid"]))


@pytest.fixture(scope="session")
def real_repo(tmp_path_factory: pytest.TempPathFactory, original: Repo) -> Repo:
    """The same with torch and gloo."""
    path = copy_of_the_repo(tmp_path_factory.mktemp("real") / "repo", quick=False)
    return Repo(path, {name: value for name, value in original.env.items() if name != "PYTHONPATH"})


def wait_until(it_is_so: Callable[[], bool], *, timeout_s: float = 20) -> None:
    until = time.monotonic() + timeout_s
    while not it_is_so():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
