"""M4D-35k, which UniFEx trains on: 35,000 classes of products, landmarks, garments and cars, from four releases.

    shards make m4d35k data --out shard_sets/m4d35k
    shards make m4d35k data --only products10k,stanford_cars --out shard_sets/two      those two alone

    data/
        m4d-35k_train.csv                   img_path,label; from the UniFEx repository
        products-10k/train/                 domain packaged_goods
        google_landmark_recognition_2021/   landmarks
        deepfashion/                        apparel: Kaggle's training part of Consumer-to-Shop
        stanford_cars/cars_train/           cars

img_path starts with one of these folders; each is a domain of its own. The labels (cars: model × colour) are taken as
they are. All rows are for training upstream, so `shards make` splits by class. The CSV itself was not at hand: its columns
are those that UniFEx reads.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from shards.errors import ShardError, did_you_mean
from shards.inputs import release
from shards.record import Record

DOCUMENTED_AT = "https://github.com/morrisfl/UniFEx/blob/main/src/datasets/DATASET.md"
VERIFIED = False
RELEASE = release.Release("M4D-35k", DOCUMENTED_AT, "https://github.com/morrisfl/UniFEx")
PARTS = {
    "products10k": ("products-10k", "packaged_goods"),
    "landmarks": ("google_landmark_recognition_2021", "landmarks"),
    "deepfashion": ("deepfashion", "apparel"),
    "stanford_cars": ("stanford_cars", "cars"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """ROOT and which of the four."""
    release.add_options(parser)
    parser.add_argument(
        "--only",
        type=part_names,
        action="append",
        default=[],
        metavar="NAME,…",
        help=f"parts to take, of {', '.join(PARTS)} (default: all)",
    )


def part_names(text: str) -> list[str]:
    """`products10k,landmarks`."""
    names = text.split(",")
    for name in names:
        if name not in PARTS:
            hint = did_you_mean(name, PARTS)
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(PARTS)}{hint}")
    return names


def records(options: argparse.Namespace) -> Iterator[Record]:
    """One record a row of the parts that are asked for."""
    names = [name for names in options.only for name in names] or list(PARTS)
    chosen = {PARTS[name][0] for name in names}
    domains = dict(PARTS.values())
    table, *_ = RELEASE.open(
        options.root,
        "m4d-35k_train.csv",
        *(f"{folder}/" for folder, _ in PARTS.values() if folder in chosen),
        hint="; --only takes the parts that are there",
    )
    for number, row in enumerate(release.read_rows(table, "img_path", "label"), start=1):
        folder = row["img_path"].partition("/")[0]
        if folder not in domains:
            raise ShardError(f"{table}: row {number}: {row['img_path']!r} is in none of {', '.join(domains)}")
        if folder in chosen:
            yield release.image_record(options.root, row["img_path"], domains[folder], row["label"])
