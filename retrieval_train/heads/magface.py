"""MagFace: the margin grows with the length of the embedding, and a regulariser rewards length.

Meng et al., CVPR 2021, section 3. Good images, which can bear a larger margin, become long, poor ones stay short, so the
length tells the quality. Lengths are clipped to [norm_min, norm_max]: those outside have no gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from retrieval_train.heads.angular import Radians, add_margin
from retrieval_train.heads.rule import RuleConfig, State, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Config(RuleConfig):
    """logit_y = s cos(theta_y + m(a)), m linear in the norm a; each row's loss has lambda (a / norm_max^2 + 1 / a) more."""

    name: Literal["magface"] = "magface"
    """The rule."""
    scale: float = Field(default=64.0, gt=0)
    """s; the defaults below belong to it."""
    norm_min: float = Field(default=10.0, gt=0)
    """l_a: shorter embeddings count as this long."""
    norm_max: float = Field(default=110.0, gt=0)
    """u_a: longer embeddings count as this long."""
    margin_min: Radians = 0.45
    """l_m, radians: the margin at norm_min."""
    margin_max: Radians = 0.8
    """u_m, radians: the margin at norm_max."""
    norm_weight: float = Field(default=35.0, ge=0)
    """lambda_g: weight of the regulariser."""
    easy: bool = False
    """Apply the margin only where the target's cosine is positive, as the authors' code does."""

    @model_validator(mode="after")
    def _in_order(self) -> Config:
        if self.norm_min >= self.norm_max:
            raise ValueError(f"norm_min {self.norm_min:g} must be below norm_max {self.norm_max:g}")
        if self.margin_min > self.margin_max:
            raise ValueError(f"margin_min {self.margin_min:g} must not be above margin_max {self.margin_max:g}")
        return self

    def target(self, targets: Targets, state: State) -> Tensor:
        """Differentiated through the norm, too."""
        slope = (self.margin_max - self.margin_min) / (self.norm_max - self.norm_min)
        margin_P = self.margin_min + slope * (self._clipped(targets.norm_P) - self.norm_min)
        return self.scale * add_margin(targets.cosine_P, margin_P, easy=self.easy)

    def penalty(self, norm_B: Tensor) -> Tensor | None:
        norm_B = self._clipped(norm_B)
        return self.norm_weight * (norm_B / self.norm_max**2 + 1 / norm_B)

    def _clipped(self, norm: Tensor) -> Tensor:
        return norm.clamp(self.norm_min, self.norm_max)
