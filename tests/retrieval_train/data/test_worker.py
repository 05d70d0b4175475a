"""What a worker replaces and what it does not: damaged bytes are the set's, and the same for every run; a full table of
open files is the machine's, and must not change which images are trained on."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from retrieval_train.data.loader import Loader
from retrieval_train.data.reader import Reader
from retrieval_train.data.store import local
from retrieval_train.data.store.local import LocalStore, OpenFile
from retrieval_train.data.store.store import StoreError
from shards.manifest import Manifest
from tests.retrieval_train.data.test_loader import loader, steps


@pytest.fixture
def copied(sets: Path, tmp_path: Path) -> Path:
    """The sets, to be damaged."""
    for name in ("shapes", "more"):
        shutil.copytree(sets / name, tmp_path / name)
    return tmp_path


def bad_of(made: Loader, stop: int = 8) -> list[str]:
    """What is said of samples that were replaced."""
    with contextlib.closing(made.draws(0, stop)) as draws:
        return [bad.reason for batches in draws for batch in batches for bad in batch.bad]


class Refused(OpenFile):
    """A file that a process with too many files cannot read."""

    error = errno.EMFILE

    def read(self, at: int, count: int) -> bytes:
        raise OSError(Refused.error, os.strerror(Refused.error))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_what_the_machine_cannot_read_ends_the_run_and_is_not_replaced(
    sets: Path, monkeypatch: pytest.MonkeyPatch, error: int, workers: int
) -> None:
    monkeypatch.setattr(local, "PAUSES_S", (0.001,))
    monkeypatch.setattr(local, "OpenFile", Refused)
    monkeypatch.setattr(Refused, "error", error)
    with pytest.raises(StoreError, match=rf"train-\d+\.tar: cannot be read .*{os.strerror(error)}"):
        steps(loader(sets, workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_tar_that_is_gone_ends_the_run_with_its_name(copied: Path, workers: int) -> None:
    made = loader(copied, workers=workers)
    gone = copied / "shapes" / made.streams[0].readers[1].shards[0].file
    assert gone.is_file()
    gone.unlink()
    with pytest.raises(StoreError, match=rf"{gone.name}: cannot be read .*No such file"):
        steps(made)


def test_a_tar_that_was_cut_short_has_its_lost_samples_replaced(copied: Path) -> None:
    made = loader(copied, workers=1)
    shapes = Manifest.load(copied / "shapes")
    shard = shapes.select("train")[0]
    made.streams[0].readers[1].row(0)  # looked at before, as in the middle of a run
    os.truncate(shapes.folder / shard.file, int(shapes.sidecar(shard)["image_at"][7]))
    reasons = bad_of(made)
    assert reasons and all(f"{shard.file}: " in reason and "copy the file again" in reason for reason in reasons)


@pytest.mark.parametrize("cache_gb", [0.0, 0.1])
def test_a_sidecar_that_states_another_class_than_the_json_is_not_trained_on(copied: Path, cache_gb: float) -> None:
    shapes = Manifest.load(copied / "shapes")
    shard = shapes.select("train")[0]
    path = shapes.folder / shard.sidecar
    rows = np.load(path)
    key = shapes.read(shard, 3).key
    rows["label"][3] = (rows["label"][3] + 1) % len(shapes.classes)
    np.save(path, rows)
    made = loader(copied, cache_gb=cache_gb)
    trained = {key for rows_of_step in steps(made, 0, 16) for key, _, _ in rows_of_step.values()}
    assert key not in trained and len(trained) > 60
    reasons = set(bad_of(made, 16))
    assert len(reasons) == 1 and f"{shard.file}: the json of row 3 says" in reasons.pop()


def test_reading_ahead_of_what_is_not_there_is_silent(copied: Path) -> None:
    reader = loader(copied).streams[0].readers[1]
    for path in (copied / "shapes").glob("train-*"):
        path.unlink()
    reader.ahead(0, len(reader))
    reader.ahead_each(np.arange(len(reader)))


def test_open_tars_are_bounded_over_all_sets_of_a_process(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "OPEN", local.OpenFiles(3))
    manifests = [Manifest.load(sets / name) for name in ("shapes", "more")] * 4
    before = len(os.listdir("/proc/self/fd"))
    for manifest in manifests:
        reader = Reader(manifest, manifest.select("train"))
        for number in range(len(reader)):
            reader.read(number)
        assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_a_set_made_anew_in_the_same_folder_is_read_anew(copied: Path) -> None:
    shard = Manifest.load(copied / "more").select("train")[0]
    before = LocalStore(copied / "more").read(shard.file, 0, 9)
    os.rename(copied / "more" / shard.file, copied / "old.tar")
    (copied / "more" / shard.file).write_bytes(b"123456789")
    assert LocalStore(copied / "more").read(shard.file, 0, 9) == b"123456789" != before


def test_the_limit_of_open_files_is_raised_as_far_as_it_may(tmp_path: Path) -> None:
    def check() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))
        local.allow_files.cache_clear()
        LocalStore(tmp_path)
        os._exit(0 if resource.getrlimit(resource.RLIMIT_NOFILE) == (512, 512) else 1)

    process = multiprocessing.get_context("fork").Process(target=check)
    process.start()
    process.join(30)
    assert process.exitcode == 0
