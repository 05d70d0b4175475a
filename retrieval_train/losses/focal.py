"""Focal loss: cross-entropy that counts less where the class is already likely (Lin et al., ICCV 2017, equation 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from retrieval_train.losses.softmax import Config as Softmax

if TYPE_CHECKING:
    from torch import Tensor


class Config(Softmax):
    """-(1 - p)^gamma log p with p = softmax(logits)[label] of every row."""

    name: Literal["focal"] = "focal"  # type: ignore[assignment]
    """The loss."""
    gamma: float = Field(default=2.0, ge=1)
    """How much less; 1 and more, so that the slope is finite where p = 1."""

    many_labels: ClassVar[bool] = False

    @field_validator("label_smoothing", mode="after")
    @classmethod
    def _p_is_of_the_label(cls, value: float) -> float:
        if value > 0:
            raise ValueError(
                f"{value:g} is given, but a smoothed cross-entropy is not the -log p that focal weighs; leave it out, or use "
                "softmax"
            )
        return value

    def rows(self, entropy_B: Tensor) -> Tensor:
        import torch

        return (-torch.expm1(-entropy_B)).clamp(min=0) ** self.gamma * entropy_B
