"""Angular loss: the angle at the negative of a triangle (a, p, n) is at most alpha (Wang et al., ICCV 2017, the N-pair form).

A pair (a, p) costs log(1 + sum over negatives n of exp(f)), f = 4 tan^2(alpha) (a + p) . n - 2 (1 + tan^2(alpha)) a . p,
of normalised embeddings. Unlike a margin of distances, an angle does not depend on how far apart the classes are.

Legend: N anchors of this rank, B rows of all ranks, Q pairs of an anchor and a positive.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import field_validator

from retrieval_train.losses.loss import LossConfig, Seen, Value

if TYPE_CHECKING:
    from torch import Tensor


class Config(LossConfig):
    """The mean over all pairs of an anchor and a positive that have a negative (the paper has one pair a class)."""

    name: Literal["angular"] = "angular"
    """The loss."""
    alpha: float = math.pi / 4
    """Radians, the largest angle that costs little; the paper tries 36 to 55 degrees."""

    compares_rows: ClassVar[bool] = True

    @field_validator("alpha", mode="after")
    @classmethod
    def _alpha_in_radians(cls, alpha: float) -> float:
        if not 0 < alpha < math.pi / 2:
            hint = f" ({alpha:g} degrees would be {math.radians(alpha):.3f})" if 1 < alpha < 90 else ""
            raise ValueError(f"{alpha:g} is not in (0, pi/2); alpha is in radians{hint}")
        return alpha

    def value(self, seen: Seen) -> Value:
        from retrieval_train.losses.pairs import alike, cosines, log_sum_exp, mean_of_terms, over_pairs, products

        pairs, cosine_NB, unit_BD = alike(seen), cosines(seen), seen.unit_BD
        slope = math.tan(self.alpha) ** 2

        def terms(anchor_Q: Tensor, positive_Q: Tensor) -> tuple[Tensor, Tensor]:
            both_QB = cosine_NB[anchor_Q] + products(unit_BD[positive_Q], unit_BD)
            f_QB = 4 * slope * both_QB - 2 * (1 + slope) * cosine_NB[anchor_Q, positive_Q][:, None]
            negative_QB = pairs.negative_NB[anchor_Q]
            return log_sum_exp(f_QB, negative_QB, plus_one=True), negative_QB.any(dim=1).long()

        return mean_of_terms(*over_pairs(terms, pairs.positive_NB), seen)
