"""The reader that trainers use: offsets, classes, and sets that are not whole."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.classes import Classes
from shards.key import key_hash
from shards.manifest import SIDECAR, Manifest, ShardError, read_sample
from tests.shards.conftest import Run


def test_the_sidecar_says_where_tarfile_finds_everything(pets: Manifest) -> None:
    for shard in pets.shards:
        with tarfile.open(pets.folder / shard.file) as tar:
            members = tar.getmembers()
        rows = pets.sidecar(shard)
        assert rows.dtype == SIDECAR and rows.dtype.itemsize == 42
        assert not rows.flags.writeable
        for row, image, meta in zip(rows, members[::2], members[1::2], strict=True):
            stated = tuple(row)[:5]
            key = image.name.removesuffix(".jpg")
            assert stated == (image.offset_data, image.size, meta.offset_data, meta.size, key_hash(key))
            assert meta.name == f"{key}.json"
            assert (image.mtime, image.uid, image.gid, image.mode, image.pax_headers) == (0, 0, 0, 0o644, {})


def test_reading_by_the_sidecar_gives_what_reading_the_tar_gives(pets: Manifest, release: Path) -> None:
    names = pets.classes.class_names()
    for shard in pets.shards:
        rows = pets.sidecar(shard)
        with tarfile.open(pets.folder / shard.file) as tar, (pets.folder / shard.file).open("rb") as file:
            members = tar.getmembers()
            for at, (image, meta) in enumerate(zip(members[::2], members[1::2], strict=True)):
                sample = read_sample(file, rows[at])
                assert sample == pets.read(shard, at)
                assert sample.image == tar.extractfile(image).read()  # type: ignore[union-attr]
                assert sample.meta == json.load(tar.extractfile(meta))  # type: ignore[arg-type]
                assert sample.image == (release / sample.meta["source"]).read_bytes()
                assert names[rows[at]["label"]] == f"pets/{sample.meta['label']}"
                assert sample.meta["split"] == shard.split and sample.meta["role"] == shard.role


def test_select_gives_shards_by_split_and_role(pets: Manifest) -> None:
    assert {shard.role for shard in pets.select("dev")} == {"query", "index"}
    assert pets.select("dev", "query") == tuple(s for s in pets.shards if s.file.startswith("dev-query-"))
    assert pets.select("test") == ()
    with pytest.raises(
        ShardError, match=r"no split or role .trian.; there are: train, dev, test; did you mean train\?"
    ):
        pets.select("trian")


def test_class_ids_are_ranks_of_domain_and_label() -> None:
    samples = [("b", "x", None, "train"), ("a", "z", "g", "dev"), ("a", "y", "g", "train"), ("a", "y", "h", "train")]
    classes = Classes.count([*samples, ("a", None, None, "dev")])
    assert classes.class_names() == ["a/y", "a/z", "b/x"]
    assert classes.groups == ("", "g", "")
    assert classes.counts("train").tolist() == [2, 0, 1]
    assert classes.counts("dev").tolist() == [0, 1, 0]


@pytest.mark.parametrize("label", ["tab\there", "two\nlines\r", "back\\slash\\n", "", "ü", "a/b"])
def test_a_label_comes_back_from_the_table_of_classes(label: str) -> None:
    classes = Classes.count([("d", label, label, "train"), ("d", "other", None, "dev")])
    again = Classes.from_text(classes.to_text())
    assert (again.domains, again.labels, again.groups) == (classes.domains, classes.labels, classes.groups)
    assert np.array_equal(again.table, classes.table)


def test_the_digest_follows_the_content_and_not_the_folder(pets: Manifest, tmp_path: Path) -> None:
    shutil.copytree(pets.folder, tmp_path / "copy")
    copy = Manifest.load(tmp_path / "copy")
    assert (copy.name, copy.digest) == ("copy", pets.digest)
    edit_manifest(copy.folder, lambda about: about["shards"][0].update(sha256="0" * 64))
    assert Manifest.load(copy.folder).digest != pets.digest


def edit_manifest(folder: Path, change) -> None:  # type: ignore[no-untyped-def]
    """Changes manifest.json in place."""
    about = json.loads((folder / "manifest.json").read_text())
    change(about)
    (folder / "manifest.json").write_text(json.dumps(about))


def test_a_set_that_is_not_there_names_those_that_are(pets: Manifest) -> None:
    with pytest.raises(ShardError, match=r"no shard set .*/pest; there are in .*: pets; did you mean pets\?"):
        Manifest.load(pets.folder.parent / "pest")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "manifest.json").unlink(),
            "no manifest.json, so it is half-written or not a shard set",
        ),
        (lambda folder: (folder / "manifest.json").write_text('{"schema": 1'), "manifest.json: damaged"),
        (lambda folder: edit_manifest(folder, lambda a: a.pop("shards")), "damaged .KeyError.'shards'"),
        (lambda folder: edit_manifest(folder, lambda a: a.update(schema=2)), "schema 2, and this version .* reads 1"),
    ],
)
def test_a_folder_that_is_not_a_whole_set_is_refused_at_load(pets: Manifest, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    damage(pets.folder)
    with pytest.raises(ShardError, match=message):
        Manifest.load(pets.folder)


def test_a_sidecar_that_does_not_fit_is_refused(pets: Manifest) -> None:
    train = pets.select("train")[0]
    with pytest.raises(ShardError, match=r"train-000000.tar.index.npy: \(4,\) rows .* says 5 samples"):
        pets.sidecar(replace(train, samples=5))
    with (pets.folder / train.file).open("ab") as file:
        file.write(b"more")
    with pytest.raises(
        ShardError, match=rf"{train.file}: {train.bytes + 4} bytes, but the manifest says {train.bytes}"
    ):
        pets.sidecar(train)
    (pets.folder / train.sidecar).unlink()
    with pytest.raises(ShardError, match=r"train-000000.tar.index.npy: cannot be read .* run `shards check"):
        pets.sidecar(train)


def test_a_tar_that_was_exchanged_is_noticed_at_the_first_read(pets: Manifest) -> None:
    """Same size, other samples: only the headers in the tar can tell."""
    train = pets.select("train")[0]
    raw = bytearray((pets.folder / train.file).read_bytes())
    raw[5] ^= 1  # one letter of the first member's name
    (pets.folder / train.file).write_bytes(raw)
    assert pets.read(train, 1)
    with pytest.raises(
        ShardError, match=r"row 0 of train-000000.tar: expected an image of \d+ bytes at byte 512, found "
    ):
        pets.read(train, 0)
    with pytest.raises(ShardError, match=r"train-000000.tar: no row 4; it has 4 samples"):
        pets.read(train, 4)


def test_changed_classes_are_refused_because_ids_would_shift(pets: Manifest, run: Run) -> None:
    text = (pets.folder / "classes.tsv").read_text()
    (pets.folder / "classes.tsv").write_text(text.replace("cat", "cow"))
    with pytest.raises(ShardError, match=r"classes.tsv: changed after the set was made"):
        _ = Manifest.load(pets.folder).classes
    assert run("show", pets.folder).code == 2
