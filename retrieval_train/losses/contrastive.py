"""Contrastive loss: positives nearer than one margin, negatives farther than another, on normalised embeddings.

A positive pair's term is [d - positive_margin]+ ^ power, a negative pair's is [negative_margin - d]+ ^ power, d in [0, 2]
(Hadsell et al., CVPR 2006, equation 4: power 2, positive_margin 0; it has each term with a factor 1/2).

The margin loss (Wu et al., Sampling Matters, ICCV 2017, section 4.2) with beta = 1.2 and alpha = 0.2 is
`positive_margin: 1.0, negative_margin: 1.4, power: 1, mean: together`.

Legend: N rows of this rank, M rows that they are compared with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from retrieval_train.losses.loss import LossConfig, Seen, Value

if TYPE_CHECKING:
    from torch import Tensor


class Contrastive(LossConfig):
    """Base of losses whose terms are pairs, each by its distance alone."""

    positive_margin: float = Field(default=0.0, ge=0, lt=2)
    """A distance: positives that are nearer cost nothing."""
    negative_margin: float = Field(default=1.0, gt=0, le=2)
    """A distance: negatives that are farther cost nothing; unrelated vectors are 1.41 apart."""
    power: Literal[1, 2] = 2
    """What the distance beyond the margin is raised to."""
    mean: Literal["apart", "together"] = "apart"
    """apart: the mean over positives that cost something plus that over such negatives; together: one mean over both."""

    compares_rows: ClassVar[bool] = True

    @model_validator(mode="after")
    def _margins_in_order(self) -> Contrastive:
        if self.positive_margin >= self.negative_margin:
            raise ValueError(
                f"positive_margin {self.positive_margin:g} is not below negative_margin {self.negative_margin:g}: "
                "a distance between them would be wrong for both"
            )
        return self

    def of_pairs(self, cosine_NM: Tensor, positive_NM: Tensor, negative_NM: Tensor, seen: Seen) -> Value:
        from torch.nn import functional

        from retrieval_train.losses.pairs import euclidean, mean_of_terms

        distance_NM = euclidean(cosine_NM)
        near_NM = functional.relu(distance_NM - self.positive_margin).pow(self.power) * positive_NM
        far_NM = functional.relu(self.negative_margin - distance_NM).pow(self.power) * negative_NM
        kinds = [near_NM, far_NM] if self.mean == "apart" else [near_NM + far_NM]
        values = [mean_of_terms(kind_NM.sum(dim=1), (kind_NM > 0).sum(dim=1), seen) for kind_NM in kinds]
        rows = [value.row_B for value in values if value.row_B is not None]
        return Value(sum(value.loss for value in values), sum(rows))  # type: ignore[arg-type]


class Config(Contrastive):
    """Pairs within the global batch."""

    name: Literal["contrastive"] = "contrastive"
    """The loss."""

    def value(self, seen: Seen) -> Value:
        from retrieval_train.losses.pairs import alike, cosines

        return self.of_pairs(cosines(seen), *alike(seen), seen)
