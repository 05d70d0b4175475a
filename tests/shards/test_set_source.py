"""`shards make set`: a set made anew from its own tars."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from shards.errors import ShardError
from shards.manifest import Manifest, Sample, write_sidecar
from shards.place import Span
from shards.sources import set as set_source
from shards.tar import Ready, TarWriter
from tests.shards.conftest import Run, files_of
from tests.shards.sourcing import read


def samples_of(manifest: Manifest) -> list[Sample]:
    """All samples in the order of the tars."""
    return [manifest.read(shard, row) for shard in manifest.shards for row in range(shard.samples)]


def test_every_sample_is_a_record_that_says_the_same(pets: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_source, "ROWS", 3)
    records = list(read("set", pets.folder))
    for record, sample in zip(records, samples_of(pets), strict=True):
        meta = sample.meta
        assert (record.key, record.place.read(), record.num_bytes) == (sample.key, sample.image, len(sample.image))
        assert [record.label, record.domain, record.group, record.source, record.extra] == [
            meta[name] for name in ("label", "domain", "group", "source", "extra")
        ]
        assert record.split == ("train" if meta["split"] == "train" else f"{meta['split']}_{meta['role']}")
        assert (record.changed_at, record.labels, record.box, record.problem) == (0.0, (), None, None)
        assert isinstance(record.place, Span)


def test_a_set_made_anew_is_the_same_set(run: Run, pets: Manifest, tmp_path: Path) -> None:
    ran = run("make", "set", pets.folder, "--out", tmp_path / "again", "--shard-samples", 4)
    assert ran.code == 0, ran.err
    assert Manifest.load(tmp_path / "again").digest == pets.digest


def test_a_copy_of_a_set_gives_the_same_records(pets: Manifest, tmp_path: Path) -> None:
    shutil.copytree(pets.folder, tmp_path / "copy")
    pairs = zip(read("set", pets.folder), read("set", tmp_path / "copy"), strict=True)
    for one, other in pairs:
        assert isinstance(one.place, Span)
        assert isinstance(other.place, Span)
        assert other.place.path == one.place.path.replace(str(pets.folder), str(tmp_path / "copy"))
        names = [name for name in type(one).__slots__ if name != "place"]
        assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]


def rewrite(pets: Manifest, change: dict[str, Any]) -> None:
    """Gives every sample of the first shard other words in its json."""
    shard, rows = pets.shards[0], []
    samples = [pets.read(shard, row) for row in range(shard.samples)]
    with (pets.folder / shard.file).open("wb") as file:
        tar = TarWriter(file)
        for sample in samples:
            meta = {name: value for name, value in (sample.meta | change).items() if value != "absent"}
            tar.add(Ready(sample.key, "jpg", sample.image, json.dumps(meta).encode(), (0, 0, 0)))
        tar.end()
        rows = tar.rows
    write_sidecar(pets.folder, shard, rows)
    about = json.loads((pets.folder / "manifest.json").read_bytes())
    about["shards"][0]["bytes"] = (pets.folder / shard.file).stat().st_size
    (pets.folder / "manifest.json").write_text(json.dumps(about))


def test_several_labels_and_a_box_are_carried_over(pets: Manifest) -> None:
    rewrite(pets, {"label": "absent", "labels": ["a", "b"], "box": [1, 2.5, 30, 40], "group": "g", "extra": {"x": [1]}})
    record = next(read("set", pets.folder))
    assert (record.label, record.labels, record.box) == (None, ("a", "b"), (1, 2.5, 30, 40))
    assert (record.group, record.extra) == ("g", {"x": [1]})


@pytest.mark.parametrize(
    "change",
    [
        {"domain": 3},
        {"source": "absent"},
        {"label": ["a"]},
        {"labels": "ab"},
        {"labels": [1]},
        {"box": [1, 2, 3]},
        {"box": "abcd"},
        {"extra": []},
        {"label": "\ud800"},
    ],
)
def test_json_that_says_something_else_is_refused(pets: Manifest, change: dict[str, Any]) -> None:
    rewrite(pets, change)
    with pytest.raises(
        ShardError, match=rf"{pets.shards[0].file}: no json of a sample at byte \d+; .* run `shards check"
    ):
        list(read("set", pets.folder))


def test_a_tar_that_does_not_belong_to_its_sidecar_is_refused(pets: Manifest) -> None:
    path = pets.folder / pets.shards[0].file
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:1024] + bytes(512) + data[1024:-512])
    with pytest.raises(ShardError, match=f"{pets.shards[0].file}: no json of a sample at byte"):
        list(read("set", pets.folder))


def test_what_is_no_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no shard set .*nowhere"):
        list(read("set", tmp_path / "nowhere"))


def test_a_renamed_domain_renames_the_keys(run: Run, pets: Manifest, tmp_path: Path) -> None:
    ran = run("make", "set", pets.folder, "--out", tmp_path / "new", "--rename-domain", "pets=our pets")
    assert ran.code == 0, ran.err
    before = {sample.key.partition("/")[2]: sample.image for sample in samples_of(pets)}
    after = samples_of(Manifest.load(tmp_path / "new"))
    assert {sample.key.partition("/")[0] for sample in after} == {"our%20pets"}
    assert {sample.key.partition("/")[2]: sample.image for sample in after} == before


def test_a_set_is_not_made_inside_another(run: Run, pets: Manifest) -> None:
    files = files_of(pets.folder)
    ran = run("make", "set", pets.folder, "--out", pets.folder / "sub", "--seed", 3)
    assert ran.code == 2
    assert f"sub lies inside the set {pets.folder}" in ran.err
    assert files_of(pets.folder) == files
