"""AdaFace: the length of an embedding stands for the quality of its image, and says what kind of margin it gets.

Kim et al., CVPR 2022, section 3. Long embeddings (good images) get a margin that stresses hard examples, short ones a margin
that stresses easy ones. "Long" is relative to a running mean and standard deviation over training batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from retrieval_train.heads.angular import Radians, angle
from retrieval_train.heads.rule import RuleConfig, State, Targets

if TYPE_CHECKING:
    from torch import Tensor

_EPS = 1e-3  # the authors': how near to 0 and pi an angle may come, and what is added to the standard deviation
_NORMS = (1e-3, 100.0)


class Config(RuleConfig):
    """logit_y = s (cos(theta_y - m q) - m (1 + q)) with q = clip(h (norm - mean) / std, -1, 1), logit_j = s cos(theta_j)."""

    name: Literal["adaface"] = "adaface"
    """The rule."""
    margin: Radians = 0.4
    """m: radians at q = -1, a difference of cosines at q = 0."""
    h: float = Field(default=0.333, gt=0)
    """What a norm one standard deviation above the mean adds to q."""
    momentum: float = Field(default=0.01, gt=0, le=1)
    """Weight of a batch in the running mean and standard deviation (the authors' t_alpha)."""

    def target(self, targets: Targets, state: State) -> Tensor:
        """Without gradient through the norm."""
        norm_P = targets.norm_P.detach().clamp(*_NORMS)
        quality_P = (self.h * (norm_P - state["norm_mean"]) / (state["norm_std"] + _EPS)).clamp(-1, 1)
        angle_P = (angle(targets.cosine_P) - self.margin * quality_P).clamp(_EPS, math.pi - _EPS)
        return self.scale * (angle_P.cos() - self.margin * (1 + quality_P))

    def first_state(self, num_classes: int) -> dict[str, Tensor]:
        import torch

        return {"norm_mean": torch.tensor(20.0), "norm_std": torch.tensor(100.0)}

    def observe(self, targets: Targets, state: State, log_sum_others: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """One row has no standard deviation: it moves the mean only."""
        norm_B = targets.norm_B.detach().clamp(*_NORMS).to(state["norm_mean"])
        seen = {"norm_mean": norm_B.mean()}
        if len(norm_B) > 1:
            seen["norm_std"] = norm_B.std()
        return {**state, **{name: state[name].lerp(value, self.momentum) for name, value in seen.items()}}
