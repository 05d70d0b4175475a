"""What Adam and its relatives share: a step over running means of the gradient and of its square."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from retrieval_train.engine.optimizers.optimizer import Beta, OptimizerConfig


class AdaptiveConfig(OptimizerConfig):
    """Base of Adam's relatives."""

    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""

    has_step: ClassVar[bool] = True

    @property
    def moments(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")
