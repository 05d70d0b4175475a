"""The node's copies of shards, with real files, processes and kills: right bytes, one copy each, bounded."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retrieval_train.data.reader import Reader
from retrieval_train.data.store import cache as cache_module
from retrieval_train.data.store import scratch as scratch_module
from retrieval_train.data.store.cache import Cache, lock_of
from retrieval_train.data.store.local import LocalStore
from retrieval_train.data.store.lock import is_locked, locked
from retrieval_train.data.store.scratch import ScratchStore
from retrieval_train.data.store.store import StoreConfig, open_set
from shards.manifest import Manifest, Shard, ShardError
from tests.retrieval_train.data.test_store import make_set
from tests.shards.sourcing import serve

fork = multiprocessing.get_context("fork")
PIECE = 1000


class Source(LocalStore):
    """A slow file system that notes every read, of whichever process, in a file."""

    def __init__(self, folder: Path, log: Path, *, pause_s: float = 0.0) -> None:
        super().__init__(folder)
        self.log, self.pause_s = log, pause_s

    def read(self, file: str, at: int, count: int) -> bytes:
        with self.log.open("a") as log:
            log.write(f"{file} {at} {count}\n")
        time.sleep(self.pause_s)
        return super().read(file, at, count)

    @property
    def reads(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """A set of 8 shards or more, which are copied in small pieces."""
    monkeypatch.setattr(scratch_module, "PIECE_BYTES", PIECE)
    (tmp_path / "scratch").mkdir()
    return make_set(tmp_path)


@pytest.fixture
def source(pets: Manifest, tmp_path: Path) -> Source:
    """Where the set lies."""
    return Source(pets.folder, tmp_path / "reads")


def cache_in(tmp_path: Path, *, max_bytes: int = 10**9, slots: int = 4) -> Cache:
    return Cache.open(tmp_path / "scratch", max_bytes=max_bytes, slots=slots)


def until(is_so: Callable[[], object], *, wait_s: float = 10) -> None:
    deadline = time.monotonic() + wait_s
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def copied(cache: Cache) -> list[str]:
    """The shards that are there, whole."""
    return sorted(path.name for path in cache.root.glob("*/*.tar"))


def left_over(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.root.glob("*/*") if path.suffix != ".tar")


def whole(pets: Manifest, shard: Shard) -> bytes:
    return (pets.folder / shard.file).read_bytes()


def start(work: Callable[..., object], *args: object) -> Any:
    """A forked process that ends with 0 when `work` returns."""

    def run() -> None:
        code = 1
        try:
            work(*args)
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)

    process = fork.Process(target=run)
    process.start()
    return process


def ends(processes: list[Any]) -> list[int]:
    for process in processes:
        process.join(30)
    return [process.exitcode for process in processes]


def test_a_shard_is_copied_ahead_and_then_read_from_the_copy(pets: Manifest, source: Source, tmp_path: Path) -> None:
    cache, shard = cache_in(tmp_path), pets.shards[0]
    store = ScratchStore(pets, source, cache)
    store.ahead(shard.file, 0, 1)
    until(lambda: copied(cache) == [shard.file])
    until(lambda: not left_over(cache))
    assert len(source.reads) == -(-shard.bytes // PIECE)
    data = whole(pets, shard)
    for at, count in ((0, 1), (513, 600), (shard.bytes - 7, 7)):
        assert store.read(shard.file, at, count) == data[at : at + count]
    assert pickle.loads(pickle.dumps(store)).read(shard.file, 9, 9) == data[9:18]
    assert len(source.reads) == -(-shard.bytes // PIECE)
    with pytest.raises(ShardError, match=rf"{shard.file}: .* ends at byte {shard.bytes}"):
        store.read(shard.file, shard.bytes - 5, 9)


def test_a_set_behind_a_url_reads_from_its_copies_like_the_set_itself(pets: Manifest, tmp_path: Path) -> None:
    expected = [Reader(pets, pets.shards).read(number) for number in range(30)]
    with serve(pets.folder) as server:
        config = StoreConfig(locations={"pets": server.url}, scratch=str(tmp_path / "scratch"))
        manifest, store = open_set("pets", config, Path("."))
        reader = Reader(manifest, manifest.shards, store)
        assert [reader.read(number) for number in range(30)] == expected
        reader.ahead(0, 30)
        until(lambda: copied(cache_in(tmp_path)) == sorted(shard.file for shard in pets.shards))
    assert [reader.read(number) for number in range(30)] == expected  # the server is gone


def test_all_processes_of_a_node_copy_a_shard_once(pets: Manifest, source: Source, tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    source.pause_s = 0.01
    expected = [whole(pets, shard) for shard in pets.shards]

    def rank() -> None:
        store = ScratchStore(pets, source, cache)
        for shard in pets.shards:
            store.ahead(shard.file, 0, 1)
        until(lambda: len(copied(cache)) == len(pets.shards))
        assert [store.read(shard.file, 0, shard.bytes) for shard in pets.shards] == expected

    assert ends([start(rank) for _ in range(4)]) == [0] * 4
    assert len(source.reads) == len(set(source.reads)) == sum(-(-shard.bytes // PIECE) for shard in pets.shards)


def test_no_more_shards_are_copied_at_a_time_than_there_are_slots(
    pets: Manifest, source: Source, tmp_path: Path
) -> None:
    cache = cache_in(tmp_path, slots=2)
    source.pause_s = 0.01

    def rank() -> None:
        store = ScratchStore(pets, source, cache)
        for shard in pets.shards:
            store.ahead(shard.file, 0, 1)
        until(lambda: len(copied(cache)) == len(pets.shards))

    ranks, most = [start(rank) for _ in range(3)], 0
    while any(process.is_alive() for process in ranks):
        most = max(most, len(list(cache.root.glob("*/*.part"))))
        time.sleep(0.002)
    assert ends(ranks) == [0] * 3 and most == 2


def test_after_a_kill_in_the_middle_of_a_copy_the_next_process_copies_at_once(
    pets: Manifest, source: Source, tmp_path: Path
) -> None:
    cache, (shard, other) = cache_in(tmp_path), pets.shards[:2]
    slow = Source(pets.folder, tmp_path / "slow", pause_s=0.05)

    def killed() -> None:
        store = ScratchStore(pets, slow, cache)
        store.ahead(shard.file, 0, 1)
        store.ahead(other.file, 0, 1)
        time.sleep(60)

    process = start(killed)
    until(lambda: len(list(cache.root.glob("*/*.part"))) == 2 and len(slow.reads) > 4)
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert not copied(cache) and len(left_over(cache)) == 4  # two locks, two parts

    store = ScratchStore(pets, source, cache)
    began = time.monotonic()
    assert store.read(shard.file, 0, shard.bytes) == whole(pets, shard)
    assert time.monotonic() - began < 1
    assert copied(cache) == [shard.file]
    until(lambda: not list(cache.root.glob("*/*.part")))
    assert source.reads[-1].split() != [shard.file, "0", str(shard.bytes)], "read from the copy"


def test_a_worker_does_not_keep_the_lock_of_a_parent_that_was_killed(
    pets: Manifest, source: Source, tmp_path: Path
) -> None:
    cache, shard = cache_in(tmp_path), pets.shards[0]
    lock = lock_of(cache.folder(pets) / shard.file)
    source.pause_s = 0.2

    def parent() -> None:
        store = ScratchStore(pets, source, cache)
        store.ahead(shard.file, 0, 1)
        until(lambda: len(source.reads) > 1)
        worker = start(time.sleep, 60)
        (tmp_path / "worker").write_text(str(worker.pid))
        time.sleep(60)

    process = start(parent)
    until(lambda: (tmp_path / "worker").exists() and (tmp_path / "worker").read_text())
    assert is_locked(lock)
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)  # join waits for the worker too
    worker = int((tmp_path / "worker").read_text())
    try:
        until(lambda: not is_locked(lock), wait_s=2)
        os.kill(worker, 0)  # it lives
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_forked_worker_copies_for_itself_while_its_parent_does_too(
    pets: Manifest, source: Source, tmp_path: Path
) -> None:
    cache = cache_in(tmp_path)
    source.pause_s = 0.005
    store = ScratchStore(pets, source, cache)
    store.ahead(pets.shards[0].file, 0, 1)

    def worker(mine: list[Shard]) -> None:
        for shard in mine:
            store.ahead(shard.file, 0, 1)
        for shard in mine:
            assert store.read(shard.file, 0, shard.bytes) == whole(pets, shard)
        until(lambda: {shard.file for shard in mine} <= set(copied(cache)))

    assert ends([start(worker, list(pets.shards[n::2])) for n in range(2)]) == [0] * 2
    assert len(copied(cache)) == len(pets.shards)


@pytest.fixture
def small(pets: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cache]:
    """Room for three shards, of which none counts as in use a moment later."""
    monkeypatch.setattr(cache_module, "USED_S", 0.0)
    yield cache_in(tmp_path, max_bytes=3 * max(shard.bytes for shard in pets.shards), slots=1)


def fetch(store: ScratchStore, cache: Cache, shard: Shard) -> None:
    store.ahead(shard.file, 0, 1)
    until(lambda: shard.file in copied(cache))


def test_the_bound_is_kept_and_what_was_used_last_stays(pets: Manifest, source: Source, small: Cache) -> None:
    store = ScratchStore(pets, source, small)
    kept = pets.shards[0]
    for shard in pets.shards:
        fetch(store, small, shard)
        assert small.num_bytes() <= small.max_bytes
        os.utime(small.folder(pets) / kept.file, ns=(time.time_ns(), cache_module.stamp(kept)))
    there = copied(small)
    assert kept.file in there and pets.shards[-1].file in there and pets.shards[1].file not in there
    assert 3 <= len(there) < len(pets.shards)


def test_a_copy_in_use_stays_and_the_rest_is_read_at_the_source_with_one_warning(
    pets: Manifest, source: Source, small: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "USED_S", 30.0)
    store = ScratchStore(pets, source, small)
    for _ in range(2):
        for shard in pets.shards:
            assert store.read(shard.file, 0, shard.bytes) == whole(pets, shard)
    first = copied(small)
    assert first and small.num_bytes() <= small.max_bytes
    assert caplog.text.count("is full of shards in use") == 1
    time.sleep(0.05)
    assert copied(small) == first


def test_a_shard_that_never_fits_is_read_at_the_source(
    pets: Manifest, source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, shard = cache_in(tmp_path, max_bytes=5000), pets.shards[0]
    store = ScratchStore(pets, source, cache)
    assert store.read(shard.file, 0, shard.bytes) == whole(pets, shard)
    until(lambda: "the cache is smaller than a shard" in caplog.text)
    assert not copied(cache) and not list(cache.root.glob("*/*.part"))


def test_copies_that_are_deleted_under_a_reader_are_read_on_and_their_room_is_given_back(
    pets: Manifest, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, shard = cache_in(tmp_path), pets.shards[0]
    store = ScratchStore(pets, source, cache)
    fetch(store, cache, shard)
    assert store.read(shard.file, 0, 99) == whole(pets, shard)[:99]
    shutil.rmtree(cache.folder(pets))
    assert store.read(shard.file, 9, 99) == whole(pets, shard)[9:108]
    monkeypatch.setattr(scratch_module, "LOOK_S", 0.0)
    assert store.read(shard.file, 9, 99) == whole(pets, shard)[9:108]
    held = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if Path(f"/proc/self/fd/{fd}").is_symlink()
    ]
    assert not [path for path in held if path.endswith(f"{shard.file} (deleted)")]
    until(lambda: shard.file in copied(cache))  # and it is copied again


def test_a_requeued_job_finds_the_copies_and_trusts_only_what_is_as_it_was(
    pets: Manifest, source: Source, tmp_path: Path
) -> None:
    cache, (first, second, third) = cache_in(tmp_path), pets.shards[:3]
    store = ScratchStore(pets, source, cache)
    for shard in (first, second, third):
        fetch(store, cache, shard)
    (cache.folder(pets) / second.file).write_bytes(bytes(second.bytes))  # same size
    os.truncate(cache.folder(pets) / third.file, 600)

    num_reads = len(source.reads)
    again = ScratchStore(pets, source, cache_in(tmp_path))
    assert again.read(first.file, 0, first.bytes) == whole(pets, first)
    assert len(source.reads) == num_reads
    for shard in (second, third):
        assert again.read(shard.file, 0, shard.bytes) == whole(pets, shard)
        until(lambda shard=shard: cache.find(cache.folder(pets) / shard.file, shard))  # type: ignore[misc]


def test_a_source_that_changed_is_noticed_and_not_copied(
    pets: Manifest, source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, shard = cache_in(tmp_path), pets.shards[0]
    data = bytearray(whole(pets, shard))
    data[5] ^= 1
    (pets.folder / shard.file).write_bytes(data)
    store = ScratchStore(pets, source, cache)
    for _ in range(3):
        assert store.read(shard.file, 0, 600) == data[:600]
    until(lambda: f"pets/{shard.file}: its sum is not the manifest's" in caplog.text)
    until(lambda: not list(cache.root.glob("*/*.part")))
    store.ahead(shard.file, 0, 1)
    time.sleep(0.05)
    assert not copied(cache) and caplog.text.count("its sum is not") == 1


def test_a_source_that_is_cut_short_gives_an_error_that_names_it(
    pets: Manifest, source: Source, tmp_path: Path
) -> None:
    cache, shard = cache_in(tmp_path), pets.shards[0]
    os.truncate(pets.folder / shard.file, 2000)
    store = ScratchStore(pets, source, cache)
    assert len(store.read(shard.file, 0, 2000)) == 2000
    with pytest.raises(ShardError, match=rf"{shard.file}: 600 bytes from byte 1800 on .* ends at byte 2000"):
        store.read(shard.file, 1800, 600)
    assert not copied(cache)


def test_a_full_disk_costs_old_copies_first_and_then_speed(
    pets: Manifest, source: Source, small: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = ScratchStore(pets, source, small)
    old, new, last = pets.shards[:3]
    fetch(store, small, old)
    fill, failures = ScratchStore._fill, [1]

    def full(self: ScratchStore, part: Path, shard: Shard) -> None:
        if failures[0]:
            failures[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fill(self, part, shard)

    monkeypatch.setattr(ScratchStore, "_fill", full)
    fetch(store, small, new)
    assert copied(small) == [new.file]
    failures[0] = 99
    for shard in pets.shards[2:]:
        assert store.read(shard.file, 0, shard.bytes) == whole(pets, shard)
    until(lambda: "data.store.scratch: No space left on device; pets is read at its source meanwhile" in caplog.text)
    assert caplog.text.count("No space left") == 1
    assert last.file not in copied(small) and not list(small.root.glob("*/*.part"))


def test_a_reader_waits_a_little_for_a_copy_of_another_process_and_then_reads_at_the_source(
    pets: Manifest, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch_module, "WAIT_S", 0.3)
    cache, shard = cache_in(tmp_path), pets.shards[0]
    store = ScratchStore(pets, source, cache)

    def stuck() -> None:
        with locked(lock_of(cache.folder(pets) / shard.file)) as is_held:
            assert is_held
            (tmp_path / "held").touch()
            time.sleep(60)

    process = start(stuck)
    until((tmp_path / "held").exists)
    took = []
    for _ in range(3):
        began = time.monotonic()
        assert store.read(shard.file, 0, 700) == whole(pets, shard)[:700]
        took.append(time.monotonic() - began)
    assert 0.3 <= took[0] < 2 and max(took[1:]) < 0.1
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    store.read(shard.file, 0, 1)
    until(lambda: copied(cache) == [shard.file])


def test_a_scratch_folder_that_goes_away_costs_only_speed(
    pets: Manifest, source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_in(tmp_path)
    store = ScratchStore(pets, source, cache)
    shutil.rmtree(cache.root)
    for shard in pets.shards:
        store.ahead(shard.file, 0, 9)
        assert store.read(shard.file, 0, shard.bytes) == whole(pets, shard)
    until(lambda: "data.store.scratch: No such file or directory" in caplog.text)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_many_readers_of_a_small_cache_read_the_right_bytes(pets: Manifest, source: Source, small: Cache) -> None:
    expected = {shard.file: whole(pets, shard) for shard in pets.shards}

    def rank(seed: int) -> None:
        draw, store = random.Random(seed), ScratchStore(pets, source, small)
        for _ in range(400):
            shard = draw.choice(pets.shards)
            at = draw.randrange(shard.bytes)
            count = draw.randint(1, shard.bytes - at)
            if draw.random() < 0.3:
                store.ahead(shard.file, at, count)
            assert store.read(shard.file, at, count) == expected[shard.file][at : at + count]
            assert small.num_bytes() <= small.max_bytes

    assert ends([start(rank, seed) for seed in range(3)]) == [0] * 3


def test_a_scratch_folder_of_no_use_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"data\.store\.scratch .*/none: not usable on .* \(no such folder\)"):
        Cache.open(tmp_path / "none", max_bytes=1, slots=1)
    (tmp_path / f"retrieval-train-{os.getuid()}").write_text("in the way")
    with pytest.raises(ShardError, match=r"not usable on .* \(File exists\)"):
        Cache.open(tmp_path, max_bytes=1, slots=1)
