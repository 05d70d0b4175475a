"""Margins that are added to an angle: their check, and cos(theta + m) with a gradient that is finite everywhere."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator

from retrieval_train.heads.rule import RuleConfig

if TYPE_CHECKING:
    from torch import Tensor


def in_radians(margin: float) -> float:
    """Raises ValueError for a margin that is no angle in [0, pi/2)."""
    if not 0 <= margin < math.pi / 2:
        hint = f" ({margin:g} degrees would be {math.radians(margin):.3f})" if 1 < margin < 90 else ""
        raise ValueError(f"{margin:g} is not in [0, pi/2); margins are radians{hint}")
    return float(margin)


Radians = Annotated[float, AfterValidator(in_radians)]
"""A margin that is an angle."""


class GradientConfig(RuleConfig):
    """Base of rules that can be differentiated as if they had no margin."""

    gradient: Literal["exact", "straight_through"] = "exact"
    """straight_through: insightface's, which differentiates as if there were no margin."""

    def differentiated(self, cosine_P: Tensor, with_margin_P: Tensor) -> Tensor:
        """The value of `with_margin_P` with the gradient that was asked for."""
        if self.gradient == "exact":
            return with_margin_P
        return cosine_P + (with_margin_P - cosine_P).detach()


class AngularConfig(GradientConfig):
    """Base of rules with one margin for all classes, in radians."""

    margin: Radians = 0.5
    """m in radians."""


def sine(cosine: Tensor) -> Tensor:
    """sin(theta) >= 0 of cos(theta). The slope of sqrt(1 - c^2) is infinite at |c| = 1: the floor keeps it finite there."""
    return (1 - cosine.square()).clamp(min=1e-7).sqrt()


def angle(cosine: Tensor) -> Tensor:
    """theta in [0, pi]. The slope of acos is infinite at |c| = 1: by atan2 with a floored sine it is finite there."""
    import torch

    return torch.atan2(sine(cosine), cosine)


def add_margin(cosine_P: Tensor, margin: Tensor | float, *, easy: bool = False) -> Tensor:
    """cos(theta + m), and where theta + m > pi, where the cosine would rise again, the straight line c - m sin(m).

    The line begins cos(m) + m sin(m) - 1 below the -1 that the cosine ends with (0.117 for m = 0.5): a step down, never up.
    `easy`: the margin only where the cosine is positive.
    """
    import torch

    margin_P = torch.as_tensor(margin, dtype=cosine_P.dtype, device=cosine_P.device)
    shifted_P = cosine_P * margin_P.cos() - sine(cosine_P) * margin_P.sin()
    if easy:
        return torch.where(cosine_P > 0, shifted_P, cosine_P)
    straight_P = cosine_P - margin_P * margin_P.sin()  # sin(pi - m) = sin(m)
    return torch.where(cosine_P > -margin_P.cos(), shifted_P, straight_P)
