"""`shards make table`: columns, cells, paths and URLs, tables of every kind and inside tars."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import tracemalloc
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from shards import files
from shards.errors import ShardError
from shards.manifest import Manifest
from shards.place import File, Inline, Span
from shards.record import Record
from tests.shards.conftest import Run, files_of, picture
from tests.shards.sourcing import read, serve

Rows = list[dict[str, Any]]
ALLOW = ("--max-skipped", "30%")
KINDS = ("csv", "tsv", "jsonl", "parquet")

EXTRA = {"colour": "brown"}


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
        write_parquet(path, [{name: value or None for name, value in row.items()} for row in rows])
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        stream = io.StringIO()
        table = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writeheader()
        table.writerows(rows)
        path.write_text(stream.getvalue(), encoding="utf-8-sig")
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    """Parquet in small row groups."""
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=64)
    return path


def plain(record: Record) -> tuple[Any, ...]:
    """What a set is made of."""
    return (record.domain, record.label, record.source, record.group, record.split, record.place.read(), record.extra)


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_table_give_the_same_records(release: Path, rows: Rows, kind: str) -> None:
    records = list(read("table", write_table(release / f"table.{kind}", rows)))
    assert [plain(record) for record in records] == [
        ("pets", row["label"] or None, row["image"], None, row["split"], (release / row["image"]).read_bytes(), EXTRA)
        for row in rows
    ]
    one = records[3]
    status = (release / rows[3]["image"]).stat()
    assert one.place == File(str(release / rows[3]["image"]))
    assert (one.num_bytes, one.changed_at, one.problem) == (status.st_size, status.st_mtime, None)


def test_places_hold_whatever_folder_a_later_process_starts_in(
    release: Path, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(release / "table.csv", rows)
    monkeypatch.chdir(release)
    records = [*read("table", "table.csv"), *read("table", "table.csv", "--images", "../release")]
    monkeypatch.chdir(tmp_path)
    assert [record.place.read() for record in records] == [(release / row["image"]).read_bytes() for row in rows] * 2


def test_images_and_tables_in_tars_are_read_in_place(release: Path, rows: Rows, tmp_path: Path) -> None:
    write_table(release / "table.csv", rows)
    with tarfile.open(tmp_path / "release.tar", "w") as tar:
        tar.add(release, arcname=".")
    expected = [plain(record) for record in read("table", release / "table.csv")]
    for words in ([tmp_path / "release.tar"], [release / "table.csv", "--images", tmp_path / "release.tar"]):
        records = list(read("table", *words))
        assert [plain(record) for record in records] == expected
        assert {type(record.place) for record in records} == {Span}
    with pytest.raises(ShardError, match=r"'tables.csv' is not in .*release.tar; there are: .* did you mean table.csv"):
        list(read("table", tmp_path / "release.tar", "--table-member", "tables.csv"))


def test_tables_and_images_come_from_a_web_server(
    release: Path, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FIRST_PAUSE_S", 0.001)
    (release / "cat/a #1?.jpg").write_bytes(picture(999))
    rows[0]["image"] = "cat/a #1?.jpg"
    expected = [(row["image"], (release / row["image"]).read_bytes()) for row in rows]
    with serve(release) as server:
        for kind in KINDS:
            write_table(release / f"table.{kind}", rows)
            records = list(read("table", f"{server.url}/table.{kind}?signature=1"))
            assert [(record.source, record.place.read()) for record in records] == expected
            assert {record.num_bytes for record in records} == {0}
        absolute = [row | {"image": f"{server.url}/{row['image']}?X-Amz-Signature=1"} for row in rows[1:]]
        absolute.append({"image": f"{server.url}/cat/0.jpg?size=2", "label": "cat", "split": "train"})
        server.failures["/cat/1.jpg"] = 2
        records = list(read("table", write_table(tmp_path / "here.jsonl", absolute)))
        host = server.url.removeprefix("http://")
        assert [record.source for record in records] == [
            *(f"{host}/{row['image']}" for row in rows[1:]),
            f"{host}/cat/0.jpg?size=2",
        ]
        assert [record.place.read() for record in records[:-1]] == [data for _, data in expected[1:]]
        with pytest.raises(ShardError, match=r"http://.*/none.csv: no such table$"):
            list(read("table", f"{server.url}/none.csv?signature=1"))
        server.failures["/table.csv"] = 99
        with pytest.raises(ShardError, match=r"/table.csv: cannot be read \(HTTP 503"):
            list(read("table", f"{server.url}/table.csv?signature=1"))


def test_columns_go_by_the_names_that_are_given(release: Path, rows: Rows) -> None:
    renamed = [{"path": r["image"], "id": f"toys/{r['label']}" if r["label"] else "", "dom": "toys"} for r in rows]
    split = [{"split": r["split"].partition("_")[0], "role": r["split"].partition("_")[2]} for r in rows]
    table = write_table(release / "table.csv", [a | b for a, b in zip(renamed, split, strict=True)])
    columns = ("--image-column", "path", "--label-column", "id", "--domain-column", "dom", "--group-column", "dom")
    records = list(read("table", table, *columns))
    assert [(r.domain, r.label, r.group, r.split) for r in records] == [
        ("toys", row["label"] or None, "toys", row["split"]) for row in rows
    ]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret.jpg", "the path '../secret.jpg' leaves the images folder"),
        ("cat/../../secret.jpg", "leaves the images folder"),
        ("{tmp}/secret.jpg", "leaves the images folder"),
        ("file://{tmp}/secret.jpg", "secret.jpg: a URL in a table starts with http, https, s3"),
        ("https://a/x.jpg::file://{tmp}/secret.jpg", "a URL in a table starts with http, https, s3"),
        ("cat/none.jpg", "no file 'cat/none.jpg' in"),
        ("cat/\0.jpg", r"no file 'cat/\x00.jpg' in"),
        ("cat", "'cat' in {tmp}/release is not a file"),
        ("https://[x/a.jpg", "Invalid IPv6 URL"),
        ("", "row 4 names no image"),
    ],
)
def test_a_row_without_an_image_inside_the_root_has_a_problem(
    release: Path, tmp_path: Path, rows: Rows, path: str, reason: str
) -> None:
    (tmp_path / "secret.jpg").write_bytes((release / "cat/0.jpg").read_bytes())
    rows[3]["image"] = path.format(tmp=tmp_path)
    records = list(read("table", write_table(release / "table.jsonl", rows)))
    assert [place for place, record in enumerate(records) if record.problem] == [3]
    assert str(records[3].problem).startswith("row 4")
    assert reason.format(tmp=tmp_path) in str(records[3].problem)
    with pytest.raises(OSError, match="No such file"):
        records[3].place.read()


def test_several_labels_come_as_text_or_as_a_list(release: Path) -> None:
    cells: dict[str, list[Any]] = {
        "a.csv": ["red, blue,red", '["x, y", 3]', "", "pets/red"],
        "b.jsonl": [["red", "blue"], [3], [], None],
    }
    for name, listed in cells.items():
        table = write_table(release / name, [{"image": f"cat/{n}.jpg", "tags": cell} for n, cell in enumerate(listed)])
        records = list(read("table", table, "--labels-column", "tags"))
        assert [record.label for record in records] == [None] * 4
        expected = {
            "a.csv": [("blue", "red"), ("3", "x, y"), (), ("red",)],
            "b.jsonl": [("blue", "red"), ("3",), (), ()],
        }
        assert [record.labels for record in records] == expected[name]
        assert {tuple(record.extra) for record in records} == {()}
    table = write_table(
        release / "c.jsonl", [{"image": "cat/1.jpg", "tags": "a|b"}, {"image": "cat/2.jpg", "tags": [[1]]}]
    )
    records = list(read("table", table, "--labels-column", "tags", "--label-separator", "|"))
    assert records[0].labels == ("a", "b")
    assert records[1].problem == "row 2: labels [[1]] are not a list of words"


def test_a_box_is_four_columns_or_one(release: Path) -> None:
    image = {"image": "cat/1.jpg", "label": "cat"}
    sides = dict(zip("abcd", (1, 2.5, 30, 40), strict=True))
    forms: list[tuple[str, dict[str, Any], list[str]]] = [
        ("four.csv", sides, ["--box-columns", "a,b,c,d"]),
        ("four.jsonl", sides, ["--box-columns", "a,b,c,d", "--box-format", "xyxy"]),
        ("sizes.csv", sides | {"c": 29, "d": 37.5}, ["--box-columns", "a,b,c,d", "--box-format", "xywh"]),
        ("list.jsonl", {"box": [1, 2.5, 30, 40]}, ["--box-columns", "box"]),
        ("text.csv", {"box": "1 2.5 30 40"}, ["--box-columns", "box"]),
        ("json.tsv", {"box": "[1, 2.5, 30, 40]"}, ["--box-columns", "box"]),
    ]
    for name, cells, words in forms:
        table = write_table(release / name, [image | cells, image | dict.fromkeys(cells)])
        boxed, bare = read("table", table, *words)
        assert (boxed.box, boxed.source, boxed.extra) == ((1.0, 2.5, 30.0, 40.0), "cat/1.jpg#1,2.5,30,40", {})
        assert (bare.box, bare.source, bare.problem) == (None, "cat/1.jpg", None)


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ([1, 2, 3], "the box [1, 2, 3] is not four numbers"),
        ([1, 2, 3, "wide"], "is not four numbers"),
        ([1, 2, 3, None], "is not four numbers"),
        ([1, 2, 3, float("inf")], "is not four numbers"),
        ([1, 2, True, 4], "is not four numbers"),
        ([[1, 2], 3, 4, 5], "is not four numbers"),
        ({"left": 1}, "is not four numbers"),
        (7, "the box 7 is not four numbers"),
        ("1,2,3", "is not four numbers"),
        ([1, 2, 1, 5], "the box [1, 2, 1, 5] has no area; is --box-format xyxy right?"),
        ([5, 9, 7, 4], "has no area"),
    ],
)
def test_a_bad_box_is_the_records_problem(release: Path, box: Any, problem: str) -> None:
    table = release / "t.jsonl"
    table.write_text(json.dumps({"image": "cat/1.jpg", "label": "cat", "box": box}) + "\n")
    (record,) = read("table", table, "--box-columns", "box")
    assert problem in str(record.problem)
    assert (record.source, record.label, record.box) == ("cat/1.jpg", "cat", None)


def test_parquet_may_hold_the_images_themselves(release: Path) -> None:
    data = [picture(place) for place in range(100)]
    structs = [{"image": {"bytes": d, "path": "image.jpg"}, "label": n % 5, "mask": b"\0"} for n, d in enumerate(data)]
    structs[7]["image"] = {"bytes": None, "path": "cat/1.jpg"}
    records = list(read("table", write_parquet(release / "hf.parquet", structs)))
    assert [record.place.read() for record in records[:7]] == data[:7]
    assert records[7].place == File(str(release / "cat/1.jpg"))
    assert [record.source for record in records[6:9]] == ["row-7/image.jpg", "cat/1.jpg", "row-9/image.jpg"]
    assert {(record.label, tuple(record.extra)) for record in records} == {(str(n), ()) for n in range(5)}
    assert records[0].num_bytes == len(data[0])
    assert records[0].changed_at == (release / "hf.parquet").stat().st_mtime
    named = [{"image": f"a/{n}.jpg", "bytes": d, "label": "cat"} for n, d in enumerate(data)]
    records = list(read("table", write_parquet(release / "named.parquet", named)))
    assert [(record.source, record.place) for record in records] == [
        (f"a/{n}.jpg", Inline(d)) for n, d in enumerate(data)
    ]
    bare = [{"jpg": d, "label": "cat"} for d in data]
    table = write_parquet(release / "bare.parquet", bare)
    assert [record.source for record in read("table", table, "--bytes-column", "jpg", "--image-column", "jpg")][:2] == [
        "row-1",
        "row-2",
    ]
    with pytest.raises(ShardError, match="the column 'label' holds bytes, and a label is text"):
        list(read("table", write_parquet(release / "x.parquet", [{"image": "cat/1.jpg", "label": b"cat"}])))
    with pytest.raises(ShardError, match="the column 'image' holds no bytes"):
        list(read("table", write_table(release / "x.csv", [{"image": "a", "label": "b"}]), "--bytes-column", "image"))


def test_whatever_else_a_row_says_is_kept_as_json_holds_it(release: Path) -> None:
    row = {"image": "cat/1.jpg", "label": "cat", "day": date(2024, 2, 3), "size": {"w": 1.5, "h": None, "b": b"x"}}
    row |= {"tags": [1.5, float("nan")], "blob": b"1", "ratio": float("inf"), "count": 3, "empty": ""}
    (record,) = read("table", write_parquet(release / "t.parquet", [row]))
    expected = {"day": "2024-02-03", "size": {"w": 1.5, "h": None, "b": None}, "tags": [1.5, None], "count": 3}
    assert record.extra == expected
    assert json.loads(json.dumps(record.extra, allow_nan=False)) == expected


def test_names_that_occur_late_in_json_lines_are_kept(release: Path) -> None:
    lines = [{"image": "cat/1.jpg", "label": "cat"}] * 1500 + [{"image": "cat/1.jpg", "label": "cat", "late": 1}]
    records = list(read("table", write_table(release / "t.jsonl", lines)))
    assert (records[0].extra, records[-1].extra) == ({}, {"late": 1})


def test_cells_with_line_breaks_quotes_and_empty_lines_are_csv(release: Path) -> None:
    (release / "t.csv").write_bytes(b'image,label,note\r\ncat/1.jpg,"a ""b""","two\r\nlines"\r\n\r\ncat/2.jpg\r\n')
    one, two = read("table", release / "t.csv")
    assert (one.label, one.extra) == ('a "b"', {"note": "two\r\nlines"})
    assert (two.label, two.source) == (None, "cat/2.jpg")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_long_table_is_never_held_whole(release: Path, kind: str) -> None:
    rows = [{"image": f"cat/{n % 7}.jpg", "label": "cat", "note": f"{n:0100d}"} for n in range(10_000)]
    table = write_table(release / f"t.{kind}", rows)
    del rows
    list(read("table", table))  # imports
    tracemalloc.start()
    try:
        assert sum(1 for _ in read("table", table)) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 1.5e6  # the notes alone are 1.5 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--label-column", "lable"],
            r"no column 'lable'; there are: image, label, split, colour; did you mean label\?",
        ),
        (["--group-column", "brand"], "no column 'brand'; there are: image, label, split, colour"),
        (["--labels-column", "tag"], "no column 'tag'; there are: image"),
        (["--box-columns", "a,b,c,label"], "no column 'a'; there are: image"),
        (["--labels-column", "label", "--label-column", "label"], "--label-column and --labels-column exclude"),
        (["--box-format", "xywh"], "--box-format xywh without --box-columns"),
        (["--images", "nowhere"], "nowhere: no such folder or tar of images"),
        (["--table-member", "x.csv"], "--table-member x.csv: only for a .tar, and table.csv is none"),
    ],
)
def test_options_that_do_not_fit_the_table_are_refused(
    release: Path, rows: Rows, options: list[str], message: str
) -> None:
    with pytest.raises(ShardError, match=message):
        list(read("table", write_table(release / "table.csv", rows), *options))


@pytest.mark.parametrize("columns", ["a,b", "a,b,c,", "a,b,c,d,e"])
def test_a_box_has_one_column_or_four(run: Run, columns: str) -> None:
    ran = run("make", "table", "t.csv", "--out", "x", "--box-columns", columns)
    assert ran.code == 2
    assert f"{columns!r} is neither one column nor four" in ran.err


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
        ("t.jsonl", b'{"image": "a", "label": "\\ud800"}\n', "t.jsonl: line 1 is not JSON ('utf-8' codec can't encode"),
        ("t.jsonl", b'{"image": ' + b"[" * 60 + b"]" * 60 + b"}\n", "t.jsonl: line 1 is not JSON (nested too deeply)"),
        ("t.jsonl", b'{"image": ' + b"[" * 100_000 + b"}\n", "t.jsonl: line 1 is not JSON (nested too deeply)"),
        ("t.jsonl", b'{"image": "a"}\n\n{"image": "\xff"}\n', "t.jsonl: not UTF-8 at byte 27"),
        (
            "t.csv",
            b"\xef\xbb\xbfimage,label\n" + b"a.jpg,b\n" * 9000 + b"a.jpg,\xe9\n",
            "t.csv: not UTF-8 at byte 72021",
        ),
        ("t.parquet", b"PAR1 not really", "t.parquet: not a readable Parquet file"),
        ("t.xlsx", b"PK", "t.xlsx: a table ends in .csv, .tsv, .jsonl, .parquet"),
        ("t.tar", b"not a tar at all", "t.tar: not a readable tar"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ShardError) as refused:
        list(read("table", tmp_path / name))
    assert message in str(refused.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"none.csv: no such table"):
        list(read("table", tmp_path / "none.csv"))
    with pytest.raises(ShardError, match="a folder, not a table; see shards make folder"):
        list(read("table", tmp_path))


@pytest.mark.parametrize("kind", KINDS)
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
    for made in sets:
        del made["manifest.json"]  # says where the input lay
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


def test_rows_with_problems_are_listed_beside_the_set(run: Run, release: Path, tmp_path: Path, rows: Rows) -> None:
    rows[3]["image"] = "../secret.jpg"
    ran = run("make", "table", write_table(release / "table.jsonl", rows), "--out", tmp_path / "pets", *ALLOW)
    assert ran.code == 0, ran.err
    assert "the path '../secret.jpg' leaves the images folder" in (tmp_path / "pets/skipped.csv").read_text()
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
    ("url", "source"),
    [
        ("https://u:p@ss@h/x.jpg?size=2&api_key=SECRET&page=3", "h/x.jpg?size=2&page=3"),
        ("https://u:a/SECRET@h/x.jpg", "h/x.jpg"),
        ("https://h/x.jpg?X-Auth=SECRET#SECRET", "h/x.jpg"),
        ("https://h/x.jpg?my%5FPass%77ord=SECRET", "h/x.jpg"),
        ("https://h/x.jpg?Expires=SECRET&id=7#token=SECRET", "h/x.jpg?id=7"),
        ("https://h/x.jpg?X-Amz-Date=SECRET&X-Amz-Signature=SECRET", "h/x.jpg"),
        ("https://h/x.jpg?design=7", "h/x.jpg?design=7"),
    ],
)
def test_no_secret_of_a_url_becomes_part_of_a_source(tmp_path: Path, url: str, source: str) -> None:
    table = write_table(tmp_path / "t.csv", [{"image": url, "label": "a"}])
    (record,) = read("table", table)
    assert (record.source, record.place) == (source, File(url))
