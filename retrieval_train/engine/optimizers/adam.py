"""Adam (Kingma and Ba, ICLR 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from retrieval_train.engine.optimizers.adaptive import AdaptiveConfig
from retrieval_train.engine.optimizers.optimizer import Group, may_fuse

if TYPE_CHECKING:
    import torch


class Config(AdaptiveConfig):
    """Adam. Its weight decay is added to the gradient, so that the moments divide it: adamw's has another meaning."""

    name: Literal["adam"] = "adam"
    """The optimizer."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of matrices, by way of the gradient; biases, norms and class centres have none."""

    def build(self, groups: list[Group]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.Adam(groups, betas=self.betas, eps=self.eps, fused=may_fuse(groups))
