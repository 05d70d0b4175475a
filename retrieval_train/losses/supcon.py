"""Supervised contrastive loss: a softmax tells each positive from all other rows (Khosla et al., NeurIPS 2020, equation 2).

An anchor's loss is the mean over its positives p of -log(exp(c_p / t) / sum over other rows of exp(c / t)), c cosines: the
form with the mean outside of the logarithm. The other rows are those of all ranks that are positives or negatives.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from retrieval_train.losses.loss import LossConfig, Seen, Value


class Config(LossConfig):
    """The mean over anchors that have a positive."""

    name: Literal["supcon"] = "supcon"
    """The loss."""
    temperature: float = Field(default=0.1, gt=0)
    """What cosines are divided by."""

    compares_rows: ClassVar[bool] = True

    def value(self, seen: Seen) -> Value:
        from retrieval_train.losses.pairs import alike, cosines, log_sum_exp, mean_of_terms

        pairs = alike(seen)
        logit_NB = cosines(seen) / self.temperature
        num_positives_N = pairs.positive_NB.sum(dim=1)
        has_positive_N = num_positives_N > 0
        positive_N = (logit_NB * pairs.positive_NB).sum(dim=1) / num_positives_N.clamp(min=1)
        loss_N = log_sum_exp(logit_NB, pairs.positive_NB | pairs.negative_NB) - positive_N
        return mean_of_terms(loss_N.where(has_positive_N, 0), has_positive_N.long(), seen)
