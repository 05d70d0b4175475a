"""ArcFace: the target's angle is enlarged by a margin before the softmax (Deng et al., CVPR 2019, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from retrieval_train.heads.angular import AngularConfig, add_margin
from retrieval_train.heads.rule import State, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Config(AngularConfig):
    """logit_y = s cos(theta_y + m), logit_j = s cos(theta_j)."""

    name: Literal["arcface"] = "arcface"
    """The rule."""
    easy: bool = False
    """Apply the margin only where the target's cosine is positive."""

    def target(self, targets: Targets, state: State) -> Tensor:
        with_margin_P = add_margin(targets.cosine_P, self.margin, easy=self.easy)
        return self.scale * self.differentiated(targets.cosine_P, with_margin_P)
