"""How good a ranking is: each metric is a mean over judged queries, in one merged index, per domain and over
all.

A hit is relevant if it has the query's label; class ids are unique over the domains, so the domain then
agrees too. Label -1 is a distractor: relevant to nobody. A query without a relevant image in the index cannot
be judged; it is left out of every mean and counted (others score it 1.0, 0.0, or divide by zero).

A domain's row is the mean of that domain's queries, each searched in the index of all domains.

Shapes: Q queries, N images of the index, K ranks (the best first).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retrieval_train.evaluation.search import Hits

MERGED = "merged"
Scores = dict[str, dict[str, float]]
"""scope -> metric -> value. The scopes are `merged` and the domains that have a judged query."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Truth:
    """Which images of the index are relevant to which query."""

    query_label_Q: np.ndarray
    query_domain_Q: np.ndarray  # row of `domains`
    index_label_N: np.ndarray  # -1: distractor
    index_domain_N: np.ndarray
    domains: tuple[str, ...]

    def __post_init__(self) -> None:
        if MERGED in self.domains:
            raise ValueError(f"a domain cannot be called {MERGED!r}: that row is the mean over all domains")
        for what, label, domain in (
            ("query", self.query_label_Q, self.query_domain_Q),
            ("index", self.index_label_N, self.index_domain_N),
        ):
            if (
                label.ndim != 1
                or label.shape != domain.shape
                or label.dtype.kind != "i"
                or domain.dtype.kind not in "iu"
            ):
                raise ValueError(f"{what}: labels {_array(label)}, domains {_array(domain)}; give two rows of integers")
            if len(label) and label.min() < -1:
                raise ValueError(f"{what}: label {label.min()}; labels are class ids from 0, or -1 for a distractor")
            if len(domain) and domain.max() >= len(self.domains):
                raise ValueError(f"{what}: domain {domain.max()} is not one of the {len(self.domains)} domains")
        self._check_classes()

    @cached_property
    def num_relevant_Q(self) -> np.ndarray:
        """n_q: images of the query's class in the whole index, not only among the hits."""
        known_N: np.ndarray = self.index_label_N[self.index_label_N >= 0]
        largest = max(self.query_label_Q.max(initial=0), known_N.max(initial=0))
        count_C = np.bincount(known_N, minlength=int(largest) + 1)
        num_Q: np.ndarray = np.where(self.query_label_Q >= 0, count_C[self.query_label_Q], 0)
        return num_Q

    @property
    def is_judged_Q(self) -> np.ndarray:
        judged_Q: np.ndarray = self.num_relevant_Q > 0
        return judged_Q

    def is_relevant(self, hits: Hits) -> np.ndarray:
        """relevant_QK, for ids that are row numbers of the index."""
        num_queries, num_images = len(self.query_label_Q), len(self.index_label_N)
        if len(hits.id_QK) != num_queries or hits.id_QK.max(initial=-1) >= num_images:
            raise ValueError(
                f"hits of {len(hits.id_QK)} queries with ids up to {hits.id_QK.max(initial=-1)} do not "
                f"belong to {num_queries} queries and an index of {num_images}"
            )
        if not num_images:
            return np.zeros(hits.id_QK.shape, bool)
        label_QK = np.where(hits.id_QK >= 0, self.index_label_N[hits.id_QK], -1)
        relevant_QK: np.ndarray = (label_QK == self.query_label_Q[:, None]) & (label_QK >= 0)
        return relevant_QK

    def _check_classes(self) -> None:
        label = np.concatenate([self.query_label_Q, self.index_label_N])
        domain = np.concatenate([self.query_domain_Q, self.index_domain_N])
        pairs = np.unique(np.stack([label, domain], axis=1)[label >= 0], axis=0)
        twice = np.flatnonzero(pairs[1:, 0] == pairs[:-1, 0])
        if len(twice):
            (label_a, domain_a), (_, domain_b) = pairs[twice[0]], pairs[twice[0] + 1]
            names = f"{self.domains[domain_a]!r} and {self.domains[domain_b]!r}"
            raise ValueError(f"class {label_a} is in the domains {names}; class ids are unique over all domains")


def mean_matches(relevant_QK: np.ndarray, num_relevant_Q: np.ndarray, *, k: int) -> np.ndarray:
    """mMP@k of the Google Universal Image Embedding Challenge 2022 (k=5), also in UnED (Ypsilantis et al.,
    ICCV 2023).

    The share of relevant images among the first min(n_q, k) ranks, where n_q relevant images are in the
    index: a query with three is judged on three places, so a perfect ranking scores 1.0 however rare the
    object is. Ranks after min(n_q, k) are not read: a lone relevant image at rank 2 scores 0. (The
    "precision@k" of open-metric-learning divides by the same number but counts hits up to rank k, so it is
    never lower and often far higher.)
    """
    places_Q = np.minimum(num_relevant_Q, k)
    is_read_QK = np.arange(relevant_QK.shape[1]) < places_Q[:, None]
    value_Q: np.ndarray = np.divide((relevant_QK & is_read_QK).sum(axis=1), places_Q)
    return value_Q


def recall(relevant_QK: np.ndarray, num_relevant_Q: np.ndarray, *, k: int) -> np.ndarray:
    """R@k as on Stanford Online Products (Oh Song et al., CVPR 2016): 1 if any of the first k is relevant,
    else 0.
    """
    value_Q: np.ndarray = np.where(relevant_QK[:, :k].any(axis=1), 1.0, 0.0)
    return value_Q


def average_precision(relevant_QK: np.ndarray, num_relevant_Q: np.ndarray, *, k: int) -> np.ndarray:
    """AP@k as in Google Landmarks v2 (Weyand et al., CVPR 2020): the precisions at the relevant ranks up to
    k, summed and divided by min(n_q, k): by what could have been found, not by what was.
    """
    relevant_QK = relevant_QK[:, :k]
    precision_QK = np.cumsum(relevant_QK, axis=1) / np.arange(1, relevant_QK.shape[1] + 1)
    value_Q: np.ndarray = (precision_QK * relevant_QK).sum(axis=1) / np.minimum(num_relevant_Q, k)
    return value_Q


@dataclass(frozen=True)
class Metric:
    value: Callable[..., np.ndarray]
    k: int
    meaning: str
    """For readers of a report."""


METRICS: Mapping[str, Metric] = {
    "mMP@5": Metric(
        mean_matches,
        5,
        "share of right images among the first min(n, 5) ranks; n = right images in the index",
    ),
    "R@1": Metric(recall, 1, "share of queries whose first hit is right"),
    "R@5": Metric(recall, 5, "share of queries with a right image among the first 5 hits"),
    "R@10": Metric(recall, 10, "share of queries with a right image among the first 10 hits"),
    "mAP@10": Metric(average_precision, 10, "precisions at the right ranks up to 10, summed, divided by min(n, 10)"),
}
DEPTH = max(metric.k for metric in METRICS.values())
"""Search this many hits."""


def per_query(hits: Hits, truth: Truth) -> dict[str, np.ndarray]:
    """metric -> value_Q, NaN where a query is not judged."""
    relevant_QK = truth.is_relevant(hits)
    if relevant_QK.shape[1] < min(DEPTH, len(truth.index_label_N)):
        raise ValueError(f"{relevant_QK.shape[1]} hits a query; the metrics read {DEPTH}")
    judged_Q = truth.is_judged_Q
    values = {}
    for name, metric in METRICS.items():
        values[name] = np.full(len(judged_Q), np.nan)
        values[name][judged_Q] = metric.value(relevant_QK[judged_Q], truth.num_relevant_Q[judged_Q], k=metric.k)
    return values


def evaluate(hits: Hits, truth: Truth) -> Scores:
    """Every metric for `merged` and for each domain that has a judged query."""
    return mean_by_scope(per_query(hits, truth), truth)


def mean_by_scope(values: Mapping[str, np.ndarray], truth: Truth) -> Scores:
    """The mean of each value_Q over the judged queries of each scope."""
    if not truth.is_judged_Q.any():
        raise ValueError(f"none of the {len(truth.query_label_Q)} queries has an image of its class in the index")
    return {
        scope: {name: float(value_Q[in_scope_Q & truth.is_judged_Q].mean()) for name, value_Q in values.items()}
        for scope, in_scope_Q, _ in _scopes(truth)
        if (in_scope_Q & truth.is_judged_Q).any()
    }


def count(truth: Truth) -> dict[str, dict[str, int]]:
    """scope -> how many queries, judged queries, images of the index (distractors among them) and classes in
    it.
    """
    return {
        scope: {
            "queries": int(in_scope_Q.sum()),
            "judged": int((in_scope_Q & truth.is_judged_Q).sum()),
            "index": int(in_scope_N.sum()),
            "distractors": int((in_scope_N & (truth.index_label_N == -1)).sum()),
            "classes": len(np.unique(truth.index_label_N[in_scope_N & (truth.index_label_N >= 0)])),
        }
        for scope, in_scope_Q, in_scope_N in _scopes(truth)
    }


def _scopes(truth: Truth) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(scope, queries in it, images of the index in it): merged first, then the domains by name."""
    everything = (np.ones(len(truth.query_label_Q), bool), np.ones(len(truth.index_label_N), bool))
    domains = sorted((name, row) for row, name in enumerate(truth.domains))
    return [(MERGED, *everything)] + [
        (name, truth.query_domain_Q == row, truth.index_domain_N == row) for name, row in domains
    ]


def _array(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"
