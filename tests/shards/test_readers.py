"""Other people's readers on our sets."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from shards.manifest import Manifest
from shards.place import Inline
from shards.record import Record
from shards.ustar import pack_header, parse_header
from tests.shards.conftest import Run, picture


def test_webdataset_reads_every_sample(pets: Manifest) -> None:
    webdataset = pytest.importorskip("webdataset")
    for shard in pets.shards:
        read = list(webdataset.WebDataset(str(pets.folder / shard.file), shardshuffle=False))
        ours = [pets.read(shard, row) for row in range(shard.samples)]
        assert [sample["__key__"] for sample in read] == [sample.key for sample in ours]
        assert [sample["jpg"] for sample in read] == [sample.image for sample in ours]
        assert [json.loads(sample["json"]) for sample in read] == [sample.meta for sample in ours]


def test_the_tar_command_unpacks_every_sample(pets: Manifest, tmp_path: Path) -> None:
    train = pets.select("train")[0]
    subprocess.run(["tar", "-xf", pets.folder / train.file, "-C", tmp_path], check=True)
    sample = pets.read(train, 0)
    assert (tmp_path / f"{sample.key}.jpg").read_bytes() == sample.image


def test_long_names_are_cut_and_still_found(run: Run, tmp_path: Path) -> None:
    """63 letters of two bytes each are 378 characters once encoded; a domain may fill the prefix of the header."""
    from shards.maker import Order, make_set

    records = [
        Record("м" * 60, f"{'ж' * 63}{n % 5}", f"{'ж' * 63}{n % 5}/{'ъ' * 63}{n}.jpg", Inline(picture(n)))
        for n in range(20)
    ]
    manifest = make_set(Order(out=tmp_path / "long", config={"source": "test"}, given={}), records).manifest
    assert run("check", manifest.folder).code == 0
    found = {manifest.read(shard, row).meta["source"] for shard in manifest.shards for row in range(shard.samples)}
    assert found == {record.source for record in records}


@pytest.mark.parametrize(("folder", "name"), [("a", "b.jpg"), ("d" * 155, "n" * 100), ("d" * 60, "n" * 60)])
def test_our_header_is_tarfiles_header(folder: str, name: str) -> None:
    info = tarfile.TarInfo(f"{folder}/{name}")
    info.size = 123_456
    assert parse_header(pack_header(folder, name, 123_456)) == (f"{folder}/{name}", 123_456)
    parsed = tarfile.TarInfo.frombuf(pack_header(folder, name, 123_456), "utf-8", "strict")
    assert (parsed.name, parsed.size, parsed.mtime, parsed.isreg()) == (info.name, info.size, 0, True)


def test_counts_for_open_clip_cover_all_shards_and_those_for_wids_the_training_shards(pets: Manifest) -> None:
    sizes = json.loads((pets.folder / "sizes.json").read_text())
    assert sizes == {shard.file: shard.samples for shard in pets.shards}
    wids = json.loads((pets.folder / "wids.json").read_text())
    assert wids["wids_version"] == 1
    assert [(entry["url"], entry["nsamples"]) for entry in wids["shardlist"]] == [
        (shard.file, shard.samples) for shard in pets.select("train")
    ]
