"""A run goes on from what is whole, here or at the mirror, and ends rather than begin again when nothing is."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from retrieval_train.engine.mirror import Mirror
from retrieval_train.engine.resume import load_newest
from retrieval_train.engine.state_file import Damaged
from retrieval_train.rundir import RunDir
from retrieval_train.world import Alone, World
from tests.processes import run_ranks
from tests.retrieval_train.engine.test_saving import Training, there


def damage(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def trained(run: RunDir, world: World | None = None) -> Training:
    """With checkpoints of steps 2 and 4."""
    training = Training(run, world or Alone(), every_steps=2)
    training.go(until=4)
    training.checkpoints.finish()
    return training


def test_a_damaged_one_is_set_aside_under_a_free_name_for_the_one_before_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    training = trained(run)
    (run.checkpoints / "damaged-step-00000004").mkdir()
    (run.checkpoints / "damaged-step-00000004/theirs").touch()
    damage(run.checkpoint(4))
    found = load_newest(training.engine, run, Alone(), None)
    assert found and found[0] == run.checkpoint(2) and training.engine.step == 2
    aside = ["damaged-step-00000004", "damaged-step-00000004.2"]
    assert there(run) == [*aside, "latest", "step-00000002"]


def test_the_mirror_is_asked_before_an_older_one_is_taken(tmp_path: Path) -> None:
    run, mirror = RunDir(tmp_path / "run"), Mirror(f"file://{tmp_path}/there", "run")
    training = trained(run)
    mirror.put(run.checkpoint(4))
    damage(run.checkpoint(4))
    found = load_newest(training.engine, run, Alone(), mirror)
    assert found and found[0] == run.checkpoint(4) and training.engine.step == 4


def all_damaged(world: World, folder: Path) -> list[str]:
    """What each rank is told at two starts."""
    logging.disable(logging.WARNING)
    run = RunDir(folder / "run")
    training, told = trained(run, world), []
    world.barrier()
    if world.rank == 0:
        for step in (2, 4):
            damage(run.checkpoint(step))
        shutil.copytree(run.checkpoint(2), folder / "there/run" / run.checkpoint(2).name)
    world.barrier()
    for _ in range(2):
        try:
            load_newest(training.engine, run, world, Mirror(f"file://{folder}/there", "run"))
        except Damaged as error:
            told.append(str(error))
    training.engine.close()
    return told


def test_when_none_is_whole_all_ranks_end_and_say_what_was_set_aside_at_every_start(tmp_path: Path) -> None:
    for told in run_ranks(all_damaged, 2, tmp_path):
        assert len(told) == 2
        for text in told:
            for part in ("damaged-step-00000002, damaged-step-00000004", "step-XXXXXXXX", "--again"):
                assert part in text


def test_a_run_that_has_none_begins(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert load_newest(Training(run).engine, run, Alone(), None) is None


def test_one_that_cannot_be_set_aside_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "run")
    training = trained(run)
    damage(run.checkpoint(4))

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(Damaged, match=r"step-00000004 cannot be renamed: PermissionError: read-only. Move it away"):
        load_newest(training.engine, run, Alone(), None)
