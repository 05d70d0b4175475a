"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from retrieval_train.engine.optimizers.optimizer import Beta, Group, OptimizerConfig, may_fuse

if TYPE_CHECKING:
    import torch


class Config(OptimizerConfig):
    """SGD. Undamped, so that a buffer of zeros takes the same first step as torch's none: 0 * momentum + gradient."""

    name: Literal["sgd"] = "sgd"
    """The optimizer."""
    lr: float = Field(default=0.02, gt=0)
    """Peak learning rate of the neck, and of the other parts where they name none."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Decay of matrices, by way of the gradient; biases, norms and class centres have none."""
    momentum: Beta = 0.9
    """Decay of the sum of gradients; 0 keeps none."""
    nesterov: bool = False
    """Look ahead by the momentum."""

    @model_validator(mode="after")
    def _has_momentum_to_look_ahead(self) -> Config:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead by the momentum, which is 0; set momentum=0.9 or nesterov=false")
        return self

    @property
    def moments(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def build(self, groups: list[Group]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.nesterov, fused=may_fuse(groups))
