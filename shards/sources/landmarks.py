"""Google Landmarks Dataset v2: 200,000 landmarks to train on, and a retrieval test of its own.

    shards make landmarks data/gldv2 --out shard_sets/landmarks
    shards make landmarks data/gldv2 --subset full --split none --out shard_sets/all     4.1 million noisier images

    data/gldv2/
        train/0/1/2/0123456789abcdef.jpg …                 index/ and test/ alike
        train/train_clean.csv                              landmark_id,images
        train/train.csv                                    id,url,landmark_id (--subset full)
        index/index.csv, index/index_image_to_landmark.csv    id; id,landmark_id
        test/retrieval_solution_v2.1.csv                   id,images,Usage
        train/train_label_to_hierarchical.csv              optional, gives the groups; index_label_to_hierarchical.csv alike

The CSVs may also lie in data/gldv2 itself. Kaggle's copies have train alone: --split none, which then is all that is read.
label is the landmark_id. The index numbers its landmarks in a way of its own, so those are `index/<landmark_id>`.

The official split is train, and the test images as queries to the index: those of Usage Private are test, Public dev,
Ignored ones are left out. An index image has one role here, so it is dev's where Public queries alone ask for its
landmark and test's otherwise; Public queries for a landmark that Private ones ask for too are test. Index images without
a landmark are distractors. A query finds what has its landmark: the index images that the solution lists must agree on one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.inputs import release
from shards.record import Record

DOCUMENTED_AT = "https://github.com/cvdfoundation/google-landmark"
VERIFIED = False
RELEASE = release.Release("Google Landmarks v2", DOCUMENTED_AT, DOCUMENTED_AT)
TRAIN_LISTS = {"clean": "train_clean.csv", "full": "train.csv"}
EVALUATED = (
    "index/",
    "test/",
    "index/index.csv|index.csv",
    "index/index_image_to_landmark.csv|index_image_to_landmark.csv",
    "test/retrieval_solution_v2.1.csv|retrieval_solution_v2.1.csv",
)
SPLITS = {"Public": "dev", "Private": "test"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """ROOT and which training images."""
    release.add_options(parser, domain="landmarks", split="train, and the retrieval test as dev (Public) and test")
    parser.add_argument(
        "--subset", choices=tuple(TRAIN_LISTS), default="clean", help="training images to take (default: clean)"
    )


def records(options: argparse.Namespace) -> Iterator[Record]:
    """One record an image: train, index, test."""
    root, domain, name = options.root, options.domain, TRAIN_LISTS[options.subset]
    wanted = ["train/", f"train/{name}|{name}"]
    if options.split == "none":
        _, train = RELEASE.open(root, *wanted, hint="; train.csv is --subset full")
        yield from train_records(root, domain, train, None)
        return
    hint = "; --split none needs no index and test"
    _, train, _, _, index, landmarks, solution = RELEASE.open(root, *wanted, *EVALUATED, hint=hint)
    yield from train_records(root, domain, train, "train")
    queries, groups = read_queries(solution, landmarks), read_groups(root, "index")
    splits = landmark_splits(queries)
    yield from index_records(root, domain, index, landmarks, splits, groups)
    for query in queries:
        yield query_record(root, domain, query, splits, groups)


def train_records(root: Path, domain: str, path: Path, split: str | None) -> Iterator[Record]:
    """Images of either list; the clean one has a row a landmark, the full one a row an image."""
    groups = read_groups(root, "train")
    images = "images" if path.name == TRAIN_LISTS["clean"] else "id"
    for row in release.read_rows(path, "landmark_id", images):
        label = row["landmark_id"]
        for image in row[images].split():
            place = image_path("train", image)
            yield release.image_record(root, place, domain, label, group=groups.get(label), split=split)


def index_records(
    root: Path, domain: str, index: Path, landmarks: Path, splits: dict[str, str], groups: dict[str, str]
) -> Iterator[Record]:
    """Images with a landmark, then the others of the index, which belong to no class."""
    seen = set()
    for row in release.read_rows(landmarks, "id", "landmark_id"):
        image, landmark = row["id"], row["landmark_id"]
        seen.add(image)
        split = splits.get(landmark, "test") + "_index"
        label, group = f"index/{landmark}", groups.get(landmark)
        yield release.image_record(root, image_path("index", image), domain, label, group=group, split=split)
    for row in release.read_rows(index, "id"):
        if row["id"] not in seen:
            yield release.image_record(root, image_path("index", row["id"]), domain, split="test_distractor")


@dataclass(frozen=True, slots=True)
class Query:
    """A test image that asks for a landmark."""

    image: str
    usage: str
    landmarks: list[str]
    """Of the index images that answer it; it is only good with one."""

    @property
    def problem(self) -> str | None:
        """Why no label can say what it asks for."""
        return None if len(self.landmarks) == 1 else f"asks for the landmarks {', '.join(self.landmarks) or 'none'}"


def read_queries(solution: Path, landmarks: Path) -> list[Query]:
    """The rows of the solution that count."""
    rows = [row for row in release.read_rows(solution, "id", "images", "Usage") if row["Usage"] in SPLITS]
    asked = {image for row in rows for image in row["images"].split()}
    known = {
        row["id"]: row["landmark_id"] for row in release.read_rows(landmarks, "id", "landmark_id") if row["id"] in asked
    }
    return [
        Query(row["id"], row["Usage"], sorted({known[image] for image in row["images"].split() if image in known}))
        for row in rows
    ]


def landmark_splits(queries: list[Query]) -> dict[str, str]:
    """dev or test by landmark; test where both ask for it."""
    splits: dict[str, str] = {}
    for query in queries:
        if not query.problem and splits.get(query.landmarks[0]) != "test":
            splits[query.landmarks[0]] = SPLITS[query.usage]
    return splits


def query_record(root: Path, domain: str, query: Query, splits: dict[str, str], groups: dict[str, str]) -> Record:
    """The record of a query."""
    landmark = None if query.problem else query.landmarks[0]
    return release.image_record(
        root,
        image_path("test", query.image),
        domain,
        f"index/{landmark}" if landmark else None,
        group=groups.get(landmark) if landmark else None,
        split=f"{splits[landmark]}_query" if landmark else None,
        extra={"usage": query.usage},
        problem=query.problem,
    )


def read_groups(root: Path, part: str) -> dict[str, str]:
    """The hierarchical label by landmark; empty where that file is not there."""
    name = f"{part}_label_to_hierarchical.csv"
    path = release.find_part(root, f"{part}/{name}|{name}")
    if path is None:
        return {}
    rows = release.read_rows(path, "landmark_id", "hierarchical_label")
    return {row["landmark_id"]: row["hierarchical_label"] for row in rows if row["hierarchical_label"]}


def image_path(part: str, image: str) -> str:
    """`train/0/1/2/0123456789abcdef.jpg`."""
    return f"{part}/{image[:1]}/{image[1:2]}/{image[2:3]}/{image}.jpg"
