"""The set that is always there: the same everywhere, fair between train and dev, neither trivial nor hopeless."""

from __future__ import annotations

import io
from argparse import Namespace
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.manifest import Manifest
from shards.record import Record
from shards.sources import sample
from tests.shards.conftest import Placed, Run, files_of, place

ALL = Namespace(classes=None, views=None)


@pytest.fixture(scope="module")
def placed() -> list[Placed]:
    """Every image of the whole set with its place; none is drawn yet."""
    return place(sample.records(ALL))


def test_it_is_the_same_set_on_every_run(run: Run, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        make = ("make", "sample", "--out", tmp_path / folder / "sample", "--classes", 8, "--views", 3)
        assert run(*make).code == 0
    assert files_of(tmp_path / "one/sample") == files_of(tmp_path / "two/sample")
    manifest = Manifest.load(tmp_path / "one/sample")
    assert manifest.domains == ("glyphs", "numbers", "places")
    assert run("check", manifest.folder).code == 0


def test_it_has_three_domains_with_enough_classes_and_images(placed: list[Placed]) -> None:
    assert 4000 <= len(placed) <= 7000
    trained, evaluated = defaultdict(set), defaultdict(set)
    for entry in placed:
        if entry.record.label is not None:
            (trained if entry.split == "train" else evaluated)[entry.record.domain].add(entry.record.label)
    assert set(trained) == set(evaluated) == {"glyphs", "numbers", "places"}
    for domain in trained:
        num_classes = len(trained[domain] | evaluated[domain])
        assert not trained[domain] & evaluated[domain]
        assert num_classes >= 100
        assert 0.6 <= len(trained[domain]) / num_classes <= 0.75
    assert Counter(entry.role for entry in placed)["distractor"] >= 50
    assert all(entry.split == "dev" for entry in placed if entry.role == "distractor")


def test_taking_fewer_classes_moves_none_to_another_split(placed: list[Placed]) -> None:
    splits = {(entry.record.domain, entry.record.label): entry.split for entry in placed}
    few = [record for record in sample.records(Namespace(classes=20, views=2)) if record.label]
    assert len(few) == 3 * 20 * 2
    assert all(splits[record.domain, record.label] == record.split for record in few)


def test_no_handwriting_is_seen_in_training_and_evaluation() -> None:
    from shards.sources.sample.numbers import scans_of

    for digit in range(10):
        trained = {scan.tobytes() for scan in scans_of(digit, "train")}
        assert not trained & {scan.tobytes() for scan in scans_of(digit, "dev")}


def test_no_pixel_belongs_to_two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    from shards.sources.sample import places, view

    seen: list[np.ndarray] = []
    monkeypatch.setattr(places, "look", lambda photo, quad: seen.append(np.array(quad)) or view.look(photo, quad))
    place = places.list_places()[0][0]
    for n in range(300):
        places.render(place, np.random.default_rng(n))
    low = np.array([place.column, place.row]) * places.CELL_PX
    corners = np.concatenate(seen)
    assert (corners >= low).all() and (corners <= low + places.CELL_PX).all()


def test_raw_pixels_are_well_above_chance_and_well_below_perfect(placed: list[Placed]) -> None:
    """16 x 16 RGB pixels, mean removed, cosine; dev queries against all of dev's index, as evaluations are run."""
    dev = [entry for entry in placed if entry.split == "dev"]
    pixels = np.stack([raw_pixels(entry.record) for entry in dev])
    names = np.array([f"{e.record.domain}/{e.record.label or e.key}" for e in dev])
    is_query = np.array([entry.role == "query" for entry in dev])
    scores = pixels[is_query] @ pixels[~is_query].T
    figures = defaultdict(list)
    for entry, score, name in zip((e for e in dev if e.role == "query"), scores, names[is_query], strict=True):
        is_hit = names[~is_query][np.argsort(-score, kind="stable")] == name
        places = min(int(is_hit.sum()), 5)
        figures[entry.record.domain].append((is_hit[0], is_hit[:places].mean()))
        figures["merged"].append((is_hit[0], is_hit[:places].mean()))
    for domain, hits in figures.items():
        recall, precision = np.mean(hits, axis=0)
        print(f"{domain}: Recall@1 {recall:.3f}, mMP@5 {precision:.3f}, {len(hits)} queries")
        assert 0.10 <= recall <= 0.60, domain
        assert 0.05 <= precision <= 0.45, domain


def raw_pixels(record: Record) -> np.ndarray:
    """The embedding that needs no model."""
    image = Image.open(io.BytesIO(record.place.read())).resize((16, 16), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32).ravel()
    pixels -= pixels.mean()
    return pixels / np.linalg.norm(pixels)
