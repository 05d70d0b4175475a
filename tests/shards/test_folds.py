"""Stratified group k-fold."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from shards.errors import ShardError
from shards.making.folds import assign_folds
from shards.making.rules import Rules
from shards.place import File
from shards.record import Record
from tests.shards.conftest import place


def test_a_unit_is_in_one_fold_and_every_fold_has_its_share_of_every_stratum() -> None:
    chance = random.Random(3)
    counts = {
        unit: Counter({f"stratum{unit % 12}": chance.randrange(2, 30), "all": chance.randrange(3)})
        for unit in range(600)
    }
    folds = assign_folds(counts, 5, {unit: chance.randrange(10**9) for unit in counts})
    assert folds.keys() == counts.keys()
    images: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(5))
    for unit, strata in counts.items():
        for stratum, count in strata.items():
            images[stratum][folds[unit]] += count
    for shares in images.values():
        assert abs(shares / shares.sum() - 0.2).max() < 0.02


def test_it_is_as_balanced_as_scikit_learns() -> None:
    """StratifiedGroupKFold on the same images: groups are classes, strata their super-classes."""
    from sklearn.model_selection import StratifiedGroupKFold

    chance = random.Random(5)
    sizes = {unit: chance.randrange(2, 12) for unit in range(300)}
    stratum_of = {unit: chance.choice("aaabbcdddde") for unit in sizes}
    units = [unit for unit, size in sizes.items() for _ in range(size)]
    strata = [stratum_of[unit] for unit in units]

    def spread(folds: dict[int, int]) -> float:
        table = np.zeros((5, 5))
        for unit, size in sizes.items():
            table["abcde".index(stratum_of[unit]), folds[unit]] += size
        return float((table / table.sum(1, keepdims=True)).std(1).mean())

    theirs = {}
    for fold, (_, rows) in enumerate(StratifiedGroupKFold(5).split(units, strata, units)):
        theirs |= {units[row]: fold for row in rows}
    ours = assign_folds({unit: {stratum_of[unit]: size} for unit, size in sizes.items()}, 5, {u: u for u in sizes})
    assert spread(ours) <= spread(theirs) * 1.05 + 1e-3


def records() -> list[Record]:
    """60 classes in 4 groups; photographers cut across classes."""
    return [
        Record("d", f"class{n}", f"class{n}/{view}.jpg", File("nowhere"), group=f"group{n % 4}")
        for n in range(60)
        for view in range(3 + n % 5)
    ]


def test_the_folds_of_a_set_cover_every_class_once() -> None:
    seen: Counter[str | None] = Counter()
    for fold in range(5):
        placed = place(records(), Rules(folds=5, fold=fold, strata="group"))
        dev = {p.record.label for p in placed if p.split == "dev"}
        assert not dev & {p.record.label for p in placed if p.split == "train"}
        groups = Counter(p.record.group for p in placed if p.split == "dev")
        assert len(groups) == 4 and max(groups.values()) < 1.6 * min(groups.values())
        seen.update(dev)
    assert len(seen) == 60
    assert set(seen.values()) == {1}


def test_groups_as_units_never_straddle() -> None:
    listed = [Record("d", f"class{n % 9}", f"{n}.jpg", File("nowhere"), group=f"day{n // 7}") for n in range(400)]
    placed = place(listed, Rules(folds=4, fold=1, fold_units="group", strata="label"))
    split_of = defaultdict(set)
    for entry in placed:
        split_of[entry.record.group].add(entry.split)
    assert all(len(splits) == 1 for splits in split_of.values())
    with pytest.raises(ShardError, match=r"--fold-units group: 1 images have none \(d/x.jpg\)"):
        place([*listed, Record("d", "class0", "x.jpg", File("nowhere"))], Rules(folds=4, fold=0, fold_units="group"))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"folds": 101}, "--folds 101: at least 2, and at most 100"),
        ({"folds": 5, "fold": 5}, "--fold 5 is not one of the 5 folds"),
        ({"fold": 1}, "belong to --folds"),
        ({"folds": 3, "fold": 0, "dev_fraction": 0.1}, "--folds takes the place of --dev-fraction"),
        ({"folds": 3, "fold": 0, "strata": "label"}, "with --fold-units class each unit has only one"),
    ],
)
def test_impossible_folds_are_refused(rules: dict[str, object], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        Rules(**rules)  # type: ignore[arg-type]
