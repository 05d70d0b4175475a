"""Stratified group k-fold: no unit straddles two folds, and every fold gets its share of every stratum.

Greedy, largest units first, as scikit-learn's StratifiedGroupKFold does it: each unit goes where the strata's shares
then vary least between the folds. Ties go to the smaller fold, then to a hash of the unit's name, never to input order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from shards.errors import ShardError, first_few
from shards.key import draw
from shards.making.base import Base
from shards.making.catalog import Catalog
from shards.making.filters import Bools, has_labels, num_classes
from shards.making.plan import DEV, NO_FOLD, QUERY, TRAIN, Numbers, Plan
from shards.making.rules import Rules
from shards.record import SPLITS

U = TypeVar("U", bound=Hashable)


def fold_splits(catalog: Catalog, kept: Bools, rules: Rules, base: Base | None) -> tuple[Numbers, Numbers]:
    """(split, fold): one fold is dev, or all are for training and in their folds; what has no label is dev. Units of the
    base stay where they are."""
    assert rules.folds is not None, "Rules sees to it"
    rows = np.flatnonzero(kept & has_labels(catalog))
    unit_column = catalog["label" if rules.fold_units == "class" else "group"]
    missing = rows[unit_column[rows] < (0 if rules.fold_units == "class" else 1)]
    if len(missing):
        names = [record.name for record in catalog.records(missing[:4])]
        raise ShardError(f"--fold-units {rules.fold_units}: {len(missing)} images have none ({first_few(names)})")
    strata = catalog[rules.strata or "domain"]
    counts: dict[int, Counter[Hashable]] = defaultdict(Counter)
    for unit, stratum in zip(unit_column[rows].tolist(), strata[rows].tolist(), strict=True):
        counts[unit][stratum] += 1
    named = catalog.classes if rules.fold_units == "class" else catalog.groups
    known: Mapping[Any, str] = {}
    if base:
        known = base.splits if rules.fold_units == "class" else base.group_splits
    placed = {unit: SPLITS.index(known[named[unit]]) for unit in counts if named[unit] in known}
    counts = {unit: strata for unit, strata in counts.items() if unit not in placed}
    ranks = {unit: int(draw(named[unit]) * 2**53) for unit in counts}
    folds = assign_folds(counts, rules.folds, ranks)
    split, fold_of = np.full(len(catalog), DEV, np.int8), np.full(len(catalog), NO_FOLD, np.int8)
    placed |= {unit: DEV if fold == rules.fold else TRAIN for unit, fold in folds.items()}
    split[rows] = [placed[unit] for unit in unit_column[rows].tolist()]
    if rules.folds_in_set:
        fold_of[rows] = [folds[unit] for unit in unit_column[rows].tolist()]
    return split, fold_of


def assign_folds(counts: Mapping[U, Mapping[Hashable, int]], num_folds: int, rank: Mapping[U, int]) -> dict[U, int]:
    """Fold by unit; `counts[unit][stratum]` are images, `rank` breaks ties."""
    totals: dict[Hashable, int] = {}
    for strata in counts.values():
        for stratum, count in strata.items():
            totals[stratum] = totals.get(stratum, 0) + count
    shares = {stratum: np.zeros(num_folds) for stratum in totals}
    sizes = np.zeros(num_folds)
    folds: dict[U, int] = {}
    for unit in sorted(counts, key=lambda unit: (-sum(counts[unit].values()), rank[unit])):
        added = {stratum: count / totals[stratum] for stratum, count in counts[unit].items()}
        fold = best_fold([(shares[stratum], share) for stratum, share in added.items()], sizes)
        for stratum, share in added.items():
            shares[stratum][fold] += share
        sizes[fold] += sum(counts[unit].values())
        folds[unit] = fold
    return folds


def best_fold(strata: Sequence[tuple[np.ndarray, float]], sizes: np.ndarray) -> int:
    """Where adding these shares leaves the least variance; `strata` are (shares by fold, share to add).

    The variance of x with a added at place i grows by 2 a x_i / k plus what is the same for every i, so the sum of
    a x_i decides.
    """
    cost = sum((share * shares for shares, share in strata), np.zeros(len(sizes)))
    return int(np.lexsort((np.arange(len(sizes)), sizes, np.round(cost, 12)))[0])


def refuse_useless_folds(catalog: Catalog, plan: Plan) -> None:
    """Whichever fold is held out: it must have a query, and the others classes for training."""
    for fold in range(plan.num_folds):
        is_held_out = plan.fold == fold
        num_trained = num_classes(catalog, plan.kept & (plan.split == TRAIN) & ~is_held_out)
        if num_trained < 2 or not (plan.role[plan.kept & is_held_out] == QUERY).any():
            raise ShardError(
                f"--folds {plan.num_folds}: fold {fold} would have nothing to search for, or the others fewer than 2 "
                "classes to train on; take fewer folds, or add classes of 2 images and more"
            )
