"""Products-10K: 10,000 products of an online shop, in photos by the shop and by customers.

    shards make products10k data/products-10k --out shard_sets/products10k

    data/products-10k/
        train.csv               name,class,group
        train/                  0.jpg …
        test_kaggletest.csv     name,class,Usage
        test/

label is the class (one SKU), group the release's group of SKUs; test rows have the group that train.csv gives their
class. Officially train is for training, and the test images are Kaggle's Public (here dev) and Private (here test) part.
They show the same products as train; --split none evaluates on products that were never trained on. The site documents
the files; the header of the test list is from public code that reads it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from shards.errors import ShardError
from shards.inputs import release
from shards.record import Record

DOCUMENTED_AT = "https://products-10k.github.io/challenge.html"
VERIFIED = False
RELEASE = release.Release("Products-10K", DOCUMENTED_AT, DOCUMENTED_AT)
SPLITS = {"Public": "dev", "Private": "test"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """ROOT."""
    release.add_options(parser, domain="packaged_goods", split="train, and the test images as dev and test")


def records(options: argparse.Namespace) -> Iterator[Record]:
    """One record a row, training images first."""
    root, is_official = options.root, options.split == "official"
    train, _, test, _ = RELEASE.open(root, "train.csv", "train/", "test_kaggletest.csv", "test/")
    groups = {}
    for row in release.read_rows(train, "name", "class", "group"):
        groups[row["class"]] = row["group"]
        yield release.image_record(
            root,
            f"train/{row['name']}",
            options.domain,
            row["class"],
            group=row["group"],
            split="train" if is_official else None,
        )
    for row in release.read_rows(test, "name", "class", "Usage"):
        if row["Usage"] not in SPLITS:
            raise ShardError(f"{test}: Usage {row['Usage']!r} of {row['name']} is not one of {', '.join(SPLITS)}")
        yield release.image_record(
            root,
            f"test/{row['name']}",
            options.domain,
            row["class"],
            group=groups.get(row["class"]),
            split=SPLITS[row["Usage"]] if is_official else None,
        )
