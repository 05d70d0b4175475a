"""Any sample by its number: the same sample as read straight from its tar, one request a shard for what is needed soon."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from retrieval_train.data import reader as reader_module
from retrieval_train.data.reader import Reader
from retrieval_train.data.store.local import LocalStore
from retrieval_train.data.store.store import StoreError
from shards.manifest import SIDECAR, Manifest, Sample, ShardError, read_sample, span_of
from shards.ustar import BLOCK
from tests.retrieval_train.data.test_store import make_set


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A set of shards of at most 4 samples."""
    return make_set(tmp_path_factory.mktemp("sets"))


def one_by_one(manifest: Manifest) -> list[Sample]:
    """Every sample, by opening the tars as files."""
    found = []
    for shard in manifest.shards:
        with (manifest.folder / shard.file).open("rb") as file:
            found += [read_sample(file, row) for row in manifest.sidecar(shard)]
    return found


class Told(LocalStore):
    """Remembers what it was asked to have ready."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.spans: list[tuple[str, int, int]] = []

    def ahead(self, file: str, at: int, count: int) -> None:
        self.spans.append((file, at, count))
        super().ahead(file, at, count)


def test_samples_by_number_are_those_of_the_tars_in_any_order(pets: Manifest) -> None:
    expected = one_by_one(pets)
    reader = Reader(pets, pets.shards)
    numbers = random.Random(0).sample(range(len(reader)), len(reader))
    assert [reader.read(number) for number in numbers] == [expected[number] for number in numbers]
    again = pickle.loads(pickle.dumps(reader))
    assert again.read(7) == expected[7]


def test_everything_known_about_a_sample_belongs_to_its_number(pets: Manifest) -> None:
    reader = Reader(pets, pets.shards)
    names = pets.classes.class_names()
    for number, sample in enumerate(one_by_one(pets)):
        shard, row = reader.place(number)
        assert pets.read(shard, row) == sample
        assert reader.find(sample.key) == [number]
        assert names[reader.label(number)] == f"pets/{sample.meta['label']}"
    assert [reader.label(number) for number in range(30)] == reader.labels().tolist()
    assert set(reader.domains().tolist()) == {0} and set(reader.groups().tolist()) == {0}


@pytest.mark.parametrize("number", [-1, 30, 10**9])
def test_a_number_beyond_the_set_is_a_mistake(pets: Manifest, number: int) -> None:
    reader = Reader(pets, pets.shards)
    for look in (reader.read, reader.label, reader.place, reader.row):
        with pytest.raises(IndexError, match=f"pets: no sample {number}; these 8 shards have 30"):
            look(number)


@pytest.mark.parametrize(("first", "count"), [(0, 30), (0, 1), (3, 2), (2, 9), (29, 5), (5, 0), (40, 3)])
def test_what_is_needed_soon_is_one_span_a_shard_that_holds_all_of_it(pets: Manifest, first: int, count: int) -> None:
    store = Told(pets.folder)
    reader = Reader(pets, pets.shards, store)
    reader.ahead(first, count)
    needed = range(first, min(first + count, 30))
    assert [file for file, _, _ in store.spans] == list(dict.fromkeys(reader.place(n)[0].file for n in needed))
    spans = {file: (at, at + size) for file, at, size in store.spans}
    for file, (start, stop) in spans.items():
        rows = [reader.place(n) for n in needed if reader.place(n)[0].file == file]
        sidecar = pets.sidecar(rows[0][0])[[row for _, row in rows]]
        assert start == sidecar["image_at"].min() - BLOCK
        assert stop == (sidecar["json_at"] + sidecar["json_bytes"]).max()


def test_samples_here_and_there_are_each_asked_for_with_all_of_their_bytes(pets: Manifest) -> None:
    store = Told(pets.folder)
    reader = Reader(pets, pets.shards, store)
    numbers = [29, 3, 4, 17, 3, 0]
    reader.ahead_each(np.array(numbers))
    expected = []
    for number in numbers:
        row = reader.row(number)
        expected.append((row.shard.file, *span_of(row.entry)))
    assert sorted(store.spans) == sorted(expected)
    reader.ahead_each(np.array([], np.int64))
    assert len(store.spans) == len(numbers)


def test_many_shards_keep_few_files_open_and_little_memory(pets: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "MOST_BYTES", 3 * 4 * SIDECAR.itemsize)  # three shards
    reader, expected = Reader(pets, pets.shards), one_by_one(pets)
    before = len(os.listdir("/proc/self/fd"))
    labels = reader.labels()
    rows = [reader.row(number) for number in range(30)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert [row.label for row in rows] == labels.tolist() and labels.dtype == np.int32
    assert [reader.read_row(row) for row in rows] == expected
    assert reader._kept_bytes == sum(kept.nbytes for kept in reader._kept.values()) <= reader_module.MOST_BYTES


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("label", -5, "row 0 of {tar} has class id -5, but the set has 5 classes"),
        ("label", 5, "row 0 of {tar} has class id 5, but the set has 5 classes, 0 to 4"),
        ("domain", 1, "domains up to 1, but the set has 1 domains"),
    ],
)
def test_a_sidecar_with_a_class_or_domain_that_is_not_there_is_refused(
    tmp_path: Path, field: str, value: int, told: str
) -> None:
    reader = damaged(tmp_path, field, value)
    assert len(reader.manifest.classes) == 5
    shard = reader.shards[0]
    for look in (reader.labels, lambda: reader.row(2)):
        with pytest.raises(ShardError, match=f"{shard.sidecar}: {told.format(tar=shard.file)}"):
            look()
    reader.ahead(0, 4)
    assert reader.row(4)


@pytest.mark.parametrize("what", ["tar", "sidecar"])
def test_what_is_not_there_is_told_from_what_is_damaged_and_named(tmp_path: Path, what: str) -> None:
    pets = make_set(tmp_path)
    reader, shard = Reader(pets, pets.shards), pets.shards[0]
    name = shard.file if what == "tar" else shard.sidecar
    (pets.folder / name).unlink()
    reader.ahead(0, 30)
    reader.ahead_each(np.arange(30))
    for look in (lambda: reader.read(0), reader.labels):
        with pytest.raises(StoreError, match=f"^{name}: cannot be read .*No such file"):
            look()
    with pytest.raises(ShardError) as error:
        damaged(tmp_path / "other", "key_hash", 1).read(0)
    assert not isinstance(error.value, StoreError)


def test_a_json_that_disagrees_with_its_sidecar_is_found(pets: Manifest) -> None:
    reader = Reader(pets, pets.shards)
    row = reader.row(0)
    meta = reader.read(0).meta
    reader.check(row, meta, is_labelled=True)
    with pytest.raises(ShardError, match=rf"{row.shard.file}: the json of row 0 says .*'zebra', its sidecar 'pets'/"):
        reader.check(row, {**meta, "label": "zebra"}, is_labelled=True)
    reader.check(row, {**meta, "label": "zebra"}, is_labelled=False)
    with pytest.raises(ShardError, match="says domain 'zoo'"):
        reader.check(row, {**meta, "domain": "zoo"}, is_labelled=False)


def damaged(tmp_path: Path, field: str, value: int) -> Reader:
    """A set whose first sidecar states something else in its first row."""
    pets = make_set(tmp_path)
    path = pets.folder / pets.shards[0].sidecar
    rows = np.load(path)
    rows[field][0] = value
    np.save(path, rows)
    return Reader(pets, pets.shards)


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_bytes", 2**32 - 1), ("image_at", 2**63), ("json_bytes", 0), ("json_at", 5), ("key_hash", 1)],
)
def test_a_sidecar_that_points_elsewhere_is_named_and_reads_nothing_large(
    tmp_path: Path, field: str, value: int
) -> None:
    reader = damaged(tmp_path, field, value)
    reader.ahead(0, 4)
    with pytest.raises(ShardError, match=rf"{reader.shards[0].file}: .*run `shards check` on the set"):
        reader.read(0)
    assert reader.read(1).key


def test_a_tar_that_ends_early_while_it_is_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    pets = make_set(tmp_path)
    reader = Reader(pets, pets.shards)
    first = reader.read(0)
    shard, _ = reader.place(3)
    os.truncate(pets.folder / shard.file, int(pets.sidecar(shard)["image_at"][3]) + 10)
    with pytest.raises(ShardError, match=rf"{shard.file}: \d+ bytes from byte \d+ on .* copy the file again"):
        reader.read(3)
    assert reader.read(0) == first
