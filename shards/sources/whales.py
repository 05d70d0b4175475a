"""Whales by their flukes: Humpback Whale Identification (Kaggle) or the Global Data Science Challenge 2020.

    shards make whales data/humpback --min-images 2 --boxes bounding_boxes.csv --out shard_sets/humpback
    shards make whales data/gdsc --min-images 2 --boxes train_bbox.csv --crop --out shard_sets/gdsc

    data/humpback/                        data/gdsc/
        train.csv     Image,Id                train/<whale id>/….jpg
        train/        0000e88ab.jpg …         train/-1/             whales that nobody knows
        test/         unlabelled              test_val/             unlabelled

label is the whale. Many whales have one image: --min-images 2 drops them, --min-images 1 keeps them for training. Images of
unknown whales (new_whale, -1) are left out, or distractors with --keep-unknown. Test images show known whales too, so
taking them as distractors (--with-test) makes evaluation harder than it should be.

--boxes is a CSV with a column Image, image, path or new_path and the corners of the fluke: x0,y0,x1,y1 (as published for
Humpback), x1,y1,x2,y2 or x,y,w,h, where w and h are the right and bottom edge as in the GDSC files. It is matched by the
file's name, with its folder where the path has one. The GDSC layout is that of the winner's public code, which reads it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from shards.errors import ShardError
from shards.inputs import release
from shards.record import Box, Record

HUMPBACK_AT = "https://www.kaggle.com/competitions/humpback-whale-identification/data"
DOCUMENTED_AT = f"{HUMPBACK_AT} and https://github.com/ahmedbesbes/whales-classification"
VERIFIED = False
RELEASE = release.Release("Humpback or GDSC whales", DOCUMENTED_AT, HUMPBACK_AT)
UNKNOWN = ("new_whale", "-1")
IMAGE_COLUMNS = ("Image", "image", "path", "new_path")
CORNER_COLUMNS = (("x0", "y0", "x1", "y1"), ("x1", "y1", "x2", "y2"), ("x", "y", "w", "h"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """ROOT, the boxes, and which images without a whale to take."""
    release.add_options(parser, domain="whales")
    parser.add_argument("--boxes", type=Path, metavar="CSV", help="where the fluke is in each image")
    parser.add_argument("--keep-unknown", action="store_true", help="take new_whale or -1 images, as distractors")
    release.add_test_option(parser)


def records(options: argparse.Namespace) -> Iterator[Record]:
    """One record an image, with its box if there is one."""
    boxes = read_boxes(options.boxes) if options.boxes else {}
    num_boxed = 0
    for record in find_records(options):
        folder, name = record.source.split("/")[-2:]
        box = boxes.get(f"{folder}/{name}") or boxes.get(name)
        num_boxed += box is not None
        yield replace(record, box=box)
    if boxes and not num_boxed:
        raise ShardError(
            f"--boxes {options.boxes}: none of its {len(boxes)} boxes is of an image here, first {next(iter(boxes))}"
        )


def find_records(options: argparse.Namespace) -> Iterator[Record]:
    """Without boxes; both layouts."""
    root, domain = options.root, options.domain
    is_humpback = (root / "train.csv").is_file() or not has_folders(root / "train")
    if is_humpback:
        table, _, *test = RELEASE.open(
            root,
            "train.csv",
            "train/",
            *(["test/"] if options.with_test else []),
            hint="; GDSC has train/<whale id>/ alone",
        )
        listed = ((f"train/{row['Image']}", row["Id"]) for row in release.read_rows(table, "Image", "Id"))
    else:
        train, *test = RELEASE.open(root, "train/", *(["test_val/"] if options.with_test else []))
        whales = sorted(path for path in train.iterdir() if path.is_dir() and not path.name.startswith("."))
        listed = ((path, whale.name) for whale in whales for path in release.find_images(root, whale))
    for path, whale in listed:
        if whale not in UNKNOWN:
            yield release.image_record(root, path, domain, whale)
        elif options.keep_unknown:
            yield release.image_record(root, path, domain)
    for folder in test:
        for path in release.find_images(root, folder):
            yield release.image_record(root, path, domain)


def has_folders(path: Path) -> bool:
    """A folder a whale."""
    return path.is_dir() and any(child.is_dir() for child in path.iterdir())


def read_boxes(path: Path) -> dict[str, Box]:
    """By `folder/name`, or by name where the path in the CSV has no folder."""
    if not path.is_file():
        raise ShardError(f"--boxes {path}: no such file")
    boxes: dict[str, Box] = {}
    for row in release.read_rows(path):
        column = next((name for name in IMAGE_COLUMNS if name in row), None)
        corners = next((names for names in CORNER_COLUMNS if all(name in row for name in names)), None)
        if column is None or corners is None:
            known = f"one of {', '.join(IMAGE_COLUMNS)} and of {', '.join('/'.join(names) for names in CORNER_COLUMNS)}"
            raise ShardError(f"--boxes {path}: the columns are {', '.join(row)}; {known} were expected")
        where = f"--boxes {path}: {row[column]}"
        box = release.parse_box([row[name] for name in corners], where)
        if box[2] <= box[0] or box[3] <= box[1]:
            raise ShardError(f"{where}: {box} has no area; {', '.join(corners)} must be left, top, right, bottom")
        boxes["/".join(row[column].split("/")[-2:])] = box
    return boxes
