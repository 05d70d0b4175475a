"""`shards bench`, small: everything is measured and told; how fast it was is nobody's concern here."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.bench.contestants import Case, Make
from shards.bench.others import python_tarfile, tar_all
from shards.bench.photos import draw_photos, write_photos
from shards.bench.shardwriter import shrink
from shards.classes import Classes, read_groups, write_groups
from shards.manifest import LABELS, SIDECAR, Manifest
from shards.npy import read_rows
from shards.pool import usable_cpus
from tests.shards.conftest import Run, picture


def test_every_contestant_has_a_row(run: Run, tmp_path: Path) -> None:
    ran = run("bench", "--images", 20, "--rounds", 1, "--scratch", tmp_path, "--json", tmp_path / "bench.json")
    assert ran.code == 0, ran.err
    names = [line.split("  ")[0] for line in ran.out.splitlines()]
    workers = [f", {usable_cpus()} workers"] if usable_cpus() > 1 else []
    for name in (
        "tar -cf, photos and jsons",
        "tar -cf, photos only",
        "Python's tarfile",
        "webdataset ShardWriter",
        "ShardWriter, then sha256 of its tars",
        *(f"shards make{more}" for more in ("", *workers, ": writing")),
        *(f"shards make, pixels checked{more}" for more in ("", *workers)),
        *(f"shards make --short-side 256{more}" for more in ("", *workers)),
        "read, sha256, write",
        "sha256 alone",
        "shutil.copyfile",
        "ShardWriter and Pillow",
        "decode at 1/2, encode",
    ):
        assert names.count(name) == 1, name
    told = json.loads((tmp_path / "bench.json").read_text())
    assert told["write"]["photos"]["count"] == 20
    assert {len(one["turns"]) for one in told["write"]["seconds"].values()} == {1}
    assert 0.9 < told["write"]["ssim"]["lowest"] <= told["write"]["ssim"]["mean"] < 1
    assert [goal["wanted"] for goal in told["write"]["goals"]] == [">= 2.0", ">= 0.6", ">= 2.5", ">= 0.98"]
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_it_imports_no_torch_itself(run: Run, tmp_path: Path) -> None:
    """Other tests of this process may have; so only what it adds counts."""
    before = set(sys.modules)
    assert run("bench", "open", "--images", 1000, "--rounds", 1, "--scratch", tmp_path).code == 0
    assert not {"torch", "webdataset"} & (set(sys.modules) - before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_opening_are_told_too(run: Run, tmp_path: Path) -> None:
    memory = run("bench", "memory", "--images", 3000, "--scratch", tmp_path)
    assert memory.code == 0, memory.err
    opening = run("bench", "open", "--images", 25_000, "--rounds", 2, "--scratch", tmp_path)
    for name in ("listing", "writing", "finishing", "memory of shards make, 3,000 images"):
        assert name in memory.out
    for name in (
        "manifest.json",
        "1,000 random samples' rows",
        "all sidecars",
        "classes.tsv",
        "25,000 samples in 3 shards",
    ):
        assert name in opening.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--images", 3), "--images 3: at least 20 to write"),
        (("--photos", "nowhere"), "nowhere: no such folder"),
        (("--scratch", "nowhere"), "--scratch nowhere: No such file or directory"),
        (("wirte",), "invalid choice: 'wirte'"),
    ],
)
def test_a_mistake_is_one_line(run: Run, words: tuple[object, ...], message: str) -> None:
    ran = run("bench", *words)
    assert (ran.code, message in ran.err) == (2, True), ran.err


def test_photos_are_all_different_and_as_large_as_a_cameras() -> None:
    photos = [photo for _, photo in draw_photos(42)]
    assert len(set(photos)) == 42
    assert 150_000 < np.mean([len(photo) for photo in photos]) < 160_000
    assert {Image.open(io.BytesIO(photo)).size for photo in photos[::20]} == {(930, 700)}


def test_everybody_writes_the_same_samples(tmp_path: Path) -> None:
    """Those of a folder of somebody's own, too."""
    (tmp_path / "own").mkdir()
    for number in range(25):
        (tmp_path / f"own/{number}.png").write_bytes(picture(number, kind="PNG"))
    names = tuple(write_photos(tmp_path / "photos", 22, tmp_path / "own"))
    assert len(names) == 22
    found = []
    for number, contestant in enumerate((Make(), tar_all, python_tarfile)):
        case = Case(tmp_path / "photos", names, tmp_path / str(number))
        case.out.mkdir()
        contestant(case)
        found.append(contents_of(case.out))
    assert len(found[0]) == 22
    assert found[0] == found[1] == found[2]


def contents_of(folder: Path) -> dict[str, tuple[bytes, bytes]]:
    """(image, json) by source, of all tars below a folder."""
    import tarfile

    found = {}
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            data = [tar.extractfile(member).read() for member in tar if member.isfile()]  # type: ignore[union-attr]
        for image, meta in zip(data[::2], data[1::2], strict=True):
            content = json.loads(meta)
            found[content["source"]] = (image, json.dumps(content, sort_keys=True).encode())
    return found


def test_the_other_way_of_making_photos_smaller_enlarges_none() -> None:
    sizes = {side: Image.open(io.BytesIO(shrink(picture(1, size=side)))).size for side in ((600, 400), (40, 30))}
    assert sizes == {(600, 400): (384, 256), (40, 30): (40, 30)}


def test_an_empty_set_of_the_benchmark_is_a_set(tmp_path: Path) -> None:
    from shards.bench.opening import write_empty_set

    write_empty_set(tmp_path / "large", 12_345)
    manifest = Manifest.load(tmp_path / "large")
    assert [len(manifest.sidecar(shard)) for shard in manifest.shards] == [10_000, 2_345]
    assert len(manifest.classes) == 123


@pytest.mark.parametrize(
    "dtype", [SIDECAR, LABELS, np.dtype("<i8"), np.dtype([("a", ">u4")]), np.dtype([("a", "<f4")])]
)
@pytest.mark.parametrize("num_rows", [0, 1, 1000])
def test_a_sidecar_opened_the_short_way_is_what_numpy_opens(tmp_path: Path, dtype: np.dtype, num_rows: int) -> None:
    rows = np.frombuffer(np.random.default_rng(0).bytes(num_rows * dtype.itemsize), dtype)
    np.save(tmp_path / "rows.npy", rows)
    read = read_rows(tmp_path / "rows.npy")
    assert (read.dtype, read.shape, read.tobytes()) == (dtype, (num_rows,), rows.tobytes())
    assert not read.flags.writeable


@pytest.mark.parametrize("field", ["|O", "<u3", "<U4"])
def test_a_sidecar_of_something_else_is_refused(tmp_path: Path, field: str) -> None:
    """Objects would be read as addresses in memory."""
    header = f"{{'descr': [('a', '{field}')], 'fortran_order': False, 'shape': (2000,), }}".encode().ljust(117) + b"\n"
    (tmp_path / "rows.npy").write_bytes(b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + bytes(64))
    with pytest.raises(ValueError, match="not a readable"):
        read_rows(tmp_path / "rows.npy")


def test_tables_of_names_come_back_whatever_is_in_the_names() -> None:
    rng = np.random.default_rng(0)
    letters = ["a", "\\", "\t", "\n", "\r", "n", "t", "\u2028", "\x85", "é", "\udc80"]
    for count in range(40):
        names = ["".join(rng.choice(letters, rng.integers(5))) for _ in range(3 * count)]
        columns = tuple(names[:count]), tuple(names[count : 2 * count]), tuple(names[2 * count :])
        classes = Classes(*columns, rng.integers(0, 1000, (3, count)))
        again = Classes.from_text(classes.to_text())
        assert (again.domains, again.labels, again.groups) == columns
        assert np.array_equal(again.table, classes.table)
        groups = [("", ""), *zip(columns[0], columns[1], strict=True)]
        assert read_groups(write_groups(groups)) == groups


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\td\tc\t\t1\t0", "line 3 is not row 1 of 7 columns"),
        ("1\td\tc\t\t1\t0\t0\t0", "line 3 is not row 1 of 7 columns"),
        ("2\td\tc\t\t1\t0\t0", "line 3 is not row 1 of 7 columns"),
        ("1\td\tc\t\t1\t0\n2\t2\td\te\t\t1\t0\t0", "line 3 is not row 1 of 7 columns"),
        ("1\td\tc\t\t1\t0\tmany", "many"),
    ],
)
def test_a_damaged_table_of_classes_is_named_by_its_line(line: str, message: str) -> None:
    text = f"id\tdomain\tlabel\tgroup\ttrain\tdev\ttest\n0\td\tb\t\t1\t0\t0\n{line}\n"
    with pytest.raises(ValueError, match=message):
        Classes.from_text(text)
