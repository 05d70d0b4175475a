"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from retrieval_train.config import Section


class ScheduleConfig(Section):
    """Linear warmup from 0, then the named shape down to `min_ratio` of the peak at the last step."""

    name: Literal["cosine", "constant"] = "cosine"
    """The shape after the warmup."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of all steps."""
    min_ratio: float = Field(default=0.01, ge=0, le=1)
    """The last step's learning rate over the peak's."""

    def build(self, num_steps: int) -> Schedule:
        return Schedule(self, num_steps)


@dataclass(frozen=True)
class Schedule:
    """A schedule over a known number of steps."""

    config: ScheduleConfig
    num_steps: int

    def factor(self, step: int) -> float:
        """What the peak learning rates are multiplied by at `step` (0-based)."""
        warm = self.config.warmup * self.num_steps
        if step < warm:
            return (step + 1) / (warm + 1)
        if self.config.name == "constant":
            return 1.0
        share = (step - warm) / max(self.num_steps - 1 - warm, 1)
        least = self.config.min_ratio
        return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
