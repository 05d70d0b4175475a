"""iMaterialist Fashion 2019 or 2020: photos of people, with the kinds of garment in each as several labels.

    shards make imaterialist data/imaterialist-fashion-2020-fgvc7 --out shard_sets/imaterialist
    shards make imaterialist data/imaterialist-fashion-2020-fgvc7 --labels classes+attributes --out shard_sets/fine

    data/imaterialist-fashion-2020-fgvc7/
        train.csv                   ImageId,EncodedPixels,Height,Width,ClassId,AttributesIds; a row a segment
        train/                      <ImageId>.jpg
        label_descriptions.json     {categories: [{id, name, supercategory, …}], attributes: [alike]}
        test/                       unlabelled (--with-test)

In 2019 there is no column AttributesIds, ClassId is category_attribute_attribute…, and ImageId ends in .jpg. The labels of a
photo are the names of its segments' categories, and of attributes as `supercategory: name`; where a name is there twice,
the id follows it. The segments themselves are not kept. The release says no split, and the competition's page needs an
account: the layout is that of the published notebooks.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.errors import ShardError
from shards.inputs import release
from shards.record import Record

DOCUMENTED_AT = "https://www.kaggle.com/competitions/imaterialist-fashion-2020-fgvc7/data"
VERIFIED = False
RELEASE = release.Release("iMaterialist Fashion", DOCUMENTED_AT, DOCUMENTED_AT)
KINDS = ("classes", "classes+attributes")


@dataclass(slots=True)
class Photo:
    """What the rows of an image say."""

    height: int
    width: int
    labels: set[str] = field(default_factory=set)


def add_options(parser: argparse.ArgumentParser) -> None:
    """ROOT and what becomes a label."""
    release.add_options(parser, domain="fashion")
    parser.add_argument("--labels", choices=KINDS, default=KINDS[0], help=f"what becomes a label (default: {KINDS[0]})")
    release.add_test_option(parser)


def records(options: argparse.Namespace) -> Iterator[Record]:
    """One record an image."""
    root = options.root
    tests = ["test/"] if options.with_test else []
    table, _, described, *test = RELEASE.open(root, "train.csv", "train/", "label_descriptions.json", *tests)
    for name, photo in read_photos(table, described, has_attributes=options.labels != KINDS[0]).items():
        yield release.image_record(
            root,
            f"train/{name}",
            options.domain,
            labels=tuple(sorted(photo.labels)),
            extra={"height": photo.height, "width": photo.width},
        )
    for folder in test:
        for path in release.find_images(root, folder):
            yield release.image_record(root, path, options.domain)


def read_photos(table: Path, described: Path, *, has_attributes: bool) -> dict[str, Photo]:
    """By file name; the rows of an image need not stand together."""
    categories, attributes = read_names(described)
    photos: dict[str, Photo] = {}
    for row in release.read_rows(table, "ImageId", "Height", "Width", "ClassId"):
        name = row["ImageId"] if row["ImageId"].endswith(".jpg") else f"{row['ImageId']}.jpg"
        photo = photos.setdefault(name, Photo(pixels(table, row["Height"]), pixels(table, row["Width"])))
        category, *listed = row["ClassId"].split("_")
        listed += [number for number in row.get("AttributesIds", "").split(",") if number]
        try:
            photo.labels.add(categories[category])
            if has_attributes:
                photo.labels.update(attributes[number] for number in listed)
        except KeyError as error:
            raise ShardError(
                f"{table}: {name} has the label {error}, which {described.name} does not describe"
            ) from error
    return photos


def pixels(table: Path, cell: str) -> int:
    """5214, which 2019 has as 5214.0."""
    try:
        return int(float(cell))
    except (ValueError, OverflowError) as error:
        raise ShardError(f"{table}: {cell!r} is no height or width") from error


def read_names(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Label by id of the categories, and of the attributes."""
    content = release.read_json(path)
    try:
        categories = {str(one["id"]): str(one["name"]) for one in content["categories"]}
        attributes = {str(one["id"]): f"{one['supercategory']}: {one['name']}" for one in content["attributes"]}
    except (KeyError, TypeError) as error:
        raise ShardError(f"{path}: categories and attributes with id and name were expected ({error!r})") from error
    return tell_apart(categories), tell_apart(attributes)


def tell_apart(labels: dict[Any, str]) -> dict[Any, str]:
    """With the id behind names that are there more than once."""
    counts = Counter(labels.values())
    return {number: f"{name} ({number})" if counts[name] > 1 else name for number, name in labels.items()}
