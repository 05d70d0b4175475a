"""Who goes where when the release does not say."""

from __future__ import annotations

import re

import pytest

from shards.errors import ShardError
from shards.making.rules import Rules
from shards.place import File
from shards.record import Record
from tests.shards import conftest
from tests.shards.conftest import Placed


def place(counts: dict[str, int], rules: Rules = Rules(), domain: str = "d") -> list[Placed]:  # noqa: B008
    """Plans classes with these numbers of images; the class `None` is unlabelled."""
    records = [
        Record(domain, None if label == "None" else label, f"{label}/{n}.jpg", File("nowhere"))
        for label, count in counts.items()
        for n in range(count)
    ]
    return conftest.place(records, rules)


def classes_of(placed: list[Placed], split: str) -> set[str | None]:
    """Labels in a split."""
    return {entry.record.label for entry in placed if entry.split == split}


def test_a_class_keeps_its_split_and_its_queries_when_others_come() -> None:
    few = place({f"class{n}": 7 for n in range(100)})
    many = place({f"class{n}": 7 for n in range(400)})
    before = {entry.key: (entry.split, entry.role) for entry in few}
    after = {entry.key: (entry.split, entry.role) for entry in many}
    assert before.items() <= after.items()
    assert 0.12 < len(classes_of(many, "dev")) / 400 < 0.28


@pytest.mark.parametrize("num_classes", range(4, 30))
def test_from_four_classes_on_two_are_evaluated_and_two_are_trained(num_classes: int) -> None:
    placed = place({f"class{n}": 3 for n in range(num_classes)}, Rules(dev_fraction=0.01))
    assert len(classes_of(placed, "dev")) >= 2
    assert len(classes_of(placed, "train")) >= 2
    placed = place({f"class{n}": 3 for n in range(num_classes)}, Rules(dev_fraction=0.98))
    assert len(classes_of(placed, "train")) >= 2


def test_test_classes_are_disjoint_from_dev_and_train() -> None:
    placed = place({f"class{n}": 3 for n in range(200)}, Rules(dev_fraction=0.2, test_fraction=0.2))
    splits = [classes_of(placed, split) for split in ("train", "dev", "test")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 200
    assert all(20 < len(names) < 160 for names in splits)


@pytest.mark.parametrize(("images", "queries"), [(2, 1), (5, 1), (6, 2), (40, 2)])
def test_an_evaluated_class_has_one_query_or_two_from_six_images_on(images: int, queries: int) -> None:
    placed = place({f"class{n}": images for n in range(10)})
    for label in classes_of(placed, "dev"):
        roles = [entry.role for entry in placed if entry.record.label == label]
        assert (roles.count("query"), roles.count("index")) == (queries, images - queries)


def test_what_has_no_label_is_a_distractor_and_never_trained_on() -> None:
    placed = place({f"class{n}": 3 for n in range(10)} | {"None": 30}, Rules(test_fraction=0.2))
    distractors = [entry for entry in placed if entry.record.label is None]
    assert {entry.role for entry in distractors} == {"distractor"}
    assert {entry.split for entry in distractors} == {"dev", "test"}


def test_a_class_with_one_image_needs_a_decision_and_is_never_evaluated() -> None:
    counts = {f"single{n}": 1 for n in range(50)} | {f"class{n}": 2 for n in range(20)}
    message = "50 classes have one image only (d/single0, d/single1, d/single10, …)"
    with pytest.raises(ShardError, match=re.escape(message)):
        place(counts)
    kept = place(counts, Rules(min_images=1))
    assert len(kept) == 90
    assert not {label for label in classes_of(kept, "dev") if label and label.startswith("single")}
    assert len(place(counts, Rules(min_images=2))) == 40


@pytest.mark.parametrize(
    ("counts", "rules", "message"),
    [
        (
            {"a": 2, "b": 2, "c": 2, "e": 2},
            Rules(dev_fraction=0.0),
            "none of the 4 classes ended in an evaluation split",
        ),
        ({"a": 2}, Rules(train_only=True), "1 training classes among 2 images"),
        ({"a": 2, "b": 2, "None": 3}, Rules(train_only=True), "3 images have no label, and --train-only leaves no"),
        ({"a": 2, "b": 2}, Rules(train_only=True, min_images=3), "no image is left"),
    ],
)
def test_a_set_that_is_good_for_nothing_is_refused(counts: dict[str, int], rules: Rules, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        place(counts, rules)


def test_train_only_accepts_a_set_without_evaluation() -> None:
    assert {entry.split for entry in place({"a": 2, "b": 2}, Rules(train_only=True))} == {"train"}


@pytest.mark.parametrize(("dev", "test"), [(1.0, None), (0.6, 0.5), (-0.1, None)])
def test_fractions_must_leave_classes_for_training(dev: float, test: float | None) -> None:
    with pytest.raises(ShardError, match=r"must be in \[0, 1\) and leave classes for training"):
        Rules(dev_fraction=dev, test_fraction=test)


def test_of_rare_labels_an_image_is_a_query_only_if_it_has_a_match() -> None:
    records = [
        Record("d", None, f"{n}.jpg", File("nowhere"), labels=(f"tag{n % 60}", f"only{n}"), group=f"g{n % 60 % 9}")
        for n in range(80)
    ]
    placed = conftest.place(records, Rules(test_fraction=0.3, dev_fraction=0.3))
    for split in ("dev", "test"):
        there = [entry for entry in placed if entry.split == split]
        index = {label for entry in there if entry.role == "index" for label in entry.record.labels}
        queries = [entry for entry in there if entry.role == "query"]
        assert queries
        assert all(index & set(entry.record.labels) for entry in queries)


def test_unplaced_images_without_a_label_are_not_counted_as_the_inputs() -> None:
    records = [
        Record("d", "ab"[n % 2] if n < 8 else None, f"{n}.jpg", File("nowhere"), split="train" if n < 8 else None)
        for n in range(16)
    ]
    with pytest.raises(ShardError, match="8 images have no label, and --train-only leaves no"):
        conftest.place(records, Rules(train_only=True))
