"""AdamW: Adam whose weight decay does not go through the moments (Loshchilov and Hutter, ICLR 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from retrieval_train.engine.optimizers.optimizer import Beta, Group, OptimizerConfig, are_on_gpu

if TYPE_CHECKING:
    import torch


class Config(OptimizerConfig):
    """AdamW."""

    name: Literal["adamw"] = "adamw"
    """The optimizer."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""

    has_step: ClassVar[bool] = True

    @property
    def moments(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def build(self, groups: list[Group]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(groups, betas=self.betas, eps=self.eps, fused=are_on_gpu(groups))
