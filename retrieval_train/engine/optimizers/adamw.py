"""AdamW: Adam whose weight decay does not go through the moments (Loshchilov and Hutter, ICLR 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from retrieval_train.engine.optimizers.adaptive import AdaptiveConfig
from retrieval_train.engine.optimizers.optimizer import Group, may_fuse

if TYPE_CHECKING:
    import torch


class Config(AdaptiveConfig):
    """AdamW."""

    name: Literal["adamw"] = "adamw"
    """The optimizer."""

    def build(self, groups: list[Group]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(groups, betas=self.betas, eps=self.eps, fused=may_fuse(groups))
