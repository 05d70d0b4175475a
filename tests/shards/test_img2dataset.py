"""`shards make img2dataset`: WebDataset tars of others, read in place."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from shards.errors import ShardError
from shards.manifest import Manifest
from shards.place import Span
from shards.record import Record
from tests.shards.conftest import Run, picture
from tests.shards.sourcing import read, serve

ABOUT = {"caption": "a thing", "url": "http://a/1.jpg", "status": "success", "error_message": None, "exif": "{}" * 99}


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """Members in this order, with the PAX headers that webdataset's float times cost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1700000000.5
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, seed: int, **fields: Any) -> dict[str, bytes]:
    """What img2dataset writes of one image."""
    about = json.dumps(ABOUT | {"key": key} | fields, indent=4).encode()
    return {f"{key}.jpg": picture(seed), f"{key}.json": about, f"{key}.txt": b"a thing"}


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    """Two tars as img2dataset leaves them: 8 images of 4 products of 2 brands."""
    for part in range(2):
        members: dict[str, bytes] = {}
        for view in range(4):
            number = 4 * part + view
            members |= sample(f"{part:05d}{view:04d}", number, product=f"p{number // 2}", brand=number // 4, shop="web")
        write_tar(tmp_path / f"out/{part:05d}.tar", members)
        (tmp_path / f"out/{part:05d}_stats.json").write_text("{}")
        (tmp_path / f"out/{part:05d}.parquet").write_bytes(b"not looked at")
    return tmp_path / "out"


def test_samples_become_records_without_being_unpacked(fetched: Path) -> None:
    fields = ("--label-field", "product", "--group-field", "brand", "--domain-field", "shop")
    records = list(read("img2dataset", fetched, *fields))
    assert [record.place.read() for record in records] == [picture(seed) for seed in range(8)]
    assert [(r.domain, r.label, r.group) for r in records] == [("web", f"p{n // 2}", str(n // 4)) for n in range(8)]
    one = records[5]
    assert one.source == "00001/000010001.jpg"
    assert one.extra == {"caption": "a thing", "url": "http://a/1.jpg", "status": "success", "key": "000010001"}
    assert (one.num_bytes, one.changed_at) == (len(picture(5)), (fetched / "00001.tar").stat().st_mtime)
    assert isinstance(one.place, Span)
    assert one.place.path == str(fetched / "00001.tar")


def test_samples_without_a_label_are_distractors(fetched: Path) -> None:
    records = list(read("img2dataset", fetched / "00000.tar", "--domain", "noise"))
    assert [(r.domain, r.label, r.labels, r.problem) for r in records] == [("noise", None, (), None)] * 4
    assert records[0].source == "00000/000000000.jpg"


def test_a_set_is_made_of_them(run: Run, fetched: Path, tmp_path: Path) -> None:
    ran = run("make", "img2dataset", fetched, "--label-field", "product", "--out", tmp_path / "shop")
    assert ran.code == 0, ran.err
    assert "unverified" not in ran.err
    manifest = Manifest.load(tmp_path / "shop")
    assert manifest.classes.class_names() == [f"shop/p{n}" for n in range(4)]
    assert run("check", tmp_path / "shop").code == 0


def test_plain_webdataset_tars_are_cut_as_webdataset_cuts_them(tmp_path: Path) -> None:
    tariterators = pytest.importorskip("webdataset.tariterators")
    names = [
        "a/1.jpg",
        "LICENSE",
        "a/1.cls",
        "a/1.seg.png",
        "a.b/1.PNG",
        "a.b/1.cls",
        "2.input.jpg",
        "3.webp",
        ".hid.jpg",
        "README",
    ]
    members = {name: b"7 " if name.endswith("cls") else picture(seed) for seed, name in enumerate(names)}
    tar = write_tar(tmp_path / "t.tar", members)
    with tar.open("rb") as stream:
        files = (one | {"__url__": "t"} for one in tariterators.tar_file_iterator(stream))
        theirs = list(tariterators.group_by_keys(files))
    expected = [one for one in theirs if {"jpg", "png", "webp"} & one.keys()]
    records = list(read("img2dataset", tar))
    assert [record.source for record in records] == ["t/a/1.jpg", "t/a.b/1.PNG", "t/3.webp"]
    assert [record.source.rpartition(".")[0] for record in records] == [f"t/{one['__key__']}" for one in expected]
    assert [record.place.read() for record in records] == [
        next(one[kind] for kind in ("jpg", "png", "webp") if kind in one) for one in expected
    ]
    assert [record.label for record in records] == ["7", "7", None]


def only(tmp_path: Path, members: dict[str, bytes], *words: str) -> Record:
    """The one record of these members."""
    (record,) = read("img2dataset", write_tar(tmp_path / "t.tar", members), *words)
    return record


def test_a_list_of_labels_gives_several(tmp_path: Path) -> None:
    members = sample("1", 1, tags=["red", 3, "red", None])
    assert only(tmp_path, members, "--label-field", "tags").labels == ("3", "red")


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        (sample("1", 1) | {"1.png": picture(2)}, "several images in one sample: jpg, png"),
        ({"1.jpg": picture(1)}, "no .json next to it in the tar"),
        ({"1.jpg": picture(1), "1.json": b"{"}, "its .json is not JSON"),
        ({"1.jpg": picture(1), "1.json": b"[" * 100_000}, "its .json is not JSON (nested too deeply)"),
        ({"1.jpg": picture(1), "1.json": b'{"label": "\\ud800"}'}, "its .json is not JSON"),
        ({"1.jpg": picture(1), "1.json": b"[]"}, "its .json is not an object"),
        ({"1.jpg": picture(1), "1.json": b"\xff"}, "1.json is not UTF-8"),
        (sample("1", 1, label={"id": 1}), "its label is neither a word nor a list of words"),
    ],
)
def test_a_sample_that_is_not_clear_has_a_problem(tmp_path: Path, members: dict[str, bytes], problem: str) -> None:
    good = sample("0", 0, label="a")
    tar = write_tar(tmp_path / "t.tar", good | members)
    fine, record = read("img2dataset", tar, "--label-field", "label")
    assert fine.problem is None
    assert problem in str(record.problem)
    assert record.source == "t/1.jpg"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--label-field", "prduct"],
            r"--label-field prduct: no sample has this field; there are: .* did you mean product",
        ),
        (["--group-field", "nothing"], "--group-field nothing: no sample has this field; there are: caption, url"),
    ],
)
def test_a_field_that_no_sample_has_is_refused(fetched: Path, words: list[str], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        list(read("img2dataset", fetched, *words))


def test_roots_without_tars_are_refused(tmp_path: Path, fetched: Path) -> None:
    (tmp_path / "packed").mkdir()
    with pytest.raises(ShardError, match=r"packed: no .tar in it or below$"):
        list(read("img2dataset", tmp_path / "packed"))
    (tmp_path / "packed/0.tar.gz").touch()
    with pytest.raises(ShardError, match=r"no .tar in it or below; 0.tar.gz is compressed, unpack such files"):
        list(read("img2dataset", tmp_path / "packed"))
    with pytest.raises(ShardError, match="nowhere: no such folder or tar"):
        list(read("img2dataset", tmp_path / "nowhere"))
    with pytest.raises(ShardError, match=r"00000.parquet: neither a folder nor a .tar"):
        list(read("img2dataset", fetched / "00000.parquet"))
    with pytest.raises(ShardError, match=r"no images in the tars; image members end in .bmp"):
        list(read("img2dataset", write_tar(tmp_path / "text.tar", {"1.txt": b"a"})))
    (fetched / "00001.tar").write_bytes((fetched / "00001.tar").read_bytes()[:3000])
    with pytest.raises(ShardError, match=r"out/00001.tar: .*copy or download it again"):
        list(read("img2dataset", fetched))


def test_tars_behind_a_url_are_read_in_place(fetched: Path) -> None:
    expected = [(record.source, record.place.read()) for record in read("img2dataset", fetched)]
    with serve(fetched) as server:
        for root in (server.url, f"file://{fetched}"):
            records = read("img2dataset", root)
            assert [(record.source, record.place.read()) for record in records] == expected
        assert len(list(read("img2dataset", f"{server.url}/00001.tar?signature=1"))) == 4


def test_no_list_of_samples_is_held(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for number in range(4000):
        members |= {f"{number:050d}.jpg": b"x", f"{number:050d}.json": b'{"label": "a"}'}
    tar = write_tar(tmp_path / "t.tar", members)
    del members
    tracemalloc.start()
    try:
        assert sum(1 for _ in read("img2dataset", tar, "--label-field", "label")) == 4000
        assert tracemalloc.get_traced_memory()[1] < 400_000  # the names alone are 400 kB
    finally:
        tracemalloc.stop()
