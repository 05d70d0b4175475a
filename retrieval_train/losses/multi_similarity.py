"""Multi-similarity loss: pairs are mined relative to each other, then weighted (Wang et al., CVPR 2019).

Of an anchor's cosines c, a negative counts above (lowest positive - epsilon), a positive below (highest negative + epsilon).
Its loss is log(1 + sum over positives of exp(-alpha (c - base))) / alpha + log(1 + sum over negatives of
exp(beta (c - base))) / beta. An anchor without positives or without negatives has loss 0 and still counts in the mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from retrieval_train.losses.loss import LossConfig, Seen, Value

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.losses.pairs import Alike

FAR = 4.0
"""More than any difference of cosines."""


class Config(LossConfig):
    """The mean over rows that have a label. Defaults are pytorch-metric-learning's; the authors' code has beta = 40."""

    name: Literal["multi_similarity"] = "multi_similarity"
    """The loss."""
    alpha: float = Field(default=2.0, gt=0)
    """How steeply positives cost."""
    beta: float = Field(default=50.0, gt=0)
    """How steeply negatives cost."""
    base: float = Field(default=0.5, ge=-1, le=1)
    """The paper's lambda, a cosine: positives below and negatives above cost most."""
    epsilon: float | None = Field(default=0.1, ge=0)
    """How much easier than the hardest pair of the other kind a pair may be, a difference of cosines; null: no mining."""

    compares_rows: ClassVar[bool] = True

    def value(self, seen: Seen) -> Value:
        from retrieval_train.losses.pairs import alike, cosines, log_sum_exp, mean_of_terms

        cosine_NB = cosines(seen)
        positive_NB, negative_NB = self._mined(cosine_NB.detach(), alike(seen))
        near_N = log_sum_exp(-self.alpha * (cosine_NB - self.base), positive_NB, plus_one=True) / self.alpha
        far_N = log_sum_exp(self.beta * (cosine_NB - self.base), negative_NB, plus_one=True) / self.beta
        labelled_N = seen.label_B[seen.first : seen.first + len(seen.emb_ND)] >= 0
        return mean_of_terms(near_N + far_N, labelled_N.long(), seen)

    def _mined(self, cosine_NB: Tensor, pairs: Alike) -> tuple[Tensor, Tensor]:
        """The positives and negatives that count, (N, B) each."""
        if self.epsilon is None:
            return pairs.positive_NB, pairs.negative_NB
        lowest_N1 = cosine_NB.masked_fill(~pairs.positive_NB, FAR).amin(dim=1, keepdim=True)
        highest_N1 = cosine_NB.masked_fill(~pairs.negative_NB, -FAR).amax(dim=1, keepdim=True)
        return (
            pairs.positive_NB & (cosine_NB < highest_N1 + self.epsilon),
            pairs.negative_NB & (cosine_NB > lowest_N1 - self.epsilon),
        )
