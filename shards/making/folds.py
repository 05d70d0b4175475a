"""Stratified group k-fold: no unit straddles two folds, and every fold gets its share of every stratum.

Greedy, largest units first, as scikit-learn's StratifiedGroupKFold does it: each unit goes where the strata's shares
then vary least between the folds. Ties go to the smaller fold, then to a hash of the unit's name, never to input order.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

U = TypeVar("U", bound=Hashable)


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
