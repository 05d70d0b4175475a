"""Lion: the sign of a mix of gradient and momentum (Chen et al., NeurIPS 2023, algorithm 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from retrieval_train.engine.optimizers.optimizer import Beta, Group, OptimizerConfig

if TYPE_CHECKING:
    import torch


class Config(OptimizerConfig):
    """Lion. Every weight moves by the learning rate: its authors take AdamW's over 3 to 10, and the decay times that."""

    name: Literal["lion"] = "lion"
    """The optimizer."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate of the neck, and of the other parts where they name none."""
    weight_decay: float = Field(default=0.5, ge=0)
    """Decay of matrices; biases, norms and class centres have none."""
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """The momentum's share in the mix, and its decay."""

    @property
    def moments(self) -> tuple[str, ...]:
        return ("exp_avg",)

    def build(self, groups: list[Group]) -> torch.optim.Optimizer:
        from timm.optim import Lion

        built: torch.optim.Optimizer = Lion(groups, betas=self.betas)
        return built
