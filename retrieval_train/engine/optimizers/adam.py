"""Adam (Kingma and Ba, ICLR 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from retrieval_train.engine.optimizers.optimizer import Beta, Group, OptimizerConfig, are_on_gpu

if TYPE_CHECKING:
    import torch


class Config(OptimizerConfig):
    """Adam. Its weight decay is added to the gradient, so that the moments divide it: adamw's has another meaning."""

    name: Literal["adam"] = "adam"
    """The optimizer."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of matrices, by way of the gradient; biases, norms and class centres have none."""
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

        return torch.optim.Adam(groups, betas=self.betas, eps=self.eps, fused=are_on_gpu(groups))
