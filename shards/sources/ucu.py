"""UCU Computer Vision 2024: image retrieval with distractors, 2 or 3 images a class (a Kaggle competition).

    shards make ucu data/ucu --out shard_sets/ucu

    data/ucu/
        train.csv     file_id,class
        train/        <file_id>.jpg
        test.csv      file_id
        test/         <file_id>.jpg

The test images have no labels: about a third show none of the classes, the others do, and nobody says which. They are
taken as distractors, so evaluation with them is harder than it should be: a right answer among them counts as wrong.
--without-test leaves them out. The competition's page needs an account; the layout is that of the public code named below.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from shards.inputs import release
from shards.record import Record

DOCUMENTED_AT = "https://github.com/PrometheusUA/image-retrieval/blob/main/utils/data.py"
VERIFIED = False
RELEASE = release.Release(
    "UCU Computer Vision 2024",
    DOCUMENTED_AT,
    "https://www.kaggle.com/competitions/ucu-computer-vision-2024/data",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """ROOT."""
    release.add_options(parser, domain="ucu")
    parser.add_argument("--without-test", action="store_true", help="leave out the unlabelled test images")


def records(options: argparse.Namespace) -> Iterator[Record]:
    """One record a row; test images have no label."""
    root = options.root
    tests = [] if options.without_test else ["test.csv", "test/"]
    train, _, *test = RELEASE.open(root, "train.csv", "train/", *tests)
    for row in release.read_rows(train, "file_id", "class"):
        yield release.image_record(root, f"train/{row['file_id']}.jpg", options.domain, row["class"])
    for row in release.read_rows(test[0], "file_id") if test else ():
        yield release.image_record(root, f"test/{row['file_id']}.jpg", options.domain)
