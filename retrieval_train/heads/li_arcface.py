"""Li-ArcFace: logits are linear in the angle instead of its cosine (Li et al., AirFace, ICCV workshops 2019).

A logit falls evenly from s at 0 to -s at pi, so the slope by the angle is the same everywhere and a margin that takes the
angle beyond pi needs no special case.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from retrieval_train.heads.angular import Radians, angle
from retrieval_train.heads.rule import RuleConfig, State, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Config(RuleConfig):
    """logit_y = s (pi - 2 (theta_y + m)) / pi, logit_j = s (pi - 2 theta_j) / pi."""

    name: Literal["li_arcface"] = "li_arcface"
    """The rule."""
    margin: Radians = 0.45
    """m in radians."""

    only_scales: ClassVar[bool] = False

    def target(self, targets: Targets, state: State) -> Tensor:
        return self._linear(angle(targets.cosine_P) + self.margin)

    def others(self, cosine_BC: Tensor, targets: Targets, state: State) -> Tensor:
        return self._linear(angle(cosine_BC))

    def _linear(self, angle: Tensor) -> Tensor:
        return self.scale * (1 - angle * (2 / math.pi))
