"""Rows compared with rows: cosines, distances, who is alike, and means over what the ranks count together.

Each rank compares its own rows with all (N x B, never B x B). Legend: N rows of this rank, B rows of all ranks, Q pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from retrieval_train.losses.loss import Seen, Value, spread

CHUNK = 2**24
"""Elements of a pairs x rows matrix that are in memory at once."""

Terms = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(anchor_Q, positive_Q) -> the sum of each pair's terms (Q,) and how many terms these are, int64 (Q,)."""


class Alike(NamedTuple):
    """Which rows are alike. A row is neither to itself, and rows without a label are neither to any."""

    positive_NB: Tensor
    """They share at least `min_shared` labels."""
    negative_NB: Tensor
    """They share none, and both have one."""

    @property
    def has_both_N(self) -> Tensor:
        return self.positive_NB.any(dim=1) & self.negative_NB.any(dim=1)


def alike(seen: Seen, *, min_shared: int = 1) -> Alike:
    labelled_B = seen.label_B >= 0
    labelled_N = labelled_B[seen.first : seen.first + len(seen.emb_ND)]
    positive_NB = (seen.overlap_NB >= min_shared) & ~seen.is_self_NB
    negative_NB = (seen.overlap_NB == 0) & labelled_N[:, None] & labelled_B[None]
    return Alike(positive_NB, negative_NB)


def products(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    """x y^T, (N, M), in the precision of its factors."""
    # bf16 cannot tell cosines near 1 apart, and those are what these losses are about
    with torch.autocast(x_ND.device.type, enabled=False):
        return x_ND @ y_MD.T


def cosines(seen: Seen) -> Tensor:
    """The cosine of each of my rows with all rows, (N, B)."""
    return products(seen.unit_ND, seen.unit_BD)


def euclidean(cosine: Tensor) -> Tensor:
    """The distance of unit vectors, in [0, 2]. Equal ones have distance and slope 0: the slope of sqrt is infinite there."""
    square = 2 - 2 * cosine
    is_apart = square > 4 * torch.finfo(square.dtype).eps  # less is rounding
    return torch.where(is_apart, torch.where(is_apart, square, 1).sqrt(), 0)


def log_sum_exp(x_NB: Tensor, keep_NB: Tensor, *, plus_one: bool = False) -> Tensor:
    """log(sum of exp(x) where kept), or log(1 + that sum), (N,). Where nothing is kept: the lowest finite number, or 0."""
    kept_NB = x_NB.masked_fill(~keep_NB, torch.finfo(x_NB.dtype).min)
    if plus_one:
        kept_NB = functional.pad(kept_NB, (0, 1))
    return kept_NB.logsumexp(dim=1)


def mean_of_terms(sum_N: Tensor, count_N: Tensor, seen: Seen) -> Value:
    """The mean over the terms of all ranks: each of my rows knows the sum of its terms and how many they are (int64).

    0 where no rank has any. The loss of a row is the mean of its own terms, 0 without one.
    """
    total = seen.world.sum(count_N.sum())
    row_N = sum_N.detach() / count_N.clamp(min=1)
    row_B = seen.world.gather(row_N, list(seen.counts))
    return Value(spread(sum_N.sum() / total.clamp(min=1), seen.world), row_B)


def over_pairs(terms: Terms, positive_NB: Tensor) -> tuple[Tensor, Tensor]:
    """The terms of every pair of `positive_NB`, summed for each of my rows, and their number: (N,), (N,).

    `terms` may make a pairs x B matrix: it is called with as many pairs as fit, and again in the backward.
    """
    anchor_Q, other_Q = positive_NB.nonzero(as_tuple=True)
    size = max(1, CHUNK // max(1, positive_NB.shape[1]))
    parts = []
    for anchor_q, other_q in zip(anchor_Q.split(size), other_Q.split(size), strict=True):
        if len(anchor_Q) <= size:
            parts.append(terms(anchor_q, other_q))
        else:
            parts.append(checkpoint(terms, anchor_q, other_q, use_reentrant=False, preserve_rng_state=False))
    sums, counts = zip(*parts, strict=True)
    # one place a pair, and then a sum: adding up by index has no fixed order on a GPU
    sum_Q, count_Q = torch.cat(sums), torch.cat(counts)
    sum_NB = sum_Q.new_zeros(positive_NB.shape).index_put((anchor_Q, other_Q), sum_Q)
    count_NB = count_Q.new_zeros(positive_NB.shape).index_put((anchor_Q, other_Q), count_Q)
    return sum_NB.sum(dim=1), count_NB.sum(dim=1)
