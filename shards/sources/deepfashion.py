"""DeepFashion Consumer-to-Shop: 33,881 garments, in photos by their owners and by shops.

    shards make deepfashion "data/Consumer-to-shop Clothes Retrieval Benchmark" --out shard_sets/deepfashion

    data/Consumer-to-shop Clothes Retrieval Benchmark/
        Eval/list_eval_partition.txt           a count, then image_pair_name_1 image_pair_name_2 item_id evaluation_status
        Anno/list_bbox_consumer2shop.txt       a count, then image_name clothes_type source_type x_1 y_1 x_2 y_2
        img/DRESSES/Dress/id_00000001/comsumer_01.jpg …    (sic), unpacked from Img/img.zip here or in Img/

or Kaggle's training part, which UniFEx uses:

    data/deepfashion/
        deepfashion_train.json     {category: {item id: [paths, from this folder on]}}
        train/

label is the item id, group the category (DRESSES/Dress); the boxes go into the samples. Officially val is dev and test is
test: the owners' photos are queries, the shops' photos the index. Every line pairs one of each, so every query has an index
image. Kaggle's part says no split and has no boxes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from shards.errors import ShardError
from shards.inputs import release
from shards.record import Box, Record

DOCUMENTED_AT = "http://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/Consumer2ShopRetrieval.html"
KAGGLE_AT = "https://www.kaggle.com/datasets/sangamman/deepfashion-consumer-to-shop-training"
VERIFIED = False
RELEASE = release.Release("DeepFashion Consumer-to-Shop", DOCUMENTED_AT, f"{DOCUMENTED_AT} or {KAGGLE_AT}")
PAIR = {"image_pair_name_1": "consumer", "image_pair_name_2": "shop"}
CORNERS = ("x_1", "y_1", "x_2", "y_2")
SPLITS = {"train": "train", "val": "dev", "test": "test"}
ROLES = {"consumer": "query", "shop": "index"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """ROOT."""
    release.add_options(parser, domain="apparel", split="train, val as dev, test; owners' photos are the queries")


def records(options: argparse.Namespace) -> Iterator[Record]:
    """One record an image, in the order in which they are first listed."""
    is_kaggle = (options.root / "deepfashion_train.json").is_file()
    return kaggle_records(options) if is_kaggle else official_records(options)


def official_records(options: argparse.Namespace) -> Iterator[Record]:
    """Of the release; its lists name images as img/…"""
    root = options.root
    pairs, bboxes, images = RELEASE.open(
        root, "Eval/list_eval_partition.txt", "Anno/list_bbox_consumer2shop.txt", "img/|Img/img/"
    )
    base = release.below(root, images).removesuffix("img")
    boxes = read_boxes(bboxes)
    seen: dict[str, tuple[str, ...]] = {}
    for row in release.read_rows(pairs, *PAIR, "item_id", "evaluation_status", by_space=True, skip=1):
        item, status = row["item_id"], row["evaluation_status"]
        if status not in SPLITS:
            raise ShardError(f"{pairs}: evaluation_status {status!r} is not one of {', '.join(SPLITS)}")
        for column, taken_by in PAIR.items():
            image, listed_as = row[column], (item, status, taken_by)
            before = seen.setdefault(image, listed_as)
            if before is not listed_as and before == listed_as:
                continue  # a photo is in many pairs
            yield release.image_record(
                root,
                base + image,
                options.domain,
                item,
                group="/".join(image.split("/")[1:-2]),
                split=split_of(status, taken_by) if options.split == "official" else None,
                box=boxes.get(image),
                extra={"taken_by": taken_by},
                problem=None if before is listed_as else f"also listed as {' '.join(before)}",
            )


def read_boxes(path: Path) -> dict[str, Box]:
    """By image; some of the release have no area and count as none."""
    rows = release.read_rows(path, "image_name", *CORNERS, by_space=True, skip=1)
    boxes = {
        row["image_name"]: release.parse_box([row[corner] for corner in CORNERS], f"{path}: {row['image_name']}")
        for row in rows
    }
    return {image: box for image, box in boxes.items() if box[2] > box[0] and box[3] > box[1]}


def split_of(status: str, taken_by: str) -> str:
    """`dev_query`."""
    return "train" if status == "train" else f"{SPLITS[status]}_{ROLES[taken_by]}"


def kaggle_records(options: argparse.Namespace) -> Iterator[Record]:
    """Of Kaggle's training part."""
    table, _ = RELEASE.open(options.root, "deepfashion_train.json", "train/")
    content = release.read_json(table)
    by_category = content if isinstance(content, dict) else {None: None}
    for category, items in by_category.items():
        by_item = items if isinstance(items, dict) else {None: None}
        for item, paths in by_item.items():
            if not isinstance(paths, list):
                raise ShardError(f"{table}: {{category: {{item id: [paths]}}}} was expected")
            for path in paths:
                yield release.image_record(options.root, str(path), options.domain, item, group=category)
