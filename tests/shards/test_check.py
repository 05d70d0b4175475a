"""`shards check` finds what is broken and says where."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shards.manifest import Manifest
from tests.shards.conftest import Run, picture


def test_a_sound_set_passes(pets: Manifest, run: Run) -> None:
    ran = run("check", pets.folder)
    assert (ran.code, ran.out) == (0, f"{pets.folder}: no problem in 19 samples of {len(pets.shards)} shards\n")


def flip_pixel_byte(folder: Path) -> None:
    """Damages the image of train-000000, sample 1, beyond its header."""
    manifest = Manifest.load(folder)
    row = manifest.sidecar(manifest.select("train")[0])[1]
    raw = bytearray((folder / "train-000000.tar").read_bytes())
    start, end = int(row["image_at"]) + 20, int(row["image_at"] + row["image_bytes"])
    raw[start:end] = bytes(end - start)
    (folder / "train-000000.tar").write_bytes(raw)


def shift_offsets(folder: Path) -> None:
    """A sidecar that points elsewhere."""
    rows = np.load(folder / "train-000000.tar.index.npy")
    rows["image_at"][2] += 512
    np.save(folder / "train-000000.tar.index.npy", rows)


def change_label(folder: Path) -> None:
    """A sidecar with another class."""
    rows = np.load(folder / "dev-query-000000.tar.index.npy")
    rows["label"][0] = (rows["label"][0] + 1) % 5
    np.save(folder / "dev-query-000000.tar.index.npy", rows)


def cut(folder: Path) -> None:
    """A copy that was interrupted."""
    raw = (folder / "train-000000.tar").read_bytes()
    (folder / "train-000000.tar").write_bytes(raw[: len(raw) // 2])


def change_sizes(folder: Path) -> None:
    """Counts that are not true."""
    (folder / "sizes.json").write_text(json.dumps({"train-000000.tar": 3}))


def add_shard(folder: Path) -> None:
    """A tar that nobody listed."""
    (folder / "train-000099.tar").write_bytes(picture(1))


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (
            flip_pixel_byte,
            ["train-000000.tar: the bytes changed", "train-000000.tar: sample 1, 'pets/", "image is broken"],
        ),
        (
            shift_offsets,
            ["train-000000.tar: sample 2, 'pets/", "the sidecar says (offset, size, offset, size, key hash)"],
        ),
        (
            change_label,
            ["dev-query-000000.tar: sample 0, 'pets/", "the sidecar class", "images in dev, the shards have"],
        ),
        (cut, ["train-000000.tar: ", "bytes, but the manifest says"]),
        (change_sizes, ["sizes.json: its counts are not the manifest's"]),
        (add_shard, ["train-000099.tar: not in the manifest"]),
    ],
)
def test_damage_is_named_by_shard_and_sample(pets: Manifest, run: Run, damage, messages: list[str]) -> None:  # type: ignore[no-untyped-def]
    damage(pets.folder)
    ran = run("check", pets.folder)
    assert ran.code == 1
    for message in messages:
        assert message in ran.out


def test_checking_what_is_no_set_is_the_users_mistake(run: Run, tmp_path: Path) -> None:
    ran = run("check", tmp_path / "none")
    assert (ran.code, ran.err) == (2, f"shards: no shard set {tmp_path / 'none'}\n")
