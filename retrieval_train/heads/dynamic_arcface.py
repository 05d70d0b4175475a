"""ArcFace with a margin for each class: the fewer training images it has, the larger.

`cosine` is UniFEx's law: m falls like half a cosine from the smallest class to the largest. `power` is that of Ha et al.
(3rd place of Google Landmark Recognition 2020): m follows n^(-1/4). Both are stretched so that the smallest class has
margin_max and the largest margin_min. Where all classes are equally large, all have margin_max.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from retrieval_train.heads.angular import GradientConfig, Radians, add_margin
from retrieval_train.heads.rule import State, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Config(GradientConfig):
    """logit_y = s cos(theta_y + m_y), logit_j = s cos(theta_j), with m_y from the number of the class's training images."""

    name: Literal["dynamic_arcface"] = "dynamic_arcface"
    """The rule."""
    law: Literal["cosine", "power"] = "cosine"
    """How margins fall with the number of images: cosine of the number, or its power -1/4."""
    margin_min: Radians = 0.2
    """Radians: the margin of the class with the most images."""
    margin_max: Radians = 0.5
    """Radians: the margin of the class with the fewest images."""
    easy: bool = False
    """Apply the margin only where the target's cosine is positive."""

    @model_validator(mode="after")
    def _in_order(self) -> Config:
        if self.margin_min > self.margin_max:
            raise ValueError(f"margin_min {self.margin_min:g} must not be above margin_max {self.margin_max:g}")
        return self

    def margins(self, count_C: Tensor) -> Tensor:
        """float64 (C,). A class without training images counts as one with a single image."""
        count_C = count_C.double().clamp(min=1)
        if self.law == "cosine":
            rarity_C = (1 + (math.pi * _stretched(count_C)).cos()) / 2
        else:
            rarity_C = 1 - _stretched(-count_C.pow(-0.25))
        return self.margin_min + (self.margin_max - self.margin_min) * rarity_C

    def target(self, targets: Targets, state: State) -> Tensor:
        assert targets.margin_P is not None, "whoever makes the targets asks `margins` first"
        with_margin_P = add_margin(targets.cosine_P, targets.margin_P, easy=self.easy)
        return self.scale * self.differentiated(targets.cosine_P, with_margin_P)


def _stretched(size_C: Tensor) -> Tensor:
    """`size_C` moved and scaled so that its smallest is 0 and its largest 1; all 0 where they are equal."""
    low, high = size_C.aminmax()
    return (size_C - low) / (high - low) if high > low else size_C.new_zeros(size_C.shape)
