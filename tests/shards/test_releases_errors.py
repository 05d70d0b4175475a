"""Releases that are not all there, or not what they should be; and the whole way from each of them to a checked set."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shards.errors import ShardError
from shards.inputs.release import read_rows
from shards.manifest import Manifest
from shards.record import Record
from shards.sources import load_source
from tests.shards.conftest import Run
from tests.shards.releases import LAYOUTS, Layout, gldv2_id, write_list, write_sop
from tests.shards.test_releases_layouts import read

PARTS = {
    "products10k": "4 of 4 parts of Products-10K are missing: train.csv, train/, test_kaggletest.csv, test/",
    "landmarks": "missing: train/, train/train_clean.csv or train_clean.csv, index/, test/, index/index.csv or index.csv",
    "deepfashion": "missing: Eval/list_eval_partition.txt, Anno/list_bbox_consumer2shop.txt, img/ or Img/img/",
    "stanford_cars": "missing: devkit/cars_meta.mat, devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat or",
    "m4d35k": "m4d-35k_train.csv, products-10k/, google_landmark_recognition_2021/, deepfashion/, stanford_cars/",
    "sop": "2 of 2 parts of Stanford Online Products are missing: Ebay_train.txt, Ebay_test.txt",
    "imaterialist": "missing: train.csv, train/, label_descriptions.json",
    "whales": "missing: train.csv, train/",
    "ucu": "missing: train.csv, train/, test.csv, test/",
}


@pytest.fixture(params=list(LAYOUTS.values()), ids=list(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> Layout:
    """Each in turn."""
    found: Layout = request.param
    return found


def written(layout: Layout, root: Path) -> list[str]:
    """Writes the release; gives the words that follow it on the command line."""
    root.mkdir()
    layout.write(root)
    return [word.replace("ROOT", str(root)) for word in layout.words]


@pytest.mark.parametrize("source", PARTS)
def test_all_parts_that_are_missing_are_named_with_where_they_come_from(tmp_path: Path, source: str) -> None:
    with pytest.raises(ShardError) as caught:
        read(source, tmp_path)
    assert PARTS[source] in str(caught.value)
    assert "unpack the release there, see http" in str(caught.value)
    with pytest.raises(ShardError, match="nowhere: no such folder"):
        read(source, tmp_path / "nowhere")


def test_a_part_of_m4d35k_that_is_not_there_is_named_unless_it_is_left_out(tmp_path: Path) -> None:
    LAYOUTS["m4d35k"].write(tmp_path)
    shutil.rmtree(tmp_path / "stanford_cars")
    with pytest.raises(
        ShardError, match=r"1 of 5 parts of M4D-35k are missing: stanford_cars/.*--only takes the parts"
    ):
        read("m4d35k", tmp_path)
    assert len(read("m4d35k", tmp_path, "--only", "products10k,landmarks,deepfashion")) == 24


def test_an_image_that_is_not_there_is_a_problem_and_not_an_end(tmp_path: Path, layout: Layout) -> None:
    words = written(layout, tmp_path / "release")
    before = read(layout.source, tmp_path / "release", *words)
    victim = next(
        record for record in before if record.source.startswith(("train", "img", "cars_train", "bicycle", "prod"))
    )
    (tmp_path / "release" / victim.source).unlink()
    after = read(layout.source, tmp_path / "release", *words)
    gone = {record.source for record in before if record.problem is None} - {
        record.source for record in after if record.problem is None
    }
    assert gone == {victim.source}
    assert {record.problem for record in after} <= {None, "no such file"}


TRAPS = {  # a list that names an image elsewhere: file, its line before, its line now
    "products10k": ("train.csv", "0.jpg,0,100", "{},0,100"),
    "landmarks": ("train/train_clean.csv", f"1,{gldv2_id(0)}", "1,{}"),
    "deepfashion": ("Eval/list_eval_partition.txt", "img/DRESSES/Skirt/id_00000001/comsumer_01.jpg", "{}"),
    "deepfashion of kaggle": ("deepfashion_train.json", "train/Skirt/id_00000000/0.jpg", "{}"),
    "stanford_cars refined": ("refined_train.csv", ",1_0,00001.jpg", ",1_0,{}"),
    "m4d35k": ("m4d-35k_train.csv", "products-10k/train/0.jpg", "products-10k/{}"),
    "sop": ("Ebay_train.txt", "bicycle_final/111085122871_0.JPG", "{}"),
    "imaterialist": ("train.csv", f"{1:032x}", "{}"),
    "humpback": ("train.csv", "00000000.jpg", "{}"),
    "ucu": ("train.csv", "0,0\n", "{},0\n"),
}


@pytest.mark.parametrize("elsewhere", ["../../secret.jpg", "{tmp_path}/secret.jpg"])
@pytest.mark.parametrize("name", TRAPS)
def test_a_path_that_leaves_the_release_is_never_opened(tmp_path: Path, name: str, elsewhere: str) -> None:
    layout, root = LAYOUTS[name], tmp_path / "release"
    words = written(layout, root)
    outside = tmp_path / "secret.jpg"
    outside.write_bytes(b"not yours")
    file, before, now = TRAPS[name]
    text = (root / file).read_text()
    assert before in text
    (root / file).write_text(text.replace(before, now.format(elsewhere.format(tmp_path=tmp_path)), 1))
    records = read(layout.source, root, *words)
    (trapped,) = [record for record in records if "secret" in record.source]
    assert trapped.problem and trapped.num_bytes == 0
    assert not opens(trapped, outside)


def opens(record: Record, file: Path) -> bool:
    """Whether reading the record reads this file."""
    try:
        return record.place.read() == file.read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'class_id'; there are: none"),
        (
            "image_id klass_id path\n",
            "no column 'class_id'; there are: image_id, klass_id, path; did you mean klass_id?",
        ),
        ("image_id class_id path\n1 1 a b.jpg\n", "row 1 has 4 cells, the header has 3"),
        ("image_id class_id path\n1 1 \ud800.jpg\n", "not a list in UTF-8"),
    ],
)
def test_a_list_that_cannot_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    write_sop(tmp_path)
    (tmp_path / "Ebay_test.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ShardError) as caught:
        read("sop", tmp_path)
    assert "Ebay_test.txt: " in str(caught.value) and message in str(caught.value)


def test_a_list_is_read_a_row_at_a_time(tmp_path: Path) -> None:
    write_list(tmp_path / "train.csv", "id,landmark_id", "a,1", "b")
    rows = read_rows(tmp_path / "train.csv", "id")
    assert next(rows) == {"id": "a", "landmark_id": "1"}
    with pytest.raises(ShardError, match="row 2 has 1 cells"):
        next(rows)


@pytest.mark.parametrize(
    ("name", "file", "before", "now", "message"),
    [
        (
            "products10k",
            "test_kaggletest.csv",
            "Public",
            "public",
            "Usage 'public' of 0.jpg is not one of Public, Private",
        ),
        (
            "deepfashion",
            "Eval/list_eval_partition.txt",
            "   val",
            "   gallery",
            "evaluation_status 'gallery' is not one of",
        ),
        ("deepfashion", "Anno/list_bbox_consumer2shop.txt", "1 2 30 28", "1 2 30 nan", "1, 2, 30, nan is no box"),
        ("deepfashion of kaggle", "deepfashion_train.json", '{"Skirt"', '["Skirt"', "not JSON"),
        (
            "deepfashion of kaggle",
            "deepfashion_train.json",
            None,
            '{"Skirt": 1}',
            "{category: {item id: [paths]}} was expected",
        ),
        ("stanford_cars", "devkit/cars_meta.mat", None, "MATLAB", "no readable MATLAB file with 'class_names'"),
        ("stanford_cars refined", "refined_train.csv", "1_0,", "red,", "00001.jpg has the class 'red'; 14 or 14_8"),
        (
            "m4d35k",
            "m4d-35k_train.csv",
            "products-10k/train/0",
            "../0",
            "row 1: '../0.jpg' is in none of products-10k, ",
        ),
        (
            "imaterialist",
            "train.csv",
            ",30,40,6,137",
            ",30,40,9,137",
            "the label '9', which label_descriptions.json does",
        ),
        (
            "humpback",
            "bounding_boxes.csv",
            "x0,y0",
            "left,top",
            "the columns are Image, left, top, x1, y1; one of Image,",
        ),
        (
            "humpback",
            "bounding_boxes.csv",
            "0,1,30,20",
            "0,30,30,20",
            "00000000.jpg: (0.0, 30.0, 30.0, 20.0) has no area",
        ),
    ],
)
def test_a_release_that_says_something_else_is_refused(
    tmp_path: Path, name: str, file: str, before: str | None, now: str, message: str
) -> None:
    words = written(LAYOUTS[name], tmp_path / "release")
    path = tmp_path / "release" / file
    path.write_text(now if before is None else path.read_text().replace(before, now, 1))
    with pytest.raises(ShardError) as caught:
        read(LAYOUTS[name].source, tmp_path / "release", *words)
    assert message in str(caught.value) and file in str(caught.value)


def test_boxes_of_other_images_are_refused(tmp_path: Path) -> None:
    words = written(LAYOUTS["humpback"], tmp_path / "release")
    write_list(tmp_path / "release/bounding_boxes.csv", "Image,x0,y0,x1,y1", "other.jpg,1,2,3,4")
    with pytest.raises(ShardError, match=r"none of its 1 boxes is of an image here, first other\.jpg"):
        read("whales", tmp_path / "release", *words)


def test_make_gives_a_set_that_check_finds_whole(run: Run, tmp_path: Path, layout: Layout) -> None:
    words = written(layout, tmp_path / "release")
    out = tmp_path / "set"
    ran = run("make", layout.source, tmp_path / "release", *words, *layout.make_words, "--out", out)
    assert ran.code == 0, ran.err
    assert f"layout unverified: written after {load_source(layout.source).DOCUMENTED_AT}" in ran.err  # type: ignore[attr-defined]
    assert run("check", out).code == 0
    records = read(layout.source, tmp_path / "release", *words)
    assert sum(shard.samples for shard in Manifest.load(out).shards) == len(records)
