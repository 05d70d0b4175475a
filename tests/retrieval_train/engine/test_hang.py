"""Whatever hangs a rank, all ranks end in time, each leaves its stack where it can, and the reason names the right one."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from retrieval_train.engine.hang import HUNG, Sighting, Watchdog, reason
from tests.processes import ROOT, run_ranks

TIMEOUT_S, GRACE_S = 2.0, 2.0


def watchdog(folder: Path, rank: int, size: int) -> Watchdog:
    def say(reason: str) -> None:
        (folder / f"said.{rank}").write_text(reason)

    hosts = [f"gpu-{rank}" for rank in range(size)]
    return Watchdog(folder / "stacks", rank, hosts, timeout_s=TIMEOUT_S, say=say, grace_s=GRACE_S)


def wait_for_data() -> None:
    time.sleep(60)


def hold_the_interpreter() -> None:
    ctypes.PyDLL(None).sleep(60)


def sleep_while_others_reduce(world, folder: Path) -> None:
    import torch

    with watchdog(folder, world.rank, world.size) as watched:
        world.barrier()
        watched.beat("data", 7)
        if world.rank == 1:
            wait_for_data()
        watched.beat("step")
        world.sum(torch.ones(1))


def one_of_four(rank: int, folder: Path) -> None:
    """Rank 1 holds the interpreter, rank 2 is stopped, rank 0 waits, and rank 3 goes on and on."""
    (folder / f"ready.{rank}").touch()
    while len(list(folder.glob("ready.*"))) < 4:
        time.sleep(0.02)
    with watchdog(folder, rank, 4) as watched:
        watched.beat("step", 7)
        time.sleep(0.5)  # a look or two
        if rank == 1:
            hold_the_interpreter()
        if rank == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        if rank == 0:
            wait_for_data()
        while True:
            watched.beat("step", 8)
            time.sleep(0.01)


def beat_for_longer_than_the_timeout(rank: int, folder: Path) -> None:
    with watchdog(folder, rank, 1) as watched:
        for step in range(30):
            watched.beat("step", step)
            time.sleep(TIMEOUT_S / 20)
    assert not list((folder / "stacks").glob("?.txt"))


def start(function, rank: int, folder: Path) -> subprocess.Popen[bytes]:
    code = f"import sys, pathlib, {__name__} as here; here.{function.__name__}(int(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    return subprocess.Popen([sys.executable, "-c", code, str(rank), str(folder)], cwd=ROOT)


def test_a_rank_that_sleeps_ends_all_and_is_named_in_spite_of_stacks_of_an_earlier_start(tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "alarm.txt").write_text("an earlier start rang it\n")
    for rank in range(3):
        (tmp_path / "stacks" / f"{rank}.txt").write_text('{"rank": "of an earlier start"}\n')
    with pytest.raises(AssertionError) as failed:
        run_ranks(sleep_while_others_reduce, 3, tmp_path, timeout_s=60)
    assert str(failed.value).count(f"ended with {HUNG}") == 3
    for rank, function in enumerate(("in sum", "in wait_for_data", "in sum")):
        assert function in (tmp_path / "stacks" / f"{rank}.txt").read_text()
        said = (tmp_path / f"said.{rank}").read_text()
        assert (
            "no sign of life for 2 s after step 7: rank 1 on gpu-1 was in 'data', step 7 (engine/test_hang.py:" in said
        )
        assert "ranks 0, 2 were in 'step'" in said


def test_a_held_interpreter_and_a_stopped_process_are_named_and_a_rank_that_still_beats_ends_too(
    tmp_path: Path,
) -> None:
    ranks = [start(one_of_four, rank, tmp_path) for rank in range(4)]
    try:
        codes = [ranks[rank].wait(30) for rank in (0, 1, 3)]
        assert ranks[2].poll() is None  # only SIGKILL ends a stopped process: the launcher's
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert codes == [HUNG, 1, HUNG]  # 1 is what faulthandler ends a process with
    assert "in hold_the_interpreter" in (tmp_path / "stacks" / "1.txt").read_text()
    assert "in one_of_four" in (tmp_path / "stacks" / "3.txt").read_text()
    for rank in (0, 3):
        assert "ranks 1-2 on gpu-1, gpu-2 left no stack" in (tmp_path / f"said.{rank}").read_text()
    began = max(path.stat().st_mtime for path in tmp_path.glob("ready.*"))
    ended = max((tmp_path / name).stat().st_mtime for name in ("said.0", "said.3", "stacks/1.txt"))
    assert ended - began < TIMEOUT_S + 2 * GRACE_S + 2.5  # the half second above, and a busy machine


def test_beats_keep_a_run_alive_and_a_run_that_ends_well_leaves_no_stack(tmp_path: Path) -> None:
    assert start(beat_for_longer_than_the_timeout, 0, tmp_path).wait(30) == 0


def where(rank: int, phase: str, line: str = "a.py:1 in f", *, step: int = 5, silent_s: float = 900) -> Sighting:
    return Sighting(rank, f"gpu-{rank}", 100 + rank, phase, step, silent_s, line)


@pytest.mark.parametrize(
    ("found", "size", "told"),
    [
        (
            [where(0, "step"), where(1, "step"), where(2, "data"), where(3, "step")],
            4,
            ": rank 2 on gpu-2 was in 'data', step 5 (a.py:1 in f); ranks 0-1, 3 were in 'step'",
        ),
        (
            [where(0, "step"), where(1, "step", step=4), where(2, "step")],
            3,
            ": rank 1 on gpu-1 was in 'step', step 4 (a.py:1 in f); ranks 0, 2 were in 'step', step 5",
        ),
        (
            [where(0, "step", "b.py:2 in g"), where(1, "step"), where(2, "step")],
            3,
            ": rank 0 on gpu-0 was in 'step', step 5 (b.py:2 in g); ranks 1-2 were in 'step', step 5 (a.py:1 in f)",
        ),
        ([where(0, "data", silent_s=901), where(1, "step")], 2, ": rank 0 on gpu-0 was in 'data'"),
        ([where(0, "data"), where(1, "step", silent_s=901)], 2, ": rank 1 on gpu-1 was in 'step'"),
        ([where(0, "step"), where(2, "step")], 3, ": rank 1 on gpu-1 left no stack"),
        ([where(0, "step"), where(1, "step")], 2, "No rank differs: compare the stacks."),
    ],
)
def test_the_rank_to_blame_is_the_one_that_is_not_where_most_are(
    found: Sequence[Sighting], size: int, told: str
) -> None:
    said = reason(found, [f"gpu-{rank}" for rank in range(size)], timeout_s=900, folder=Path("run/stacks"))
    assert said.startswith("no sign of life for 15 min after step 5: ")
    assert told in said and "run/stacks" in said
