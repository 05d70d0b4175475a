"""A run whose disk fills up goes on without new checkpoints, says so, and saves again when there is room."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval_train.engine.checkpoint import read_state
from retrieval_train.rundir import RunDir
from tests.test_kills import STEPS as KILLED_STEPS
from tests.test_kills import Start, config, make_set

STEPS = 150


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Its `runs` is a disk of 64 MB of its own."""
    make_set(tmp_path)
    runs = tmp_path / "runs"
    runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(runs)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root mounts a disk")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(runs)], check=True)


def fill(file: Path) -> None:
    """Take all room that is left."""
    with file.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(bytes(1 << 16))


def wait_for_checkpoint(start: Start, link: Path) -> None:
    until = time.monotonic() + 200
    while not (link / "checkpoints/latest").is_file():
        assert not start.has_ended() and time.monotonic() < until, start.told()
        time.sleep(0.005)


def test_a_run_goes_on_while_its_disk_is_full_and_saves_when_there_is_room(root: Path) -> None:
    file = config(root, "full", "whole")
    file.write_text(file.read_text().replace(f"steps: {KILLED_STEPS}", f"steps: {STEPS}"))
    start, link, filler = Start(file, ranks=1, stage=0, workers=0), root / "runs/full", root / "runs/filler"
    wait_for_checkpoint(start, link)
    fill(filler)
    time.sleep(2)  # several checkpoints are due meanwhile; nobody can write down how many steps there are
    assert not start.has_ended(), start.told()
    kept = RunDir(link).latest_checkpoint()
    assert kept is not None and read_state(kept)["step"] < STEPS
    filler.unlink()
    assert start.wait(200) == 0, start.told()
    run = RunDir(link.resolve())
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == list(range(1, STEPS + 1))
    assert read_state(run.checkpoint(STEPS))["step"] == STEPS
    said = run.log(0).read_text()
    assert f"could not be written, {run.path}/checkpoints/{kept.name} stays good; the run goes on" in said
