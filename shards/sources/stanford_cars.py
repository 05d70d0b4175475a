"""Stanford Cars: 16,185 photos of 196 car models, or of car × colour with the refined labels.

    shards make stanford_cars data/stanford_cars --out shard_sets/cars
    shards make stanford_cars data/stanford_cars --annotations refined_train.csv --out shard_sets/cars_colour

    data/stanford_cars/
        devkit/cars_meta.mat, devkit/cars_train_annos.mat
        cars_test_annos_withlabels.mat      here or in devkit/
        cars_train/00001.jpg …              or cars_train/cars_train/, as Kaggle's copy has it
        cars_test/00001.jpg …               alike

label is the model ("AM General Hummer SUV 2000"); the boxes go into the samples. --split official is the release's, with
all 196 models on both sides; retrieval is what papers on retrieval do, models 1-98 to train and 99-196 to test.

--annotations takes a CSV with image, Class or Label, x1, y1, x2, y2 and needs cars_train/ alone: refined_train.csv of
stanford_cars_refined, whose classes are <model>_<colour>, or cardatasettrain.csv of StanfordCarsDatasetCSV for a copy
without devkit. label is the class as it stands there, group the model (by name if devkit/cars_meta.mat is there), and the
number of the colour is kept. The CSV covers the training photos only, so their classes are split as with --split none.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.errors import ShardError
from shards.inputs import release
from shards.record import Record

DOCUMENTED_AT = "https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.StanfordCars.html"
KAGGLE_AT = "https://www.kaggle.com/datasets/jessicali9530/stanford-cars-dataset"
REFINED_AT = "https://github.com/morrisfl/stanford_cars_refined"
VERIFIED = False
RELEASE = release.Release("Stanford Cars", DOCUMENTED_AT, KAGGLE_AT)
TRAIN, TEST = "cars_train/cars_train/|cars_train/", "cars_test/cars_test/|cars_test/"
META = "devkit/cars_meta.mat"
DEVKIT = (
    META,
    "devkit/cars_train_annos.mat",
    "cars_test_annos_withlabels.mat|devkit/cars_test_annos_withlabels.mat",
)
LAST_TRAINED = 98
CORNERS = ("x1", "y1", "x2", "y2")
BBOX = tuple(f"bbox_{corner}" for corner in CORNERS)
FIRST_PIXEL = 1  # the boxes were drawn in MATLAB


def add_options(parser: argparse.ArgumentParser) -> None:
    """ROOT and which labels."""
    release.add_options(parser, domain="cars")
    parser.add_argument(
        "--annotations", type=Path, metavar="CSV", help="labels of the training photos, as car × colour"
    )
    parser.add_argument(
        "--split",
        choices=("official", "retrieval", "none"),
        default="official",
        help="official: all models on both sides; retrieval: models 1-98 and 99-196; none: by class",
    )


def records(options: argparse.Namespace) -> Iterator[Record]:
    """One record a photo."""
    return csv_records(options) if options.annotations else devkit_records(options)


def devkit_records(options: argparse.Namespace) -> Iterator[Record]:
    """By the MATLAB files of the release."""
    root = options.root
    meta, train_list, test_list, train, test = RELEASE.open(root, *DEVKIT, TRAIN, TEST)
    models = read_models(meta)
    for split, path, folder in (("train", train_list, train), ("test", test_list, test)):
        for row in read_mat(path, "annotations", "class", "fname", *BBOX):
            number, name = int(row["class"]), str(row["fname"])
            yield release.image_record(
                root,
                f"{release.below(root, folder)}/{name}",
                options.domain,
                models.get(str(number), str(number)),
                split=split if options.split == "official" else retrieval_split(number, options.split),
                box=release.parse_box([row[corner] for corner in BBOX], f"{path}: {name}", first=FIRST_PIXEL),
            )


def csv_records(options: argparse.Namespace) -> Iterator[Record]:
    """By a CSV, which has the training photos only."""
    root, table = options.root, options.annotations
    (folder,) = RELEASE.open(root, TRAIN)
    if not table.is_file():
        raise ShardError(f"--annotations {table}: no such file; {REFINED_AT} has one in data/")
    meta = release.find_part(root, META)
    models = read_models(meta) if meta else {}
    for row in release.read_rows(table, "image", *CORNERS):
        label = row.get("Class") or row.get("Label") or ""
        model, _, colour = label.partition("_")
        if not model.isdecimal():
            raise ShardError(
                f"{table}: {row['image']} has the class {label!r}; 14 or 14_8 in a column Class or Label was expected"
            )
        yield release.image_record(
            root,
            f"{release.below(root, folder)}/{row['image']}",
            options.domain,
            label if colour else models.get(model, model),
            group=models.get(model, model) if colour else None,
            split=retrieval_split(int(model), options.split),
            box=release.parse_box([row[corner] for corner in CORNERS], f"{table}: {row['image']}", first=FIRST_PIXEL),
            extra={"colour": colour} if colour else {},
        )


def retrieval_split(number: int, choice: str) -> str | None:
    """By the number of the model, if --split is retrieval."""
    if choice != "retrieval":
        return None
    return "train" if number <= LAST_TRAINED else "test"


def read_models(path: Path) -> dict[str, str]:
    """Name by number, which counts from 1."""
    return {str(number): str(name) for number, name in enumerate(read_mat(path, "class_names"), start=1)}


def read_mat(path: Path, name: str, *fields: str) -> Any:
    """An array of a MATLAB 5 file, which holds data alone, with these fields in each row."""
    try:
        import numpy as np
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ImportError as error:
        raise ShardError(f"{path}: reading it needs scipy: pip install scipy") from error
    try:
        rows = np.atleast_1d(loadmat(path, squeeze_me=True, variable_names=[name])[name])
    except Exception as error:  # scipy says what is wrong with a file in a dozen types
        raise ShardError(f"{path}: no readable MATLAB file with {name!r} ({error})") from error
    missing = [field for field in fields if field not in (rows.dtype.names or ())]
    if missing:
        raise ShardError(f"{path}: {name} has no field {', '.join(missing)}")
    return rows
