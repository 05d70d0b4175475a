"""Stanford Online Products: 22,634 products of 12 categories, in photos that their sellers took.

    shards make sop data/Stanford_Online_Products --out shard_sets/sop

    data/Stanford_Online_Products/
        Ebay_train.txt                       image_id class_id super_class_id path
        Ebay_test.txt                        the same, with other classes
        bicycle_final/111085122871_0.JPG …   and 11 more such folders

label is the class_id, group the category as its folder names it (bicycle). Officially the first file is for training and
the second for testing, where every image is a query against all the others. Here an image has one role, so the test
classes come without roles and `shards make` chooses their queries: numbers are close to the official ones, not equal.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from shards.inputs import release
from shards.record import Record

DOCUMENTED_AT = "https://cvgl.stanford.edu/projects/lifted_struct/"
VERIFIED = False
RELEASE = release.Release("Stanford Online Products", DOCUMENTED_AT, DOCUMENTED_AT)


def add_options(parser: argparse.ArgumentParser) -> None:
    """ROOT."""
    release.add_options(parser, domain="products", split="the classes of Ebay_train.txt and those of Ebay_test.txt")


def records(options: argparse.Namespace) -> Iterator[Record]:
    """One record a line."""
    train, test = RELEASE.open(options.root, "Ebay_train.txt", "Ebay_test.txt")
    for split, path in (("train", train), ("test", test)):
        for row in release.read_rows(path, "class_id", "path", by_space=True):
            yield release.image_record(
                options.root,
                row["path"],
                options.domain,
                row["class_id"],
                group=row["path"].partition("/")[0].removesuffix("_final"),
                split=split if options.split == "official" else None,
            )
