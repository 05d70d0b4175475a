"""Other people's readers on our sets: several shards of files as they are, and of images made anew."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.manifest import Manifest, Sample, Shard
from shards.place import Inline
from shards.record import Record
from shards.ustar import pack_header, parse_header
from tests.shards.conftest import Run, picture

LOOKS = {"as they are": (), "made anew": ("--short-side", 16, "--format", "webp")}


@pytest.fixture(params=LOOKS)
def made(request: pytest.FixtureRequest, run: Run, release: Path, tmp_path: Path) -> Manifest:
    """19 images of several kinds in shards of at most 4 samples."""
    (release / "cat/0.jpg").rename(release / "cat/first one.été.jpg")
    (release / "dog/1.jpg").rename(release / "dog/1.jpeg")
    (release / "fox/1.jpg").write_bytes(picture(7, kind="PNG"))
    ran = run("make", "folder", release, "--out", tmp_path / "made", "--shard-samples", 4, *LOOKS[request.param])
    assert ran.code == 0, ran.err
    made = Manifest.load(tmp_path / "made")
    assert len(made.select("train")) > 1
    return made


def samples_of(manifest: Manifest, *shards: Shard) -> list[Sample]:
    """As our own reader has them."""
    return [manifest.read(shard, row) for shard in shards for row in range(shard.samples)]


def image_of(sample: dict[str, object]) -> object:
    """The one member of a foreign sample that is neither the json nor about the sample."""
    (found,) = (data for name, data in sample.items() if not name.startswith("__") and name.strip(".") != "json")
    return found


def test_webdataset_reads_every_sample(made: Manifest) -> None:
    webdataset = pytest.importorskip("webdataset")
    for shard in made.shards:
        read = list(webdataset.WebDataset(str(made.folder / shard.file), shardshuffle=False))
        ours = samples_of(made, shard)
        assert [sample["__key__"] for sample in read] == [sample.key for sample in ours]
        assert [image_of(drop(sample)) for sample in read] == [sample.image for sample in ours]
        assert [json.loads(sample["json"]) for sample in read] == [sample.meta for sample in ours]


def drop(sample: dict[str, object]) -> dict[str, object]:
    """Without what webdataset says of where it was."""
    return {name: value for name, value in sample.items() if not name.startswith("__")}


def test_webdataset_decodes_shards_by_a_range_and_mixes_them(made: Manifest) -> None:
    webdataset = pytest.importorskip("webdataset")
    train = made.select("train")
    url = f"{made.folder}/train-{{000000..{len(train) - 1:06d}}}.tar"
    pipeline = webdataset.WebDataset(url, shardshuffle=False).shuffle(8).decode("rgb8").to_tuple("jpg;png;webp", "json")
    read = {meta["source"]: pixels for pixels, meta in pipeline}
    expected = {sample.meta["source"]: sample.image for sample in samples_of(made, *train)}
    assert read.keys() == expected.keys()
    for source, pixels in read.items():
        assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(expected[source])).convert("RGB")))


def test_wids_reads_the_training_shards_by_number(
    made: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until its version 1.0 webdataset came with wids; now it is a package of its own."""
    wids = pytest.importorskip("wids")
    there = made.folder / "wids.json"
    listed = wids.ShardListDataset(str(there), cache_dir=str(tmp_path / "cache"), keep=True, transformations=[])
    expected = samples_of(made, *made.select("train"))
    assert len(listed) == len(expected)
    order = np.random.default_rng(0).permutation(len(expected)).tolist()
    for number in order:
        theirs, ours = listed[number], expected[number]
        assert theirs["__key__"] == ours.key
        assert image_of(theirs).read() == ours.image  # type: ignore[attr-defined]
        assert json.loads(theirs[".json"].read()) == ours.meta
    assert made.name in capsys.readouterr().err


def test_the_tar_command_unpacks_every_sample(made: Manifest, tmp_path: Path) -> None:
    for shard in made.shards:
        folder = tmp_path / shard.file
        folder.mkdir()
        subprocess.run(["tar", "-xf", made.folder / shard.file, "-C", folder], check=True)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        assert len(files) == 2 * shard.samples
        for sample in samples_of(made, shard):
            (image,) = (
                path for path in files if path.suffix != ".json" and str(path).startswith(f"{folder}/{sample.key}.")
            )
            assert image.read_bytes() == sample.image
            assert json.loads((folder / f"{sample.key}.json").read_text()) == sample.meta


def test_pythons_tarfile_lists_every_sample(made: Manifest) -> None:
    for shard in made.shards:
        with tarfile.open(made.folder / shard.file, "r:") as tar:
            members = tar.getmembers()
        assert [member.name.rpartition(".")[0] for member in members[::2]] == [s.key for s in samples_of(made, shard)]
        assert [member.name for member in members[1::2]] == [f"{s.key}.json" for s in samples_of(made, shard)]
        assert {(member.mtime, member.uid, member.gid, member.mode) for member in members} == {(0, 0, 0, 0o644)}
        assert not any(member.pax_headers for member in members)


def test_long_names_are_cut_and_still_found(run: Run, tmp_path: Path) -> None:
    """63 letters of two bytes each are 378 characters once encoded; a domain may fill the prefix of the header."""
    from shards.making.maker import Order, make_set

    records = [
        Record("м" * 60, f"{'ж' * 63}{n % 5}", f"{'ж' * 63}{n % 5}/{'ъ' * 63}{n}.jpg", Inline(picture(n)))
        for n in range(20)
    ]
    manifest = make_set(Order(out=tmp_path / "long", config={"source": "test"}, given={}), records).manifest
    assert run("check", manifest.folder).code == 0
    found = {sample.meta["source"] for sample in samples_of(manifest, *manifest.shards)}
    assert found == {record.source for record in records}


@pytest.mark.parametrize(("folder", "name"), [("a", "b.jpg"), ("d" * 155, "n" * 100), ("d" * 60, "n" * 60)])
@pytest.mark.parametrize("num_bytes", [0, 123_456, 8**11 - 1])
def test_our_header_is_tarfiles_header(folder: str, name: str, num_bytes: int) -> None:
    block = pack_header(folder, name, num_bytes)
    assert parse_header(block) == (f"{folder}/{name}", num_bytes)
    parsed = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    assert (parsed.name, parsed.size, parsed.mtime, parsed.isreg()) == (f"{folder}/{name}", num_bytes, 0, True)


def count_for_open_clip(shards: list[Path]) -> int:
    """As open_clip does for `--train-data a.tar::b.tar`: a file beside the shards has the counts by file name."""
    counts = json.loads((shards[0].parent / "sizes.json").read_text())
    return sum(int(counts[shard.name]) for shard in shards)


def test_counts_for_open_clip_cover_all_shards(made: Manifest) -> None:
    for split, role in (("train", "train"), ("dev", "query"), ("dev", "index")):
        shards = made.select(split, role)
        expected = sum(shard.samples for shard in shards)
        assert count_for_open_clip([made.folder / shard.file for shard in shards]) == expected > 0


def test_counts_for_wids_are_those_of_the_training_shards(made: Manifest) -> None:
    wids = json.loads((made.folder / "wids.json").read_text())
    assert (wids["wids_version"], wids["name"]) == (1, made.name)
    for entry, shard in zip(wids["shardlist"], made.select("train"), strict=True):
        size = (made.folder / entry["url"]).stat().st_size
        assert (entry["url"], entry["nsamples"], entry["filesize"]) == (shard.file, shard.samples, size)
