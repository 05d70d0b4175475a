"""How much each parameter of a sweep mattered: simple measures of one parameter at a time, which know no interplay.

    values of a grid, choices, seeds     eta squared: the share of the metric's variance that the means of the groups with
                                         equal values explain (one-way analysis of variance)
    numbers drawn from a range           |rho|: Spearman's rank correlation with the metric, which sees what rises or falls
                                         and not what is best in the middle

Both lie between 0 and 1, are no shares of a whole, and are above 0 by chance alone: for k groups of n points eta squared is
(k - 1) / (n - 1) on average, |rho| about sqrt(2 / (pi (n - 1))). What is not well above that says nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 3
"""Points without which nothing is said."""


@dataclass(frozen=True)
class Importance:
    """Of one parameter."""

    key: str
    measure: str
    """`eta²` or `|rho|`."""
    value: float
    by_chance: float
    """What it would be on average if the parameter did nothing."""
    n: int


def importance(points: Sequence[tuple[Mapping[str, Any], float]], drawn: Collection[str]) -> list[Importance]:
    """Each parameter that all (values, metric) have, the strongest beyond chance first. `drawn` are the keys whose values
    come from a range. Parameters that no two points share a value of are left out, as nothing can be told of them."""
    points = [(values, metric) for values, metric in points if math.isfinite(metric)]
    keys = [key for key in (points[0][0] if points else {}) if all(key in values for values, _ in points)]
    metrics = np.array([metric for _, metric in points])
    if len(points) < LEAST or np.ptp(metrics) == 0:
        return []
    found = []
    for key in keys:
        values = [values[key] for values, _ in points]
        one = _correlation(key, np.array(values, float), metrics) if key in drawn else _grouped(key, values, metrics)
        found += [one] if one is not None else []
    return sorted(found, key=lambda one: one.by_chance - one.value)


def _grouped(key: str, values: Sequence[Any], metrics: NDArray[np.float64]) -> Importance | None:
    names = np.array([json.dumps(value, sort_keys=True) for value in values])
    groups = [metrics[names == name] for name in np.unique(names)]
    if not 1 < len(groups) < len(values):
        return None
    between = sum(len(group) * (group.mean() - metrics.mean()) ** 2 for group in groups)
    value = float(between / ((metrics - metrics.mean()) ** 2).sum())
    return Importance(key, "eta²", value, (len(groups) - 1) / (len(values) - 1), len(values))


def _correlation(key: str, values: NDArray[np.float64], metrics: NDArray[np.float64]) -> Importance | None:
    if np.ptp(values) == 0:
        return None
    rho = float(np.corrcoef(_ranks(values), _ranks(metrics))[0, 1])
    return Importance(key, "|rho|", abs(rho), math.sqrt(2 / (math.pi * (len(values) - 1))), len(values))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 0; equal values have the mean of their places. As scipy.stats.rankdata, which takes a second to import."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[which]
