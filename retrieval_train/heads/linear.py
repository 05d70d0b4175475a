"""A linear classifier: products with the centres as they are, without normalisation and without a margin."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from retrieval_train.heads.rule import RuleConfig, State, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Config(RuleConfig):
    """logit_j = s (w_j . z + b_j)."""

    name: Literal["linear"] = "linear"
    """The rule."""
    scale: float = Field(default=1.0, gt=0)
    """s."""
    bias: bool = True
    """Whether classes have a bias: the last column of their centres."""

    is_cosine: ClassVar[bool] = False

    @property
    def has_bias(self) -> bool:
        return self.bias

    def target(self, targets: Targets, state: State) -> Tensor:
        return self.scale * targets.cosine_P
