"""The learning rate as a pure function of the step.

linear warmup        (step + 1) / (warm + 1) for the first `warm` steps, then the shape over the rest of the run
exponential warmup   1 - exp(-(step + 1) / warm) times the shape over the whole run
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator, Field, model_validator

from retrieval_train.config import Section
from retrieval_train.engine.length import Length


def _length_or_share(value: Any) -> Any:
    """Decided here and not by a union, which would report each mistake once for every member."""
    if isinstance(value, Mapping):
        return Length.model_validate(value)
    if isinstance(value, (int, float)) and not 0 <= value < 1:
        raise ValueError(f"{value} is not in [0, 1): a share of all steps; for a length write e.g. {{steps: {value}}}")
    return value


_SHAPES_OF = {"min_ratio": ("cosine", "poly"), "power": ("poly",), "at": ("multistep",), "factor": ("multistep",)}
"""Which shapes read a field: set for another one it would be ignored."""


class Rates(Protocol):
    """What an engine asks of a schedule."""

    def factor(self, step: int) -> float:
        """What the peak learning rates are multiplied by at `step` (0-based)."""
        ...


class ScheduleConfig(Section):
    """A warmup from about 0, then the named shape down from the peak."""

    name: Literal["cosine", "poly", "multistep", "constant"] = "cosine"
    """The shape: half a cosine, (1 - share of the run) ** power, drops by a factor, or none."""
    warmup: Annotated[float | Length, BeforeValidator(_length_or_share)] = 0.05
    """Share of all steps, or a length: {steps: 500}, {epochs: 0.5} or {images: 100000}."""
    warmup_shape: Literal["linear", "exponential"] = "linear"
    """exponential: `warmup` is the time constant, so it is never quite over (Ma and Yarats, AAAI 2021)."""
    min_ratio: float = Field(default=0.01, ge=0, le=1)
    """cosine and poly: the last step's learning rate over the peak's."""
    power: float = Field(default=1.0, gt=0)
    """poly: 1 is a straight line."""
    at: tuple[float, ...] = (1 / 3, 2 / 3)
    """multistep: where the rate drops, as shares of the run or as numbers of steps, ascending."""
    factor: float = Field(default=0.1, gt=0, lt=1)
    """multistep: what each drop multiplies the rate by."""

    @model_validator(mode="after")
    def _has_a_shape(self) -> ScheduleConfig:
        for key, shapes in _SHAPES_OF.items():
            if self.name not in shapes and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is for {' and '.join(shapes)}, and the name is {self.name}; leave {key} out")
        are_shares, are_steps = all(0 < at < 1 for at in self.at), all(at >= 1 and at == int(at) for at in self.at)
        if not self.at or not (are_shares or are_steps) or any(one >= other for one, other in pairwise(self.at)):
            raise ValueError(
                f"at: {list(self.at)} is not allowed: shares in (0, 1) like [0.5, 0.75], or whole numbers of steps "
                "like [1000, 1500], ascending"
            )
        return self

    def build(self, num_steps: int, *, epoch_steps: int, batch: int) -> Schedule:
        """Over `num_steps`, where an epoch has `epoch_steps` and a step sees `batch` images.

        Raises ValueError for a warmup or a drop that the run is too short for.
        """
        warmup = self.warmup
        warm = warmup.num_steps(epoch_steps, batch) if isinstance(warmup, Length) else warmup * num_steps
        if warm >= num_steps:
            raise ValueError(
                f"schedule.warmup is {warm} steps long and the whole run {num_steps}; make schedule.warmup shorter or "
                "length longer"
            )
        if self.name != "multistep":
            return Schedule(self, num_steps, warm)
        drops = tuple(round(at * num_steps) if at < 1 else int(at) for at in self.at)
        first = warm if self.warmup_shape == "linear" else 0
        if outside := [drop for drop in drops if not first <= drop < num_steps]:
            raise ValueError(
                f"schedule.at drops the rate at step {outside[0]}, which is not between the end of the warmup ({first:g}) "
                f"and that of the run ({num_steps}); change schedule.at, schedule.warmup or length"
            )
        return Schedule(self, num_steps, warm, drops)


@dataclass(frozen=True)
class Schedule:
    """A schedule over a known number of steps."""

    config: ScheduleConfig
    num_steps: int
    warm: float
    """Steps of the warmup."""
    drops: tuple[int, ...] = ()
    """multistep: the first step of each lower rate."""

    def factor(self, step: int) -> float:
        """What the peak learning rates are multiplied by at `step` (0-based)."""
        if self.config.warmup_shape == "exponential":
            damping = 1 - math.exp(-(step + 1) / self.warm) if self.warm else 1.0
            return damping * self._shape(step, start=0.0)
        if step < self.warm:
            return (step + 1) / (self.warm + 1)
        return self._shape(step, start=self.warm)

    def _shape(self, step: int, *, start: float) -> float:
        name, least = self.config.name, self.config.min_ratio
        if name == "constant":
            return 1.0
        if name == "multistep":
            return self.config.factor ** sum(step >= drop for drop in self.drops)
        share = min((step - start) / max(self.num_steps - 1 - start, 1), 1.0)
        fall = 0.5 * (1 + math.cos(math.pi * share)) if name == "cosine" else (1 - share) ** self.config.power
        return least + (1 - least) * fall
