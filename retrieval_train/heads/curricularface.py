"""CurricularFace: other classes that are hard weigh little at first and more as training goes on.

Huang et al., CVPR 2020, section 3. Hard is a class that scores above the target with its margin. Its cosine c becomes
c (t + c), where t follows the mean cosine of the targets: near 0 at first, so hard classes are played down, and later near
1, where they are played up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from retrieval_train.heads.angular import Radians, add_margin, sine
from retrieval_train.heads.rule import RuleConfig, State, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Config(RuleConfig):
    """logit_y = s cos(theta_y + m); logit_j = s c_j (t + c_j) where c_j > cos(theta_y + m), else s c_j."""

    name: Literal["curricularface"] = "curricularface"
    """The rule."""
    margin: Radians = 0.5
    """m in radians."""
    momentum: float = Field(default=0.01, gt=0, le=1)
    """Weight of a batch's mean target cosine in t."""

    only_scales: ClassVar[bool] = False
    many_labels: ClassVar[bool] = False  # with several targets a row, hard than which?

    def target(self, targets: Targets, state: State) -> Tensor:
        return self.scale * add_margin(targets.cosine_P, self.margin)

    def others(self, cosine_BC: Tensor, targets: Targets, state: State) -> Tensor:
        """Rows without a label have no hard classes. t and the choice of the hard classes are constants."""
        import torch

        hard_BC = cosine_BC > self._bar(targets)[:, None]
        return self.scale * torch.where(hard_BC, cosine_BC * (state["t"] + cosine_BC), cosine_BC)

    def first_state(self, num_classes: int) -> dict[str, Tensor]:
        import torch

        return {"t": torch.tensor(0.0)}

    def observe(self, targets: Targets, state: State, log_sum_others: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        if len(targets.row_P) == 0:
            return dict(state)
        return {"t": state["t"].lerp(targets.cosine_P.mean().to(state["t"]), self.momentum)}

    def _bar(self, targets: Targets) -> Tensor:
        """What a class is hard above, (B,): cos(theta_y + m) as written, also beyond pi, as in the authors' code."""
        import torch

        cosine_P = targets.cosine_P
        bar_B = torch.full_like(targets.norm_B, math.inf, dtype=cosine_P.dtype)
        bar_B[targets.row_P] = cosine_P * math.cos(self.margin) - sine(cosine_P) * math.sin(self.margin)
        return bar_B
