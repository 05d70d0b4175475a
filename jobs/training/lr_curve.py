"""The curve of a learning-rate finder: the loss of a run whose learning rate rises with every step (Smith, WACV 2017).

The loss of one batch is noisy, so the curve is read smoothed: the running mean of the loss stands at the running mean of
log lr. Both lag behind by the same number of steps, so smoothing does not move the curve to higher learning rates.
Legend: P points of the curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

_CLEAR = 2.0
"""A change of the smoothed loss counts from so many standard deviations of single losses on: 500 curves of nothing but
normal noise then showed no fall."""


@dataclass(frozen=True)
class Ramp:
    """A schedule whose factor rises exponentially: it takes the learning rate whose peak is `peak` from low to high."""

    low: float
    high: float
    steps: int
    peak: float

    def lr(self, step: int) -> float:
        """At `step` (0-based)."""
        return self.low * math.exp(step / (self.steps - 1) * math.log(self.high / self.low))

    def factor(self, step: int) -> float:
        return self.lr(step) / self.peak


@dataclass(frozen=True)
class Suggestion:
    """Learning rates that the curve speaks for; where one is None, `why` says why."""

    steepest: float | None = None
    """Where the loss falls fastest per factor of learning rate."""
    before_rise: float | None = None
    """A tenth of that of the lowest loss: beyond that it rises."""
    why: str = ""


class Curve:
    """Grows by a point a step."""

    def __init__(self, *, smooth: float) -> None:
        self._smooth, self._weight = smooth, 0.0
        self._log_lr = self._loss = 0.0
        self.lr_P: list[float] = []
        self.loss_P: list[float] = []
        self.smooth_lr_P: list[float] = []
        self.smooth_loss_P: list[float] = []

    def add(self, lr: float, loss: float) -> None:
        self._weight = self._smooth * self._weight + 1  # of all points so far: the first means are of few, not of zeros
        self._log_lr += (math.log(lr) - self._log_lr) / self._weight
        self._loss += (loss - self._loss) / self._weight
        self.lr_P.append(lr)
        self.loss_P.append(loss)
        self.smooth_lr_P.append(math.exp(self._log_lr))
        self.smooth_loss_P.append(self._loss)

    def is_over(self, stop_at: float) -> bool:
        """Whether the smoothed loss is above `stop_at` times the best one; of a negative best, as far above as that."""
        best = min(self.smooth_loss_P)
        return self._loss > best + (stop_at - 1) * abs(best)

    def suggest(self, *, diverged: bool = False) -> Suggestion:
        """`diverged`: what came after the last point was too high for one."""
        if len(self.loss_P) < 5:
            return Suggestion(
                why=f"{len(self.loss_P)} points are no curve: try a lower find.low, or let it run to its end"
            )
        clear = _CLEAR * _noise(self.loss_P)
        bottom, rises = self._valley(clear)
        begin = self._first_settled(bottom)
        fall = fmean(self.loss_P[: begin + 1]) - self.smooth_loss_P[bottom]
        if bottom < 4 or fall <= clear:
            told = f"the smoothed loss falls by {max(fall, 0):.3g}, and from {clear:.3g} on it would be more than noise"
            return Suggestion(
                why=f"{told}: try a lower find.low, a higher find.high, more find.steps or a larger data.batch"
            )
        steepest = self._steepest(begin, bottom)
        if not (rises or diverged):
            why = "the loss does not rise again, so it is not known where it would: try a higher find.high"
            return Suggestion(steepest, why=why)
        return Suggestion(steepest, self.smooth_lr_P[bottom] / 10)

    def _valley(self, clear: float) -> tuple[int, bool]:
        """The lowest point before the loss first rises by more than `clear`, and whether it does.

        Not of the whole curve: at learning rates far too high embeddings collapse to one point, and the loss of a collapsed
        model may be lower than that of one that has just begun to learn.
        """
        bottom = 0
        for at, loss in enumerate(self.smooth_loss_P):
            if loss < self.smooth_loss_P[bottom]:
                bottom = at
            elif loss > self.smooth_loss_P[bottom] + clear and bottom >= 4:
                return bottom, True
        return bottom, False

    def _first_settled(self, bottom: int) -> int:
        """The first point whose mean is over as many losses as those of the later ones: before it noise looks steep."""
        return min(round(1 / (1 - self._smooth)), bottom // 3)

    def _steepest(self, begin: int, end: int) -> float:
        """Slopes are taken over a tenth of the points, since neighbours differ by noise."""
        reach = max(1, min(len(self.loss_P) // 20, (end - begin) // 2))
        slope_at = {at: self._slope(at - reach, at + reach) for at in range(begin + reach, end - reach + 1)}
        return self.smooth_lr_P[min(slope_at, key=slope_at.__getitem__)]

    def _slope(self, first: int, last: int) -> float:
        rise = self.smooth_loss_P[last] - self.smooth_loss_P[first]
        return rise / math.log(self.smooth_lr_P[last] / self.smooth_lr_P[first])


def _noise(loss_P: list[float]) -> float:
    """Standard deviation of single losses about their trend, from neighbours: a few that are far off do not count."""
    steps = [abs(other - one) for one, other in pairwise(loss_P)]
    return median(steps) / 0.6745 / math.sqrt(2) if steps else 0.0
