"""ArcFace: the target's angle is enlarged by a margin before the softmax (Deng et al., CVPR 2019, section 3)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from retrieval_train.heads.rule import RuleConfig, Scores

if TYPE_CHECKING:
    from torch import Tensor


class Config(RuleConfig):
    """logit_y = s cos(theta_y + m), logit_j = s cos(theta_j)."""

    name: Literal["arcface"] = "arcface"
    """The rule."""
    margin: float = 0.5
    """m in radians."""
    easy: bool = False
    """Apply the margin only where the target's cosine is positive."""

    @field_validator("margin", mode="after")
    @classmethod
    def _margin_in_radians(cls, margin: Any) -> float:
        if not 0 <= margin < math.pi / 2:
            hint = f" ({margin:g} degrees would be {math.radians(margin):.3f})" if 1 < margin < 90 else ""
            raise ValueError(f"{margin:g} is not in [0, pi/2); margins are radians{hint}")
        return float(margin)

    def logits(self, scores: Scores, target_B: Tensor) -> Tensor:
        import torch

        row_R, column_R = scores.targets_here(target_B)
        cosine_R = scores.cosine_BC[row_R, column_R]
        # the slope of sqrt(1 - c^2) is infinite at |c| = 1: the floor keeps the gradient finite there
        sine_R = (1 - cosine_R.square()).clamp(min=1e-7).sqrt()
        shifted_R = cosine_R * math.cos(self.margin) - sine_R * math.sin(self.margin)
        if self.easy:
            with_margin_R = torch.where(cosine_R > 0, shifted_R, cosine_R)
        else:  # beyond pi - m the cosine would rise again: go on in a straight line
            straight_R = cosine_R - self.margin * math.sin(math.pi - self.margin)
            with_margin_R = torch.where(cosine_R > math.cos(math.pi - self.margin), shifted_R, straight_R)
        return self.scale * scores.cosine_BC.index_put((row_R, column_R), with_margin_R)
