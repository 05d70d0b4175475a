"""What it means that two images show the same: that depends on what each of them is for.

That is its *kind*: set, split, role and label. A relation is a test of two arrays of kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shards.audit.images import OURS, TRAIN, is_in_fold, is_trained
from shards.record import ROLES

GRAVE, NOTABLE, MILD = "grave", "notable", "mild"
QUERY, INDEX = ROLES.index("query"), ROLES.index("index")
KIND = np.dtype([("set", "u1"), ("split", "u1"), ("role", "u1"), ("label", "<i4")])
Test = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Relation:
    """One way in which two images of the same picture can stand to each other."""

    name: str
    severity: str
    meaning: str
    holds: Test
    """Of two arrays of kinds, in this order."""
    drop: Test | None
    """Whether the first of the two is one to leave out; None keeps both."""


def is_evaluated(kinds: np.ndarray) -> np.ndarray:
    """Images for an evaluation; those of a fold where it is held out."""
    return np.asarray(kinds["split"] != TRAIN)


def is_for_the_same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Both for training or both for evaluation."""
    return np.asarray((is_trained(one) == is_trained(other)) & (is_evaluated(one) == is_evaluated(other)))


def leaks(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """One is trained on where the other is evaluated with."""
    is_leak = (is_trained(one) & is_evaluated(other)) | (is_evaluated(one) & is_trained(other))
    return np.asarray(are_ours(one, other) & (one["split"] != other["split"]) & is_leak)


def leaks_from(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of a leak, the side that is trained on; of two folds the first."""
    is_first = is_in_fold(one) & is_in_fold(other) & (one["split"] < other["split"])
    return np.asarray((is_trained(one) & ~is_trained(other)) | is_first)


def are_ours(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Both from the set that is audited."""
    return np.asarray((one["set"] == OURS) & (other["set"] == OURS))


def have_two_labels(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Both have one, and it is not the same."""
    return np.asarray((one["label"] != other["label"]) & (one["label"] >= 0) & (other["label"] >= 0))


def is_at(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Both in one split of our set."""
    return np.asarray(are_ours(one, other) & (one["split"] == other["split"]))


RELATIONS = (
    Relation(
        "leak",
        GRAVE,
        "trained on, and evaluated with",
        leaks,
        leaks_from,
    ),
    Relation(
        "evaluation trained on elsewhere",
        GRAVE,
        "in our evaluation, and trained on in the other set",
        lambda one, other: (one["set"] == OURS) & (other["set"] != OURS) & is_evaluated(one) & is_trained(other),
        lambda one, other: one["set"] == OURS,
    ),
    Relation(
        "training evaluated elsewhere",
        GRAVE,
        "trained on here, and in the other set's evaluation",
        lambda one, other: (one["set"] == OURS) & (other["set"] != OURS) & is_trained(one) & is_evaluated(other),
        lambda one, other: one["set"] == OURS,
    ),
    Relation(
        "two labels",
        GRAVE,
        "the same picture under two labels",
        lambda one, other: are_ours(one, other) & have_two_labels(one, other),
        lambda one, other: ~leaks(one, other),  # else the leak says which
    ),
    Relation(
        "false distractor",
        GRAVE,
        "a distractor that shows what has a label in the same split",
        lambda one, other: is_at(one, other) & (one["label"] < 0) & (other["label"] >= 0),
        lambda one, other: one["label"] < 0,
    ),
    Relation(
        "dev and test",
        NOTABLE,
        "in two evaluation splits: what is tuned on one does well on the other",
        lambda one, other: (
            are_ours(one, other) & ~is_trained(one) & ~is_trained(other) & (one["split"] < other["split"])
        ),
        lambda one, other: one["split"] < other["split"],
    ),
    Relation(
        "easy query",
        NOTABLE,
        "a query whose answer in the index is the same picture: it measures nothing",
        lambda one, other: (
            is_at(one, other) & (one["label"] == other["label"]) & (one["role"] == QUERY) & (other["role"] == INDEX)
        ),
        lambda one, other: one["role"] == INDEX,
    ),
    Relation(
        "repeat",
        MILD,
        "twice in one place under one label",
        lambda one, other: is_at(one, other) & (one["role"] == other["role"]) & (one["label"] == other["label"]),
        None,  # kinds cannot say which: the smallest key stays (drops.py)
    ),
    Relation(
        "shared",
        MILD,
        "in both sets, in both for training or in both for evaluation",
        lambda one, other: (one["set"] == OURS) & (other["set"] != OURS) & is_for_the_same(one, other),
        None,
    ),
)
