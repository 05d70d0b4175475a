"""Checkpoints written beside the training: whole or not there, whatever is slow, full or killed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import logging
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from retrieval_train.engine import checkpoint, plain, zero
from retrieval_train.engine.agreement import Agreement
from retrieval_train.engine.engine import Engine
from retrieval_train.engine.saving import CheckpointConfig, Checkpoints, NotSaved
from retrieval_train.engine.snapshot import Snapshot
from retrieval_train.rundir import RunDir
from retrieval_train.world import Alone, World
from tests.processes import run_ranks
from tests.retrieval_train.engine.test_engines import engine_of, micro_batches, steps

ALONE = Alone()


class Training:
    """The loop of a run, as far as saving sees it."""

    def __init__(self, run: RunDir, world: World = ALONE, **config: Any) -> None:
        self.run, self.world = run, world
        self.engine: Engine = engine_of(zero.Config(stage=2) if world.size > 1 else plain.Config(), world)
        if (latest := world.from_first(run.latest_checkpoint())) is not None:
            self.engine.load(latest)
        self._agreement = Agreement(world)
        self.held: set[Path] = set()
        self.sealed: list[str] = []
        self.checkpoints = Checkpoints(
            self.engine,
            run,
            world,
            CheckpointConfig(**config),
            self._agreement,
            extra=lambda: {"note": "n" * 20_000},
            sealed=lambda folder: self.sealed.append(folder.name),
            held=lambda: self.held,
        )

    def go(self, *, until: int) -> None:
        while self.engine.step < until:
            self._agreement.agree()
            self.checkpoints.after(self.engine.train_step(micro_batches(self.engine.step, 1, self.world)))


class Gate:
    """Holds all writing of this process up while it is closed."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._write: Any = Snapshot.write

    def __enter__(self) -> Gate:
        gate = self

        def write(snapshot: Snapshot, folder: Path) -> dict[str, str]:
            assert gate._open.wait(60)
            sums: dict[str, str] = gate._write(snapshot, folder)
            return sums

        Snapshot.write = write  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        self._open.set()
        Snapshot.write = self._write  # type: ignore[method-assign]

    def open(self) -> None:
        self._open.set()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """So small a model is slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def there(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def step_of(run: RunDir) -> int:
    """Of a checkpoint that is whole to the last byte."""
    latest = run.latest_checkpoint()
    return checkpoint.read_state(latest)["step"] if latest else 0


def test_training_goes_on_meanwhile_and_what_is_saved_is_the_step_at_which_it_began(run: RunDir) -> None:
    with Gate() as gate:
        training = Training(run, every_steps=2)
        training.go(until=3)
        assert there(run) == [".step-00000002"] and run.latest_checkpoint() is None
        gate.open()
        training.checkpoints.finish()
    assert there(run) == ["latest", "step-00000002"]
    assert (step_of(run), training.sealed) == (2, ["step-00000002"])
    training.go(until=6)
    resumed = Training(RunDir(run.path), every_steps=100)
    assert resumed.engine.step == 4, "the one of step 6 is not sealed before its thread is done and a step over"
    undisturbed = steps(engine_of(plain.Config(), ALONE), ALONE, until=6)
    assert steps(resumed.engine, ALONE, until=6) == [pytest.approx(figures, rel=1e-6) for figures in undisturbed[4:]]


def test_the_newest_those_for_good_the_best_and_the_held_stay(run: RunDir) -> None:
    training = Training(run, every_steps=1, keep=2, keep_every=4)
    training.held = {run.checkpoint(1)}
    training.go(until=3)
    training.checkpoints.finish()
    run.set_best(run.checkpoint(3))
    training.go(until=7)
    training.checkpoints.save()
    kept = [1, 3, 4, 6, 7]
    assert there(run) == ["best", "latest", *(run.checkpoint(step).name for step in kept)]
    training.held, training.engine.step = set(), 8
    training.checkpoints.save()
    assert [path.name for path in run.checkpoints.glob("step-*1")] == []


def test_the_clock_asks_for_one_more_between_the_regular_steps(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    training, now = Training(run, every_steps=1000, every_minutes=10), time.monotonic
    training.go(until=2)
    assert not run.checkpoints.exists()
    monkeypatch.setattr(time, "monotonic", lambda: now() + 601)
    training.go(until=4)
    training.checkpoints.finish()
    assert there(run) == ["latest", "step-00000003"], "the clock begins anew with each"


def test_the_clock_waits_a_whole_turn_after_a_failure_too(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    training, now = Training(run, every_steps=1000, every_minutes=10), time.monotonic
    run.checkpoints.parent.mkdir(parents=True)
    run.checkpoints.write_text("in the way")
    monkeypatch.setattr(time, "monotonic", lambda: now() + 601)
    training.go(until=4)
    assert training.checkpoints.num_failed == 1, "not a snapshot at every step for as long as the disk is full"


def test_one_that_a_faulty_step_was_due_for_comes_with_the_next_good_step(run: RunDir) -> None:
    training = Training(run, every_steps=3)
    training.go(until=2)
    for skipped in ("loss", "gradient", ""):
        training._agreement.agree()
        report = training.engine.train_step(micro_batches(training.engine.step, 1, training.world))
        training.checkpoints.after(dataclasses.replace(report, skipped=skipped))
    training.checkpoints.finish()
    assert there(run) == ["latest", "step-00000005"]


def test_a_step_that_is_reached_again_after_going_back_past_it_is_saved_again(run: RunDir) -> None:
    training = Training(run, every_steps=2)
    training.go(until=4)
    training.checkpoints.finish()
    run.checkpoint(4).rename(run.path / "damaged")
    training.engine.load(run.checkpoint(2))
    training.checkpoints.went_back_to(run.checkpoint(2))
    training.go(until=4)
    training.checkpoints.finish()
    assert step_of(run) == 4 and run.checkpoint(4).is_dir()


@contextlib.contextmanager
def no_file_larger_than(num_bytes: int) -> Iterator[None]:
    """The kernel refuses to write on, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def no_room(folder: Path) -> Iterator[None]:
    """A disk of one MB, full to the last block."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 1024)
    assert shutil.disk_usage(folder).free == 0
    try:
        yield
    finally:
        filler.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root mounts a disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("largest", [1500, 15_000])
def test_where_writing_fails_the_one_before_stays_and_the_run_goes_on(
    run: RunDir, caplog: pytest.LogCaptureFixture, largest: int
) -> None:
    """1500 bytes are too few for the weights, which the thread writes, 15,000 for state.json, which seals."""
    fail_and_recover(run, caplog, lambda: no_file_larger_than(largest), told="File too large")


def test_a_full_disk_costs_a_warning_and_works_again_when_there_is_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fail_and_recover(RunDir(small_disk / "run"), caplog, lambda: no_room(small_disk), told="No space left on device")


def fail_and_recover(
    run: RunDir,
    caplog: pytest.LogCaptureFixture,
    trouble: Callable[[], contextlib.AbstractContextManager[None]],
    *,
    told: str,
) -> None:
    training = Training(run, every_steps=2)
    training.go(until=2)
    training.checkpoints.finish()
    with trouble():
        training.go(until=4)
        training.checkpoints.finish()
        assert (training.checkpoints.num_failed, step_of(run)) == (1, 2)
        assert rf"step-00000004 could not be written, {run.checkpoint(2)} stays good; the run goes on." in caplog.text
        assert told in caplog.text
        training.go(until=5)
        with pytest.raises(NotSaved, match=rf"step 5 could not be saved \(.*{told}.*step-00000002 is whole.*Make room"):
            training.checkpoints.save()
        assert there(run) == ["latest", "step-00000002"], "no half of one takes what room there is"
    training.go(until=6)
    training.checkpoints.save()
    assert (training.checkpoints.num_failed, step_of(run)) == (2, 6)


def die_everywhere(world: World, folder: Path) -> list[int]:
    """Runs that save steps 2 and 4, each killed before the n-th call that changes the disk; how each ended."""
    Training(RunDir(folder / "first")).go(until=1)  # imports what every child would
    codes: list[int] = []
    while 0 not in codes:
        pid = os.fork()
        if pid == 0:
            _save_and_die(RunDir(folder / str(len(codes))), nth=len(codes))
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return codes


def _save_and_die(run: RunDir, *, nth: int) -> NoReturn:
    calls = itertools.count()
    for name in ("fsync", "replace", "rename", "unlink", "rmdir"):
        setattr(os, name, _deadly(getattr(os, name), calls, nth))
    try:
        training = Training(run, every_steps=2, keep=1)
        training.go(until=4)
        training.checkpoints.save()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _deadly(function: Callable[..., Any], calls: Iterator[int], nth: int) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        if next(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)

    return call


def test_killed_before_any_change_of_the_disk_it_goes_on_from_a_whole_one(tmp_path: Path) -> None:
    undisturbed, seen = steps(engine_of(plain.Config(), ALONE), ALONE, until=6), set()
    (codes,) = run_ranks(die_everywhere, 1, tmp_path)
    assert len(codes) > 20 and set(codes[:-1]) == {-signal.SIGKILL}
    for nth in range(len(codes) - 1):
        run = RunDir(tmp_path / str(nth))
        training = Training(run, every_steps=1, keep=1)
        seen.add(step := training.engine.step)
        assert steps(training.engine, ALONE, until=6) == [pytest.approx(f, rel=1e-6) for f in undisturbed[step:]]
        training.checkpoints.save()
        assert there(run) == ["latest", "step-00000006"], f"left over after a kill before call {nth}"
    assert seen == {0, 2, 4}


# --- several ranks


def trouble_on_rank_1(world: World, folder: Path) -> dict[str, Any]:
    """One rank's disk is slow, then full; what the run folder holds then, and what each rank thinks of it."""
    logging.disable(logging.WARNING)
    run = RunDir(folder / "run")
    out: dict[str, Any] = {}
    training = Training(run, world, every_steps=2)

    def look(when: str) -> None:
        world.barrier()
        out[when] = (there(run), training.checkpoints.num_failed)
        world.barrier()

    with Gate() as gate:
        if world.rank == 0:
            gate.open()
        training.go(until=3)
        time.sleep(0.2)  # rank 0 is done long since
        look("one rank is slow")
        gate.open()
        training.checkpoints.finish()
        look("both are done")
    write = Snapshot.write
    if world.rank == 1:
        Snapshot.write = full  # type: ignore[method-assign, assignment]
    training.go(until=5)
    training.checkpoints.finish()
    look("one rank's disk is full")
    try:
        training.checkpoints.save()
    except NotSaved as error:
        out["told"] = str(error)
    Snapshot.write = write  # type: ignore[method-assign]
    training.go(until=6)
    training.checkpoints.save()
    look("there is room again")
    out["step"] = checkpoint.read_state(run.checkpoint(6), world)["step"]
    training.engine.close()
    return out


def full(snapshot: Snapshot, folder: Path) -> dict[str, str]:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_all_ranks_wait_for_the_slowest_and_give_up_what_one_could_not_write(tmp_path: Path) -> None:
    for out in run_ranks(trouble_on_rank_1, 2, tmp_path):
        assert out["one rank is slow"] == ([".step-00000002"], 0)
        assert out["both are done"] == (["latest", "step-00000002"], 0)
        assert out["one rank's disk is full"] == (["latest", "step-00000002"], 1)
        assert "step 5 could not be saved (rank 1: OSError: [Errno 28] No space left" in out["told"]
        assert out["there is room again"] == (["latest", "step-00000002", "step-00000006"], 2)
        assert out["step"] == 6
