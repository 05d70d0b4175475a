"""AdaCos: no margin, and a scale that follows from the number of classes and the state of training.

Zhang et al., CVPR 2019, section 4. The fixed scale is sqrt(2) ln(C - 1). The dynamic one starts there, and every training
batch sets it to ln(B) / cos(min(pi/4, theta)): B is the mean over the rows of the sum over the other classes of
exp(s cos(theta_j)) at the scale before, theta the median angle between the images and the centres of their own classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator, model_validator

from retrieval_train.heads.rule import RuleConfig, State, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Config(RuleConfig):
    """logit_j = s cos(theta_j) with an s that is found, not set."""

    name: Literal["adacos"] = "adacos"
    """The rule."""
    dynamic: bool = True
    """Whether s follows the training; else it stays sqrt(2) ln(C - 1)."""
    scale: None = None  # type: ignore[assignment]  # where code forgets to ask `factor`, it fails instead of being wrong
    """Found, not set: the running state `scale`."""

    @field_validator("scale", mode="before")
    @classmethod
    def _found_not_set(cls, value: Any) -> None:
        if value is not None:
            raise ValueError(f"{value} is given, but adacos finds its scale itself; leave it out, or use normface")

    @model_validator(mode="after")
    def _sees_all_classes(self) -> Config:
        if self.dynamic and self.sample_rate < 1:
            raise ValueError(
                f"sample_rate is {self.sample_rate:g}, but dynamic adacos finds its scale from a sum over all other classes; "
                "set sample_rate: 1, or dynamic: false"
            )
        return self

    def target(self, targets: Targets, state: State) -> Tensor:
        return state["scale"] * targets.cosine_P

    def factor(self, state: State) -> Tensor | float:
        return state["scale"]

    def first_state(self, num_classes: int) -> dict[str, Tensor]:
        import torch

        if num_classes < 3:
            raise ValueError(
                f"{num_classes} classes: adacos' scale sqrt(2) ln(C - 1) is above 0 from 3 on; use normface"
            )
        return {"scale": torch.tensor(math.sqrt(2) * math.log(num_classes - 1))}

    def observe(self, targets: Targets, state: State, log_sum_others: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """A batch without labels, or whose other classes are so far away that s would not be above 0, leaves it as it was."""
        import torch

        if not self.dynamic or len(targets.row_P) == 0:
            return dict(state)
        before = state["scale"]
        labelled_B = targets.row_P.unique()
        log_mean = log_sum_others(before)[labelled_B].logsumexp(0) - math.log(len(labelled_B))  # B itself overflows
        median = targets.cosine_P.acos().quantile(0.5)
        scale = (log_mean / median.clamp(max=math.pi / 4).cos()).to(before)
        return {"scale": torch.where(scale.isfinite() & (scale > 0), scale, before)}
