"""Properties of the files that tell a split, a role or a label; and sets with several labels an image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.audit import balance, tells
from shards.audit.examine import Question, examine, read_sets
from shards.audit.images import IMAGE, Images
from shards.classes import Classes
from shards.manifest import Manifest, Shard, write_labels, write_manifest, write_sidecar
from shards.record import ROLES
from shards.tar import Ready, TarWriter
from tests.shards.conftest import Run
from tests.shards.test_audit import Planted, audit, draw, encode, write_set

CLASSES = 40


def many(seed: int = 0) -> Images:
    """30 classes to train on and 10 to evaluate with, 8 images each, and 60 distractors; sizes say nothing."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(CLASSES * 8 + 60, IMAGE)
    label = np.repeat(np.arange(CLASSES), 8)
    rows["label"] = np.append(label, np.full(60, -1))
    rows["split"] = (rows["label"] < 0) | (rows["label"] >= 30)
    at = np.arange(len(rows)) % 8
    evaluated = np.where(at < 2, ROLES.index("query"), ROLES.index("index"))
    rows["role"] = np.where(rows["label"] < 0, ROLES.index("distractor"), np.where(rows["split"] == 1, evaluated, 0))
    rows["width"], rows["height"] = rng.integers(200, 205, len(rows)), rng.integers(100, 104, len(rows))
    rows["bytes"] = rng.integers(9000, 11000, len(rows))
    rows["format"], rows["quality"], rows["deviation"] = 1, 90, 50
    return Images((), rows, tuple(f"d/{at}" for at in range(CLASSES)), ("d",))


def told(images: Images) -> dict[str, tuple[str, str]]:
    """(severity, first words) by title."""
    return {one.title: (one.severity, one.what.partition(" tells")[0]) for one in tells.tell_findings(images)}


@pytest.mark.parametrize("seed", range(5))
def test_chance_tells_nothing(seed: int) -> None:
    assert told(many(seed)) == {}


def test_distractors_of_one_size_are_told_with_their_shares() -> None:
    images = many()
    is_distractor = images.rows["label"] < 0
    images.rows["width"][is_distractor], images.rows["height"][is_distractor] = 512, 512
    images.rows["width"][np.flatnonzero(is_distractor)[0]] = 300
    (finding,) = tells.tell_findings(images)
    assert (finding.severity, finding.title, finding.count) == ("grave", "distractors in d", 60)
    assert "512×512: 98% of distractors and 0% of the other evaluation images" in finding.what


@pytest.mark.parametrize(
    ("trait", "value", "name"),
    [
        ("format", 2, "format"),
        ("quality", 75, "JPEG quality"),
        ("encoder", 7, "JPEG tables"),
        ("flags", 1, "EXIF"),
        ("flags", 2, "colour mode"),
        ("height", 60, "height"),
    ],
)
def test_an_evaluation_that_was_made_otherwise_is_told(trait: str, value: int, name: str) -> None:
    images = many()
    images.rows[trait][images.rows["split"] == 1] = value
    found = told(images)
    assert set(found) == {"evaluation in d"} and found["evaluation in d"][0] == "grave"
    (finding,) = tells.tell_findings(images)
    assert name in finding.what


def test_what_only_some_have_is_notable_and_detail_is_never_grave() -> None:
    images = many()
    is_query = images.rows["role"] == ROLES.index("query")
    images.rows["flags"][is_query & (np.arange(len(is_query)) % 8 == 0)] = 1
    assert told(images) == {"queries in d": ("notable", "EXIF")}
    images = many()
    images.rows["bytes"][images.rows["split"] == 1] *= 4
    assert told(images)["evaluation in d"] == ("notable", "file size")


def test_classes_that_have_a_size_each_do_not_tell_the_split_but_their_label() -> None:
    images = many()
    labelled = images.rows["label"] >= 0
    width_C = 300 + np.random.default_rng(0).permutation(CLASSES)
    images.rows["width"][labelled] = width_C[images.rows["label"][labelled]]
    images.rows["width"][~labelled] = width_C[np.arange(60) % CLASSES]
    assert told(images) == {"labels in d": ("notable", told(images)["labels in d"][1])}
    (finding,) = tells.tell_findings(images)
    assert finding.numbers["accuracy"] == 1 and "of 30 training classes" in finding.what


def test_distractors_in_a_domain_of_their_own_are_compared_with_all() -> None:
    images = many()
    is_distractor = images.rows["label"] < 0
    images.rows["domain"][is_distractor] = 1
    images.rows["format"][is_distractor] = 2
    (finding,) = tells.tell_findings(replace(images, domains=("d", "other")))
    assert finding.title == "distractors" and "PNG: 100%" in finding.what


def test_accuracy_is_that_of_the_rule_written_out() -> None:
    rng = np.random.default_rng(0)
    unit_N = np.repeat(np.arange(60), 5)
    is_one_N = unit_N % 3 == 0
    value_N = rng.integers(0, 4, 300) + is_one_N * rng.integers(0, 3, 300)
    half_N = tells.halves(unit_N)
    rates: dict[bool, list[float]] = {True: [], False: []}
    for unit in range(60):
        mine = unit_N == unit
        learnt = half_N != half_N[mine][0]
        scores = []
        for value in value_N[mine]:
            one = (value_N[learnt & is_one_N] == value).mean()
            other = (value_N[learnt & ~is_one_N] == value).mean()
            scores.append(0.5 if one == other else float(one > other))
        side = bool(is_one_N[mine][0])
        rates[side].append(float(np.mean(scores) if side else 1 - np.mean(scores)))
    expected = (np.mean(rates[True]) + np.mean(rates[False])) / 2
    assert tells.measure("width", value_N, is_one_N, unit_N).accuracy == pytest.approx(expected)
    assert 0.4 < half_N[::5].mean() < 0.6


def test_gini_is_the_mean_difference_over_twice_the_mean() -> None:
    sizes = np.sort(np.random.default_rng(0).integers(1, 100, 50))
    expected = np.abs(sizes[:, None] - sizes[None, :]).mean() / (2 * sizes.mean())
    assert balance.gini(sizes) == pytest.approx(expected)
    assert balance.gini(np.full(7, 3)) == 0


def test_the_command_says_it_too(tmp_path: Path, run: Run) -> None:
    samples = []
    for number in range(12):
        place = "train" if number < 6 else "dev index"
        size = (96, 72) if number < 6 else (88, 88)
        samples += [
            Planted(f"{number}-{at}", encode(draw(9 * number + at, size)), str(number), place) for at in range(5)
        ]
    audited = audit(run, write_set(tmp_path / "set", samples), "--strict")
    assert audited.ran.code == 1
    assert audited.findings == {("format leak", "grave", "evaluation in pets")}
    assert "88×88: 100% of evaluation and 0% of training" in audited.page


def test_several_labels_are_compared_together(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    classes = Classes.count([("d", name, None, "train") for name in "abc"])
    labels = [(0, 1), (0, 1), (2,), (1,)]
    images = [encode(draw(0)), encode(draw(0)), encode(draw(0)), encode(draw(1))]
    with (folder / "train-000000.tar").open("wb") as file:
        tar = TarWriter(file)
        for at, (several, image) in enumerate(zip(labels, images, strict=True)):
            tar.add(Ready(f"d/{at}", "jpg", image, b"{}", (-1, 0, 0), several))
        digest = tar.end()
    shard = Shard("train-000000.tar", "train", "train", 4, tar.num_bytes, digest)
    write_sidecar(folder, shard, tar.rows)
    write_labels(folder, shard, tar.labels)
    about = {"config": {}, "multi_label": True}
    write_manifest(folder, name="set", shards=[shard], domains=["d"], classes=classes, groups=[("", "")], about=about)
    assert Manifest.load(folder).is_multi_label
    question = Question(folder)
    found = examine(question, read_sets(question, lambda *done: None), lambda *done: None)
    assert {(one.title, one.count) for one in found.findings if one.pairs} == {("two labels", 2), ("repeat", 1)}
    assert found.images.label(0) == "d/a, d/b"
    assert set(found.drops) == {0, 1, 2}
