"""Every release in its official layout: what each source makes of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pytest

from shards.place import File
from shards.record import Record
from shards.sources import load_source
from tests.shards.releases import (
    gldv2,
    gldv2_id,
    write_deepfashion,
    write_deepfashion_kaggle,
    write_gdsc,
    write_humpback,
    write_imaterialist,
    write_landmarks,
    write_list,
    write_m4d35k,
    write_products10k,
    write_refined_cars,
    write_sop,
    write_stanford_cars,
    write_ucu,
)


def read(source: str, root: Path, *words: str) -> list[Record]:
    """The source's records of this release."""
    parser = argparse.ArgumentParser()
    module = load_source(source)
    module.add_options(parser)
    options = parser.parse_args([str(root), *words])
    options.out = Path("shard_sets/mine")
    return list(module.records(options))


def brief(records: Sequence[Record]) -> list[tuple[str, str | None, str | None, str | None]]:
    """source, label, group, split."""
    assert all(record.problem is None for record in records)
    return [(record.source, record.label, record.group, record.split) for record in records]


def test_products10k_has_skus_as_labels_and_kaggles_parts_as_dev_and_test(tmp_path: Path) -> None:
    write_products10k(tmp_path)
    records = read("products10k", tmp_path)
    assert brief(records)[:5:4] == [("train/0.jpg", "0", "100", "train"), ("train/4.jpg", "2", "101", "train")]
    assert brief(records)[6::2] == [("test/0.jpg", "0", "100", "dev"), ("test/2.jpg", "2", "101", "test")]
    assert {record.domain for record in records} == {"packaged_goods"}
    file = tmp_path / "train/0.jpg"
    assert records[0].place == File(str(file))
    assert (records[0].num_bytes, records[0].changed_at) == (file.stat().st_size, file.stat().st_mtime)
    without = read("products10k", tmp_path, "--split", "none", "--domain", "goods")
    assert {(record.split, record.domain) for record in without} == {(None, "goods")} and len(without) == 10


def test_landmarks_takes_the_retrieval_test_apart_by_usage(tmp_path: Path) -> None:
    write_landmarks(tmp_path)
    records = read("landmarks", tmp_path)
    assert brief(records) == [
        (gldv2("train", 0), "1", "religious", "train"),
        (gldv2("train", 1), "1", "religious", "train"),
        (gldv2("train", 2), "2", None, "train"),
        (gldv2("train", 3), "2", None, "train"),
        (gldv2("index", 0), "index/1", None, "dev_index"),
        (gldv2("index", 1), "index/1", None, "dev_index"),
        (gldv2("index", 2), "index/2", None, "test_index"),
        (gldv2("index", 3), "index/2", None, "test_index"),
        (gldv2("index", 4), "index/3", None, "test_index"),
        (gldv2("index", 5), "index/3", None, "test_index"),
        (gldv2("index", 6), None, None, "test_distractor"),
        (gldv2("test", 0), "index/1", None, "dev_query"),
        (gldv2("test", 1), "index/2", None, "test_query"),
        (gldv2("test", 2), "index/2", None, "test_query"),
    ]
    assert records[-1].extra == {"usage": "Private"}


def test_landmarks_of_the_full_list_and_without_the_retrieval_test(tmp_path: Path) -> None:
    write_landmarks(tmp_path)
    clean, full = (read("landmarks", tmp_path, "--split", "none", "--subset", name) for name in ("clean", "full"))
    assert clean == full
    assert {record.split for record in full} == {None} and len(full) == 4


def test_a_query_for_two_landmarks_is_a_problem_and_takes_no_landmark_from_dev(tmp_path: Path) -> None:
    write_landmarks(tmp_path)
    with (tmp_path / "test/retrieval_solution_v2.1.csv").open("a") as file:
        file.write(f"{gldv2_id(3)},{gldv2_id(0)} {gldv2_id(4)},Private\n")
    records = read("landmarks", tmp_path)
    assert records[-1].problem == "asks for the landmarks 1, 3"
    assert records[4].split == "dev_index"


@pytest.mark.parametrize("images", ["img", "Img/img"])
def test_deepfashion_asks_with_owners_photos_for_those_of_shops(tmp_path: Path, images: str) -> None:
    write_deepfashion(tmp_path, images=images)
    records = read("deepfashion", tmp_path)
    folder = f"{images}/DRESSES/Skirt/id_00000003"
    assert brief(records)[6:9] == [
        (f"{folder}/comsumer_01.jpg", "id_00000003", "DRESSES/Skirt", "dev_query"),
        (f"{folder}/shop_01.jpg", "id_00000003", "DRESSES/Skirt", "dev_index"),
        (f"{folder}/comsumer_02.jpg", "id_00000003", "DRESSES/Skirt", "dev_query"),
    ]
    assert [record.box for record in records[6:9]] == [(1, 2, 30, 28), (5, 6, 35, 28), None]
    assert [record.extra["taken_by"] for record in records[6:9]] == ["consumer", "shop", "consumer"]
    assert [record.split for record in records[:3]] == ["train"] * 3
    assert [record.split for record in records[12:]] == ["test_query", "test_index", "test_query"]
    assert {record.split for record in read("deepfashion", tmp_path, "--split", "none")} == {None}


def test_a_photo_that_deepfashion_lists_under_two_items_is_a_problem(tmp_path: Path) -> None:
    write_deepfashion(tmp_path)
    folder = "img/DRESSES/Skirt"
    with (tmp_path / "Eval/list_eval_partition.txt").open("a") as file:
        file.write(f"{folder}/id_00000001/comsumer_01.jpg {folder}/id_00000002/shop_01.jpg id_00000002 train\n")
    problems = [record.problem for record in read("deepfashion", tmp_path) if record.problem]
    assert problems == ["also listed as id_00000001 train consumer"]


def test_deepfashion_from_kaggle_has_categories_and_no_split(tmp_path: Path) -> None:
    write_deepfashion_kaggle(tmp_path)
    records = read("deepfashion", tmp_path)
    assert brief(records)[0] == ("train/Skirt/id_00000000/0.jpg", "id_00000000", "Skirt", None)
    assert len(records) == 12


def test_stanford_cars_reads_the_devkit(tmp_path: Path) -> None:
    write_stanford_cars(tmp_path)
    records = read("stanford_cars", tmp_path)
    assert brief(records)[0] == ("cars_train/00001.jpg", "Make C/V Model 1", None, "train")
    assert brief(records)[-1] == ("cars_test/00006.jpg", "Make C/V Model 99", None, "test")
    assert {record.box for record in records} == {(0, 1, 30, 28)}
    retrieval = read("stanford_cars", tmp_path, "--split", "retrieval")
    assert {(record.label, record.split) for record in retrieval} == {
        ("Make C/V Model 1", "train"),
        ("Make C/V Model 2", "train"),
        ("Make C/V Model 99", "test"),
    }
    assert {record.split for record in read("stanford_cars", tmp_path, "--split", "none")} == {None}


@pytest.mark.parametrize("has_meta", [True, False])
def test_stanford_cars_reads_the_refined_labels(tmp_path: Path, has_meta: bool) -> None:
    write_refined_cars(tmp_path, has_meta=has_meta)
    records = read("stanford_cars", tmp_path, "--annotations", str(tmp_path / "refined_train.csv"))
    model = "Make C/V Model 1" if has_meta else "1"
    assert brief(records)[0] == ("cars_train/cars_train/00001.jpg", "1_0", model, None)
    assert brief(records)[2] == ("cars_train/cars_train/00003.jpg", "1_8", model, None)
    assert (records[2].extra, records[2].box) == ({"colour": "8"}, (0, 1, 30, 28))


def test_stanford_cars_reads_the_plain_labels_of_a_csv(tmp_path: Path) -> None:
    write_refined_cars(tmp_path)
    write_list(tmp_path / "sc_train.csv", ",x1,y1,x2,y2,Label,image", "0,1,2,30,28,99,00001.jpg")
    words = ("--annotations", str(tmp_path / "sc_train.csv"))
    assert brief(read("stanford_cars", tmp_path, *words)) == [
        ("cars_train/cars_train/00001.jpg", "Make C/V Model 99", None, None)
    ]


def test_m4d35k_has_a_domain_for_each_of_its_parts(tmp_path: Path) -> None:
    write_m4d35k(tmp_path)
    records = read("m4d35k", tmp_path)
    assert [(record.domain, record.label) for record in records[::8]] == [
        ("packaged_goods", "0"),
        ("landmarks", "100"),
        ("apparel", "200"),
        ("cars", "300"),
    ]
    assert brief(records)[0] == ("products-10k/train/0.jpg", "0", None, None)
    for words in (("--only", "stanford_cars,landmarks"), ("--only", "stanford_cars", "--only", "landmarks")):
        some = read("m4d35k", tmp_path, *words)
        assert [record.domain for record in some] == ["landmarks"] * 8 + ["cars"] * 8


def test_sop_has_categories_as_groups_and_leaves_the_roles_open(tmp_path: Path) -> None:
    write_sop(tmp_path)
    found = brief(read("sop", tmp_path))
    assert found[0] == ("bicycle_final/111085122871_0.JPG", "1", "bicycle", "train")
    assert found[-1] == ("bicycle_final/111085122873_3.JPG", "4", "bicycle", "test")
    assert {split for *_, split in brief(read("sop", tmp_path, "--split", "none"))} == {None}


def test_imaterialist_makes_one_image_with_several_labels_of_rows_of_segments(tmp_path: Path) -> None:
    write_imaterialist(tmp_path)
    records = read("imaterialist", tmp_path, "--with-test")
    assert records[0].source == f"train/{0:032x}.jpg"
    assert [record.labels for record in records[:2]] == [("pants", "shirt, blouse"), ("pants",)]
    assert {record.label for record in records} == {None}
    assert records[0].extra == {"height": 30, "width": 40}
    assert (records[-1].source, records[-1].labels, len(records)) == ("test/0a.jpg", (), 81)
    fine = read("imaterialist", tmp_path, "--labels", "classes+attributes")
    attributes = ("silhouette: symmetrical", "textile: wrapping (136)", "textile: wrapping (137)")
    assert (fine[0].labels, len(fine)) == (("pants", "shirt, blouse", *attributes), 80)


def test_imaterialist_of_2019_has_its_attributes_behind_the_class(tmp_path: Path) -> None:
    write_imaterialist(tmp_path)
    header = "ImageId,EncodedPixels,Height,Width,ClassId"
    write_list(tmp_path / "train.csv", header, f"{3:032x}.jpg,1 2,30.0,40.0,6_115_136", f"{3:032x}.jpg,3 2,30.0,40.0,0")
    (record,) = read("imaterialist", tmp_path, "--labels", "classes+attributes")
    assert record.source == f"train/{3:032x}.jpg"
    assert record.labels == ("pants", "shirt, blouse", "silhouette: symmetrical", "textile: wrapping (136)")
    assert record.extra == {"height": 30, "width": 40}


def test_whales_of_humpback_have_boxes_and_unknown_ones_if_wanted(tmp_path: Path) -> None:
    write_humpback(tmp_path)
    records = read("whales", tmp_path, "--boxes", str(tmp_path / "bounding_boxes.csv"))
    assert brief(records)[::9] == [
        ("train/00000000.jpg", "w_0000000", None, None),
        ("train/00000009.jpg", "w_0000004", None, None),
    ]
    assert [record.box for record in records[:3]] == [(0, 1, 30, 20), (1, 1, 30, 20), None]
    with_all = read("whales", tmp_path, "--keep-unknown", "--with-test")
    unlabelled = [("train/0000000a.jpg", None, None, None), ("train/0000000b.jpg", None, None, None)]
    assert brief(with_all)[10:] == [*unlabelled, ("test/ffffffff.jpg", None, None, None)]


def test_whales_of_the_gdsc_are_folders(tmp_path: Path) -> None:
    write_gdsc(tmp_path)
    words = ("--keep-unknown", "--with-test", "--boxes", str(tmp_path / "train_bbox.csv"))
    records = read("whales", tmp_path, *words)
    assert brief(records)[:3] == [
        ("train/-1/PM-0.JPG", None, None, None),
        ("train/1/PM-0.JPG", "1", None, None),
        ("train/1/PM-1.jpg", "1", None, None),
    ]
    assert [record.box for record in records if record.box] == [records[1].box] == [(3, 4, 30, 20)]
    assert brief(records)[-1] == ("test_val/PM-9.jpg", None, None, None)
    assert len(read("whales", tmp_path)) == 10


def test_ucu_takes_its_unlabelled_test_images_as_distractors(tmp_path: Path) -> None:
    write_ucu(tmp_path)
    found = brief(read("ucu", tmp_path))
    assert found[::11] == [("train/0.jpg", "0", None, None), ("train/11.jpg", "5", None, None)]
    assert found[12:] == [(f"test/{place}.jpg", None, None, None) for place in (12, 13, 14)]
    assert brief(read("ucu", tmp_path, "--without-test")) == found[:12]
