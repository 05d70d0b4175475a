"""Where tars lie: the same bytes from a folder, a web server and any URL, and what is said where they are not there."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import pickle
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from retrieval_train.config import Section, identity
from retrieval_train.data.reader import Reader
from retrieval_train.data.store import local, remote
from retrieval_train.data.store.fetcher import Fetcher
from retrieval_train.data.store.local import LocalStore, OpenFile, OpenFiles
from retrieval_train.data.store.remote import RemoteStore
from retrieval_train.data.store.store import Store, StoreConfig, StoreError, open_manifest, open_set
from shards import files
from shards.cli import main
from shards.manifest import Manifest, ShardError
from tests.shards.conftest import write_release
from tests.shards.sourcing import Server, serve

CLASSES = {"cat": 9, "dog": 6, "fox": 5, "hen": 4, "owl": 6}


@cache
def made(shard_samples: int) -> tempfile.TemporaryDirectory[str]:
    """The folder of a set that all tests copy; deleted with the process."""
    folder = tempfile.TemporaryDirectory(dir="/tmp")
    write_release(Path(folder.name) / "release", CLASSES)
    words = ["make", "folder", f"{folder.name}/release", "--out", f"{folder.name}/pets"]
    assert main([*words, "--shard-samples", str(shard_samples)]) == 0
    return folder


def make_set(folder: Path, *, shard_samples: int = 4) -> Manifest:
    """A set of 30 small images named pets, below this folder."""
    return Manifest.load(shutil.copytree(f"{made(shard_samples).name}/pets", folder / "pets"))


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """A set, while temporary files lie in a folder of the test and nobody pauses for long."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(local, "PAUSES_S", (0.001, 0.001))
    monkeypatch.setattr(remote, "PAUSES_S", (0.001, 0.001))
    monkeypatch.setattr(files, "FIRST_PAUSE_S", 0.001)
    return make_set(tmp_path)


@pytest.fixture
def server(pets: Manifest) -> Iterator[Server]:
    """A web server of the set's folder."""
    with serve(pets.folder) as server:
        yield server


def config_of(location: object, **more: object) -> StoreConfig:
    """Of the set named pets."""
    return StoreConfig.model_validate({"locations": {"pets": str(location)}, **more})


def test_a_store_gives_the_same_bytes_from_a_folder_and_from_urls(pets: Manifest, server: Server) -> None:
    shard = pets.select("train")[0]
    whole = (pets.folder / shard.file).read_bytes()
    server.status, server.failures["/train-9.tar"] = 404, 99
    stores: list[Store] = [LocalStore(pets.folder), RemoteStore(server.url), RemoteStore(f"file://{pets.folder}")]
    for store in stores:
        store.ahead(shard.file, 0, 10**6)
        for at, count in ((0, 1), (700, 33), (len(whole) - 5, 5)):
            assert store.read(shard.file, at, count) == whole[at : at + count]
        for at in (len(whole) - 5, len(whole) + 100):
            with pytest.raises(ShardError, match=shard.file) as cut_short:
                store.read(shard.file, at, 6)
            assert not isinstance(cut_short.value, StoreError), "it is the tar that is damaged"
        with pytest.raises(StoreError, match=r"train-9\.tar.*(No such file|not found)"):
            store.read("train-9.tar", 0, 1)
        store.ahead("train-9.tar", 0, 1)
        assert pickle.loads(pickle.dumps(store)).read(shard.file, 9, 9) == whole[9:18]


@pytest.mark.parametrize("how", ["folder", "http", "file"])
def test_a_set_opened_elsewhere_reads_like_the_set_itself(pets: Manifest, server: Server, how: str) -> None:
    place = {"folder": str(pets.folder), "http": server.url, "file": f"file://{pets.folder}"}[how]
    manifest, store = open_set("pets", config_of(place), Path("nowhere"))
    assert (manifest.name, manifest.digest, manifest.classes.class_names()) == (
        "pets",
        pets.digest,
        pets.classes.class_names(),
    )
    here = Reader(pets, pets.shards)
    there = Reader(manifest, manifest.shards, store)
    assert len(there) == 30
    assert [there.read(number) for number in range(30)] == [here.read(number) for number in range(30)]
    assert np.array_equal(there.labels(), here.labels())


def test_a_set_without_an_entry_lies_under_shards_root_and_has_the_name_of_its_entry(pets: Manifest) -> None:
    assert open_set("pets", StoreConfig(), pets.folder.parent)[0].folder == pets.folder
    config = StoreConfig(locations={"animals": str(pets.folder)})
    assert open_set("animals", config, Path("nowhere"))[0].name == "animals"
    assert open_manifest("animals", config, Path("nowhere")).name == "animals"
    with pytest.raises(ShardError, match=r"no shard set .*/pts; there are in .*: pets; did you mean pets\?"):
        open_set("pts", StoreConfig(), pets.folder.parent)


def test_the_tables_of_a_remote_set_are_fetched_once_by_all_processes_of_a_node(pets: Manifest, server: Server) -> None:
    fork = multiprocessing.get_context("fork")
    names = pets.classes.class_names()

    def rank() -> None:
        os._exit(0 if open_set("pets", config_of(server.url), Path("."))[0].classes.class_names() == names else 1)

    ranks = [fork.Process(target=rank) for _ in range(4)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(30)
    assert [process.exitcode for process in ranks] == [0] * 4
    tables = {path: count for path, count in server.asked.items() if path != "/manifest.json"}
    assert set(tables) == {"/classes.tsv", "/groups.tsv", *(f"/{shard.sidecar}" for shard in pets.shards)}
    assert set(tables.values()) == {1}


def test_a_look_at_a_remote_set_fetches_no_sidecars(pets: Manifest, server: Server) -> None:
    manifest = open_manifest("pets", config_of(server.url, scratch="$NOT_ON_A_LOGIN_NODE"), Path("."))
    assert manifest.classes.class_names() == pets.classes.class_names()
    assert not any(path.endswith(".npy") for path in server.asked)


def test_tables_that_were_half_cleaned_away_or_belong_to_another_set_are_fetched_again(
    pets: Manifest, server: Server, tmp_path: Path
) -> None:
    first = open_set("pets", config_of(server.url), Path("."))[0]
    (first.folder / pets.shards[0].sidecar).unlink()
    again = open_set("pets", config_of(server.url), Path("."))[0]
    assert again.folder == first.folder and len(again.sidecar(pets.shards[0])) == pets.shards[0].samples

    other = make_set(tmp_path / "other", shard_samples=7)
    for path in pets.folder.iterdir():
        path.unlink()
    for path in other.folder.iterdir():
        path.rename(pets.folder / path.name)
    made_anew, store = open_set("pets", config_of(server.url), Path("."))
    assert made_anew.digest == other.digest != pets.digest
    assert len(Reader(made_anew, made_anew.shards, store).read(29).image) > 0


def test_a_sidecar_that_is_not_the_sets_is_refused_and_leaves_nothing(pets: Manifest, server: Server) -> None:
    path = pets.folder / pets.shards[0].sidecar
    right = path.read_bytes()
    path.write_bytes((pets.folder / pets.shards[-1].sidecar).read_bytes()[:-42])
    with pytest.raises(ShardError, match=f"{server.url}: {path.name}"):
        open_set("pets", config_of(server.url), Path("."))
    path.write_bytes(right)
    assert len(open_set("pets", config_of(server.url), Path("."))[0].sidecar(pets.shards[0])) == 4


def test_a_server_in_trouble_is_asked_again_and_named_when_it_stays_so(
    pets: Manifest, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    file = pets.shards[0].file
    store = RemoteStore(f"{server.url}?token=secret")
    server.failures[f"/{file}"] = 2
    assert store.read(file, 100, 200) == (pets.folder / file).read_bytes()[100:300]
    assert server.asked[f"/{file}"] == 3 and caplog.text.count("trying again") == 2
    server.failures[f"/{file}"] = 99
    with pytest.raises(StoreError, match=rf"{file}: HTTP 503 .* after 3 tries"):
        store.read(file, 100, 200)
    server.status, server.asked[f"/{file}"] = 403, 0
    with pytest.raises(StoreError, match="HTTP 403") as refused:
        store.read(file, 100, 200)
    assert server.asked[f"/{file}"] == 1
    assert "secret" not in caplog.text + str(refused.value)


class Slow(RemoteStore):
    """A server that takes its time to answer; how many requests were under way at a time."""

    now = most = 0

    def _read(self, file: str, at: int, count: int) -> bytes:
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(0.1)
        self.now -= 1
        return super()._read(file, at, count)


def test_samples_that_are_needed_soon_are_asked_for_side_by_side_and_once(pets: Manifest, server: Server) -> None:
    here = Reader(pets, pets.shards)
    store = Slow(server.url)
    reader = Reader(pets, pets.shards, store)
    numbers = [*range(0, 30, 4), 29]
    expected = [here.read(number) for number in numbers]

    def look() -> None:
        for number in numbers:
            reader.ahead(number, 1)
        assert [reader.read(number) for number in numbers] == expected

    look()
    assert store.most > 2
    assert sum(server.asked.values()) == len(numbers)
    worker = multiprocessing.get_context("fork").Process(target=look)
    worker.start()
    worker.join(30)
    assert worker.exitcode == 0
    reader.ahead(4, 8)  # a stretch, read sample by sample
    num_asked = sum(server.asked.values())
    assert [reader.read(number) for number in range(4, 12)] == [here.read(number) for number in range(4, 12)]
    assert sum(server.asked.values()) <= num_asked + 3


def test_what_a_thread_is_still_at_does_not_count_as_asked_for() -> None:
    told: list[bool] = []
    done = threading.Event()

    def fetch(key: str) -> None:
        told.append(fetcher.ask(key))  # else a reader would wait for an answer that was given before it asked
        done.set()

    fetcher: Fetcher[str] = Fetcher(fetch, threads=1)
    assert fetcher.ask("a")
    assert done.wait(10) and told == [False]


def test_reading_ahead_is_bounded_and_its_errors_are_those_of_reading(
    pets: Manifest, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "AHEAD_BYTES", 3000)
    store, shard = RemoteStore(server.url), pets.shards[0]
    whole = (pets.folder / shard.file).read_bytes()
    for at in range(0, len(whole) - 500, 500):
        store.ahead(shard.file, at, 500)
        assert store._ready._num_bytes <= 3000
    for at in range(0, len(whole) - 500, 500):
        assert store.read(shard.file, at, 500) == whole[at : at + 500]
    store.ahead(shard.file, 0, 5000)
    assert store.read(shard.file, 0, 5000) == whole[:5000]
    server.failures[f"/{shard.file}"] = 99
    store.ahead(shard.file, 7, 7)
    with pytest.raises(ShardError, match="HTTP 503"):
        store.read(shard.file, 7, 7)
    server.failures[f"/{shard.file}"] = 0
    assert store.read(shard.file, 7, 7) == whole[7:14]


def test_a_place_that_is_no_set_is_said_to_be_none(pets: Manifest, server: Server) -> None:
    server.status, server.failures["/none/manifest.json"] = 404, 99
    with pytest.raises(ShardError, match=rf"{server.url}/none/manifest\.json: No such file"):
        open_set("pets", config_of(f"{server.url}/none"), Path("."))
    (pets.folder / "manifest.json").write_text("[]")
    with pytest.raises(ShardError, match=rf"{server.url}/manifest\.json: damaged"):
        open_set("pets", config_of(server.url), Path("."))
    with pytest.raises(ShardError, match=r"nothing://host/x.*Protocol not known"):
        open_set("pets", config_of("nothing://host/x"), Path("."))


class Flaky(OpenFile):
    """A file of a file system that has lost its server for a while."""

    error, times = errno.ESTALE, 0

    def read(self, at: int, count: int) -> bytes:
        if Flaky.times:
            Flaky.times -= 1
            raise OSError(Flaky.error, os.strerror(Flaky.error))
        return super().read(at, count)


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_a_file_system_that_comes_back_is_waited_for(
    pets: Manifest, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    file = pets.shards[0].file
    monkeypatch.setattr(local, "OpenFile", Flaky)
    monkeypatch.setattr(Flaky, "error", error)
    store = LocalStore(pets.folder)
    monkeypatch.setattr(Flaky, "times", 2)
    assert store.read(file, 0, 600) == (pets.folder / file).read_bytes()[:600]
    monkeypatch.setattr(Flaky, "times", 3)
    with pytest.raises(StoreError, match=rf"{file}: cannot be read at byte 7 \({os.strerror(error)}, 3 tries\)"):
        store.read(file, 7, 600)


def test_a_tar_that_was_cut_short_is_named_with_its_length(pets: Manifest) -> None:
    shard = pets.select("train")[0]
    reader = Reader(pets, pets.shards)
    assert reader.label(0) >= -1
    os.truncate(pets.folder / shard.file, 1200)
    with pytest.raises(ShardError, match=rf"{shard.file}: \d+ bytes from byte \d+ on .* ends at byte 1200; copy"):
        LocalStore(pets.folder).read(shard.file, 1000, 500)
    with pytest.raises(ShardError, match=rf"{shard.file}: 1200 bytes, but the manifest says {shard.bytes}"):
        Reader(pets, pets.shards).labels()


def open_files() -> int:
    gc.collect()  # what other tests left open is closed now, not while this one counts
    return len(os.listdir("/proc/self/fd"))


def test_few_files_stay_open_and_a_deleted_one_gives_its_room_back(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(40)]
    for path in paths:
        path.write_text(path.name)
    before, held = open_files(), OpenFiles(8)

    def read(path: Path) -> bytes:
        return held.get(path).read(0, 9)

    with ThreadPoolExecutor(8) as pool:  # one thread forgets what another is reading
        assert list(pool.map(read, paths * 20)) == [path.name.encode() for path in paths] * 20
    assert open_files() == before + 8
    for path in paths:
        path.unlink()
    held.forget_deleted()
    assert open_files() == before


def test_a_forked_worker_reads_what_its_parent_has_open(pets: Manifest) -> None:
    reader = Reader(pets, pets.shards)
    expected = [reader.read(number) for number in range(30)]

    def check(number: int) -> None:
        os._exit(0 if [reader.read(n) for n in range(number, 30)] == expected[number:] else 1)

    workers = [multiprocessing.get_context("fork").Process(target=check, args=(n,)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 3


class Holder(Section):
    """A config with a store in it."""

    store: StoreConfig = StoreConfig()


def test_where_data_lies_is_not_what_a_run_is() -> None:
    elsewhere = StoreConfig(locations={"pets": "s3://b/pets"}, scratch="$TMPDIR", scratch_gb=7, fetch_threads=2)
    assert identity(Holder(store=elsewhere), {}) == identity(Holder(), {})


@pytest.mark.parametrize("location", ["pipe:curl -s https://host/a.tar", " PIPE:cat x"])
def test_a_command_is_no_place_of_a_set(location: str) -> None:
    with pytest.raises(ValidationError, match="pets: 'pipe:' gives a stream"):
        config_of(location)


def test_variables_are_filled_in_where_the_job_runs(
    pets: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = config_of("$SETS_OF_A_TEST/pets", scratch="${SCRATCH_OF_A_TEST}")
    look: Callable[[], object] = lambda: open_set("pets", config, Path("."))  # noqa: E731
    with pytest.raises(ShardError, match=r"locations\.pets \$SETS_OF_A_TEST/pets: SETS_OF_A_TEST is not set on"):
        look()
    monkeypatch.setenv("SETS_OF_A_TEST", str(pets.folder.parent))
    with pytest.raises(ShardError, match=r"data\.store\.scratch .*: SCRATCH_OF_A_TEST is not set on"):
        look()
    assert open_manifest("pets", config, Path(".")).digest == pets.digest
    monkeypatch.setenv("SCRATCH_OF_A_TEST", str(tmp_path / "none"))
    with pytest.raises(ShardError, match=r"data\.store\.scratch .*/none: not usable on .* \(no such folder\)"):
        look()
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("SCRATCH_OF_A_TEST", str(tmp_path / "scratch"))
    store = open_set("pets", config, Path("."))[1]
    assert isinstance(store, LocalStore), "the set lies on the disk of the scratch folder: copies would be in vain"
