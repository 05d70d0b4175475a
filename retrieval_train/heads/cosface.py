"""CosFace: a margin is taken from the target's cosine (Wang et al., CVPR 2018, equation 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from retrieval_train.heads.rule import RuleConfig, State, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Config(RuleConfig):
    """logit_y = s (cos(theta_y) - m), logit_j = s cos(theta_j)."""

    name: Literal["cosface"] = "cosface"
    """The rule."""
    margin: float = Field(default=0.35, ge=0, lt=2)
    """m, a difference of cosines."""

    def target(self, targets: Targets, state: State) -> Tensor:
        return self.scale * (targets.cosine_P - self.margin)
