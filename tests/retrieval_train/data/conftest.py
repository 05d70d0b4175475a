"""Shard sets of drawings, made by the command that users type."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from shards.cli import main


def draw(folder: Path, *, domains: dict[str, int], images: int) -> None:
    """`images` JPEGs of each class; domain -> classes. folder/<domain>/<class>/<image>.jpg"""
    rng = np.random.default_rng(0)
    for domain, classes in domains.items():
        for label in range(classes):
            for number in range(images):
                colour = tuple(int(value) for value in rng.integers(0, 255, 3))
                image = Image.new("RGB", (48 + 3 * number, 40), colour)
                ImageDraw.Draw(image).regular_polygon((20, 20, 12), 3 + label, int(rng.integers(0, 360)), fill="white")
                path = folder / domain / f"c{label}" / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path, quality=90)


def make_sets(root: Path) -> Path:
    """shards_root with `shapes` (2 domains, 9 classes, 63 images, small shards) and `more` (1 domain, 4 classes, 20)."""
    for name, domains, images in (("shapes", {"warm": 5, "cold": 4}, 7), ("more", {"grey": 4}, 5)):
        draw(root / "images" / name, domains=domains, images=images)
        made = ["make", "folder", str(root / "images" / name), "--levels", "domain/class", "--train-only"]
        assert main([*made, "--shard-samples", "10", "--out", str(root / name)]) == 0
    return root


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See make_sets."""
    return make_sets(tmp_path_factory.mktemp("sets"))


def make_tags(root: Path, *, images: int = 40) -> Path:
    """root/tags: images with one to three labels of two domains, in shards of 7."""
    rng, lines = np.random.default_rng(1), ["image,labels,domain"]
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number in range(images):
        colour = tuple(int(value) for value in rng.integers(0, 255, 3))
        Image.new("RGB", (40 + number, 36), colour).save(root / "images" / f"{number}.jpg")
        labels = ",".join(sorted({f"t{number % 3}", f"t{number % 5}", f"t{number * 7 % 4}"}, reverse=number % 2 == 0))
        lines.append(f'{number}.jpg,"{labels}",{("sea", "sea", "hills")[number % 3]}')
    (root / "images/tags.csv").write_text("\n".join(lines) + "\n")
    made = ["make", "table", str(root / "images/tags.csv"), "--labels-column", "labels", "--domain-column", "domain"]
    assert main([*made, "--train-only", "--shard-samples", "7", "--out", str(root / "tags")]) == 0
    return root


@pytest.fixture(scope="session")
def tagged(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards_root with `tags` (see make_tags) and, with one label an image, `more`."""
    root = make_tags(tmp_path_factory.mktemp("tagged"))
    shutil.copytree(sets / "more", root / "more")
    return root
