"""Triplet loss: an anchor is nearer to its positive than to its negative, by a margin.

A term is [d(a, p) - d(a, n) + margin]+ (Schroff et al., FaceNet, CVPR 2015, section 3.1), or with a soft margin
log(1 + exp(d(a, p) - d(a, n))) (Hermans et al., In Defense of the Triplet Loss, 2017, section 2).

Legend: N anchors of this rank, B rows of all ranks, Q pairs of an anchor and a positive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from retrieval_train.losses.loss import LossConfig, Seen, Value

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.losses.pairs import Alike

FAR = 8.0
"""More than any distance."""


class Config(LossConfig):
    """The mean over the terms that the mining takes."""

    name: Literal["triplet"] = "triplet"
    """The loss."""
    mining: Literal["hard", "semi_hard", "weighted", "all"] = "hard"
    """hard: the farthest positive and the nearest negative of each anchor (Hermans et al.: batch hard). semi_hard: for each
    positive the nearest negative that is farther away, and where there is none the farthest negative (FaceNet, section 3.2).
    weighted: all positives by softmax(d) and all negatives by softmax(-d), the weights without gradient (adaptive weights,
    Ristani and Tomasi, CVPR 2018). all: every triplet (batch all)."""
    margin: Annotated[float, Field(ge=0, le=4)] | Literal["soft"] = 0.2
    """A difference of distances, or soft."""
    distance: Literal["euclidean", "squared", "cosine"] = "euclidean"
    """Of normalised embeddings: d in [0, 2], d squared in [0, 4], or 1 - cosine in [0, 2]."""
    min_shared: int = Field(default=1, ge=1)
    """How many labels an anchor and its positive share at least; a negative shares none, others are neither."""
    non_zero_only: bool = False
    """The mean over terms that are not 0, as Hermans et al. have it for all."""

    compares_rows: ClassVar[bool] = True

    def value(self, seen: Seen) -> Value:
        from retrieval_train.losses.pairs import alike, cosines, mean_of_terms

        distance_NB = self._distances(cosines(seen))
        pairs = alike(seen, min_shared=self.min_shared)
        by_anchor = self.mining in ("hard", "weighted")
        sum_N, count_N = (self._of_anchors if by_anchor else self._of_pairs)(distance_NB, pairs)
        return mean_of_terms(sum_N, count_N, seen)

    def _distances(self, cosine_NB: Tensor) -> Tensor:
        from retrieval_train.losses.pairs import euclidean

        if self.distance == "euclidean":
            return euclidean(cosine_NB)
        return (2 if self.distance == "squared" else 1) * (1 - cosine_NB)

    def _of_anchors(self, distance_NB: Tensor, pairs: Alike) -> tuple[Tensor, Tensor]:
        """One term an anchor that has a positive and a negative."""
        if self.mining == "hard":
            near_N = distance_NB.masked_fill(~pairs.positive_NB, -FAR).max(dim=1).values
            far_N = distance_NB.masked_fill(~pairs.negative_NB, FAR).min(dim=1).values
        else:
            near_N = (_softmax(distance_NB, pairs.positive_NB) * distance_NB).sum(dim=1)
            far_N = (_softmax(-distance_NB, pairs.negative_NB) * distance_NB).sum(dim=1)
        return self._terms(near_N, far_N, pairs.has_both_N)

    def _of_pairs(self, distance_NB: Tensor, pairs: Alike) -> tuple[Tensor, Tensor]:
        from retrieval_train.losses.pairs import over_pairs

        def terms(anchor_Q: Tensor, positive_Q: Tensor) -> tuple[Tensor, Tensor]:
            near_Q = distance_NB[anchor_Q, positive_Q]
            far_QB, negative_QB = distance_NB[anchor_Q], pairs.negative_NB[anchor_Q]
            if self.mining == "semi_hard":
                return self._terms(near_Q, _semi_hard(near_Q, far_QB, negative_QB), negative_QB.any(dim=1))
            sum_QB, count_QB = self._terms(near_Q[:, None], far_QB, negative_QB)
            return sum_QB.sum(dim=1), count_QB.sum(dim=1)

        return over_pairs(terms, pairs.positive_NB)

    def _terms(self, near: Tensor, far: Tensor, is_term: Tensor) -> tuple[Tensor, Tensor]:
        """The terms, 0 where there is none, and which of them count, int64."""
        from torch.nn import functional

        difference = near - far
        soft = self.margin == "soft"
        term = functional.softplus(difference) if soft else functional.relu(difference + float(self.margin))
        term = term.where(is_term, 0)
        return term, ((term > 0) if self.non_zero_only else is_term).long()


def _softmax(x_NB: Tensor, keep_NB: Tensor) -> Tensor:
    """Weights over what is kept, without gradient; all 0 where nothing is."""
    import torch

    return x_NB.detach().masked_fill(~keep_NB, torch.finfo(x_NB.dtype).min).softmax(dim=1) * keep_NB


def _semi_hard(near_Q: Tensor, far_QB: Tensor, negative_QB: Tensor) -> Tensor:
    """The distance of the negative that each pair is compared with."""
    farther_QB = negative_QB & (far_QB > near_Q[:, None])
    nearest_Q = far_QB.masked_fill(~farther_QB, FAR).min(dim=1).values
    farthest_Q = far_QB.masked_fill(~negative_QB, -FAR).max(dim=1).values
    return nearest_Q.where(farther_QB.any(dim=1), farthest_Q)
