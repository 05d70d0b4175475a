"""`shards make table`: columns, paths, and tables inside tars."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from shards.manifest import Manifest
from tests.shards.conftest import Run, files_of

Rows = list[dict[str, Any]]
ALLOW = ("--max-skipped", "30%")


@pytest.fixture
def rows(release: Path) -> Rows:
    """A table of the release: three training classes, one class as query and index, one image without a label."""
    splits = {"cat": "train", "dog": "train", "fox": "train"}
    listed: Rows = []
    for path in sorted(release.rglob("*.jpg")):
        label = path.parent.name
        split = splits.get(label) or ("dev_query" if path.name == "0.jpg" else "dev_index")
        listed.append({"image": str(path.relative_to(release)), "label": label, "split": split, "colour": "brown"})
    listed[-1] |= {"label": "", "split": "dev_distractor"}
    return listed


def write_table(path: Path, rows: Rows) -> Path:
    """Any of the four kinds, by the name."""
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pytest.importorskip("pyarrow").Table.from_pylist(
            [{k: v or None for k, v in row.items()} for row in rows]
        )
        parquet.write_table(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        stream = io.StringIO()
        table = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writeheader()
        table.writerows(rows)
        path.write_text(stream.getvalue(), encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_all_kinds_of_table_give_the_same_set(run: Run, release: Path, tmp_path: Path, rows: Rows, kind: str) -> None:
    for suffix in ("csv", kind):
        table = write_table(release / f"table.{suffix}", rows)
        ran = run("make", "table", table, "--out", tmp_path / suffix, "--domain", "pets")
        assert ran.code == 0, ran.err
    one, other = Manifest.load(tmp_path / "csv"), Manifest.load(tmp_path / kind)
    assert one.digest == other.digest
    assert {(s.split, s.role): s.samples for s in one.shards} == {
        ("train", "train"): 13,
        ("dev", "query"): 2,
        ("dev", "index"): 3,
        ("dev", "distractor"): 1,
    }
    distractor = one.read(one.select("dev", "distractor")[0], 0)
    assert (distractor.meta["label"], distractor.meta["extra"]) == (None, {"colour": "brown"})
    assert one.sidecar(one.select("dev", "distractor")[0])["label"].tolist() == [-1]


def test_a_tar_is_read_in_place(run: Run, release: Path, tmp_path: Path, rows: Rows) -> None:
    write_table(release / "table.csv", rows)
    with tarfile.open(tmp_path / "release.tar", "w") as tar:
        tar.add(release, arcname=".")
    assert run("make", "table", tmp_path / "release.tar", "--out", tmp_path / "one/pets").code == 0
    assert run("make", "table", release / "table.csv", "--out", tmp_path / "two/pets").code == 0
    images = ("--images", tmp_path / "release.tar")
    assert run("make", "table", release / "table.csv", *images, "--out", tmp_path / "three/pets").code == 0
    sets = [files_of(tmp_path / place / "pets") for place in ("one", "two", "three")]
    for files in sets:
        del files["manifest.json"]  # says where the input lay
    assert sets[0] == sets[1] == sets[2]
    ran = run("make", "table", tmp_path / "release.tar", "--table-member", "tables.csv", "--out", tmp_path / "x")
    assert "'tables.csv' is not in" in ran.err
    assert "did you mean table.csv?" in ran.err


def test_a_compressed_tar_is_refused_with_the_way_out(run: Run, release: Path, tmp_path: Path, rows: Rows) -> None:
    write_table(release / "table.csv", rows)
    with tarfile.open(tmp_path / "release.tar", "w:gz") as tar:
        tar.add(release, arcname=".")
    ran = run("make", "table", tmp_path / "release.tar", "--out", tmp_path / "x")
    assert (ran.code, ran.err) == (
        2,
        f"shards: {tmp_path / 'release.tar'}: compressed; unpack it to a plain .tar or a folder first\n",
    )


def test_columns_go_by_the_names_that_are_given(run: Run, release: Path, tmp_path: Path, rows: Rows) -> None:
    renamed = [{"path": r["image"], "id": f"pets/{r['label']}" if r["label"] else "", "dom": "pets"} for r in rows]
    split = [{"split": r["split"].partition("_")[0], "role": r["split"].partition("_")[2]} for r in rows]
    table = write_table(release / "table.csv", [a | b for a, b in zip(renamed, split, strict=True)])
    columns = ("--image-column", "path", "--label-column", "id", "--domain-column", "dom", "--group-column", "dom")
    ran = run("make", "table", table, "--out", tmp_path / "all", *columns)
    assert ran.code == 0, ran.err
    manifest = Manifest.load(tmp_path / "all")
    assert manifest.classes.class_names() == [f"pets/{label}" for label in ("cat", "dog", "fox", "hen", "owl")]
    assert manifest.groups == (("", ""), ("pets", "pets"))
    assert {(s.split, s.role) for s in manifest.shards} == {
        ("train", "train"), ("dev", "query"), ("dev", "index"), ("dev", "distractor")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret.jpg", "the path '../secret.jpg' leaves the images folder"),
        ("cat/../../secret.jpg", "leaves the images folder"),
        ("{tmp}/secret.jpg", "leaves the images folder"),
        ("cat/none.jpg", "no file 'cat/none.jpg' in"),
        ("cat/\0.jpg", "no file 'cat/\\x00.jpg' in"),
        ("", "row 4 names no image"),
    ],
)
def test_a_row_without_an_image_inside_the_root_is_skipped_with_the_reason(
    run: Run, release: Path, tmp_path: Path, rows: Rows, path: str, reason: str
) -> None:
    (tmp_path / "secret.jpg").write_bytes((release / "cat/0.jpg").read_bytes())
    rows[3]["image"] = path.format(tmp=tmp_path)
    table = write_table(release / "table.jsonl", rows)
    ran = run("make", "table", table, "--out", tmp_path / "pets", *ALLOW)
    assert ran.code == 0, ran.err
    assert reason in (tmp_path / "pets/skipped.csv").read_text()
    assert sum(shard.samples for shard in Manifest.load(tmp_path / "pets").shards) == len(rows) - 1


def test_a_query_whose_only_match_is_broken_is_left_out(run: Run, release: Path, tmp_path: Path, rows: Rows) -> None:
    (release / "hen/1.jpg").write_bytes(b"broken")
    ran = run("make", "table", write_table(release / "table.csv", rows), "--out", tmp_path / "pets", *ALLOW)
    assert ran.code == 0, ran.err
    assert "hen/0.jpg,no readable index image of its class is left" in (tmp_path / "pets/skipped.csv").read_text()
    manifest = Manifest.load(tmp_path / "pets")
    assert "pets/hen" not in manifest.classes.class_names()
    assert run("check", tmp_path / "pets").code == 0


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            {},
            ["--label-column", "lable"],
            "no column 'lable'; there are: image, label, split, colour; did you mean label?",
        ),
        ({}, ["--group-column", "brand"], "no column 'brand'; there are: image, label, split, colour"),
        ({}, ["--images", "nowhere"], "nowhere: no such folder or tar of images"),
        ({}, ["--table-member", "x.csv"], "--table-member x.csv: only for a .tar"),
        ({}, ["--dev-fraction", "10%"], "--dev-fraction 0.1 would not be used: the input brings its own split"),
        ({}, ["--train-only"], "--train-only, but the input puts 6 images into dev or test"),
        ({"split": "dev_qery"}, [], "pets/cat/0.jpg: split 'dev_qery' is not one of train, dev, dev_query"),
        ({"split": ""}, [], "1 of 19 images have no split (pets/cat/0.jpg)"),
        ({"label": ""}, [], "pets/cat/0.jpg: no label, but split train"),
        ({"split": "dev_distractor"}, [], "pets/cat/0.jpg: a dev_distractor with the label 'cat'"),
        ({"split": "test_query"}, [], "1 queries have no index image of their class (pets/cat/0.jpg)"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(
    run: Run, release: Path, tmp_path: Path, rows: Rows, change: dict[str, str], options: list[str], message: str
) -> None:
    rows[0] |= change
    ran = run("make", "table", write_table(release / "table.csv", rows), "--out", tmp_path / "pets", *options)
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "pets").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"image,label\n", "t.csv: no rows in the table"),
        ("t.csv", b"image,label\na.jpg,b,c\n", "t.csv: line 2 has 3 cells, the header has 2"),
        ("t.csv", b"image,image\na.jpg,b\n", "t.csv: the header has 'image' more than once"),
        ("t.csv", b"image,label\n\xff.jpg,b\n", "t.csv: not UTF-8 at byte 12"),
        ("t.csv", b"file,label\na.jpg,b\n", "no column 'image'; there are: file, label; name it with --image-column"),
        ("t.jsonl", b'{"image": "a.jpg"}\n{"image"\n', "t.jsonl: line 2 is not JSON"),
        ("t.jsonl", b"[1, 2]\n", "t.jsonl: line 1 is not an object"),
        ("t.parquet", b"PAR1 not really", "t.parquet: not a readable Parquet file"),
        ("t.xlsx", b"PK", "t.xlsx: a table ends in .csv, .tsv, .jsonl, .parquet"),
        ("t.tar", b"not a tar at all", "t.tar: not a readable tar"),
    ],
)
def test_a_file_that_is_no_table_is_refused(run: Run, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    ran = run("make", "table", tmp_path / name, "--out", tmp_path / "pets")
    assert ran.code == 2
    assert message in ran.err
