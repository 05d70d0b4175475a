"""NormFace: a softmax over scaled cosines with no margin (Wang et al., ACM MM 2017), the baseline of all margin rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from retrieval_train.heads.rule import RuleConfig, State, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Config(RuleConfig):
    """logit_j = s cos(theta_j)."""

    name: Literal["normface"] = "normface"
    """The rule."""
    scale: float = Field(default=16.0, gt=0)
    """s; 16 as in UnED and ILIAS."""

    def target(self, targets: Targets, state: State) -> Tensor:
        return self.scale * targets.cosine_P
