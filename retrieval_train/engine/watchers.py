"""What happens after every step, small things first: numbers to the tracker, a line in the log. The job lists them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from retrieval_train.engine.engine import Report
from retrieval_train.engine.loop import Clock
from retrieval_train.tracking import Tracker

if TYPE_CHECKING:
    from retrieval_train.data.order.order import Order
    from retrieval_train.world import World

log = logging.getLogger(__name__)

RANKS_EVERY = 10  # steps between two looks at all ranks

Figures = Callable[[Report], Mapping[str, float | str]]


class Track:
    """Every step's figures for the tracker.

    `of_step` give more of every step, `of_ranks` of all ranks now and then and after the last of `num_steps`: those
    are collective.
    """

    def __init__(
        self,
        tracker: Tracker,
        *,
        epoch_steps: int,
        num_steps: int,
        clock: Clock,
        of_step: Sequence[Figures],
        of_ranks: Sequence[Figures],
    ) -> None:
        self._tracker, self._epoch_steps, self._num_steps, self._clock = tracker, epoch_steps, num_steps, clock
        self._of_step, self._of_ranks = of_step, of_ranks
        self._last = time.perf_counter()

    def after(self, report: Report) -> None:
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        is_due = report.step % RANKS_EVERY == 0 or report.step == self._num_steps
        figures: dict[str, float | str] = {
            "epoch": round(report.step / self._epoch_steps, 4),
            "images": report.step * report.images,
            "image_px": report.image_px,
            "loss": report.loss,
            "lr": report.lr,
            "grad_norm": report.grad_norm,
            "images_per_s": 0.0,
            "images_per_s_rank": 0.0,
            "data_wait_s": round(report.wait_s, 4),
            "step_s": round(report.step_s, 4),
            "forward_s": round(report.forward_s, 4),
            "backward_s": round(report.backward_s, 4),
            "update_s": round(report.update_s, 4),
            "own_s": round(self._clock.own_s, 5),
            "time": round(time.time(), 3),
            **({"loss_scale": report.loss_scale} if report.loss_scale is not None else {}),
            **{f"lr/{name}": lr for name, lr in report.lr_of_group.items()},
            **{f"loss/{name}": loss for name, loss in report.loss_of_domain.items()},
            **{f"loss_of/{name}": loss for name, loss in report.loss_of_term.items()},
        }
        for more in (*self._of_step, *(self._of_ranks if is_due else ())):
            figures.update(more(report))
        elapsed -= float(figures.get("evaluate_s", 0.0))
        figures["images_per_s"], figures["images_per_s_rank"] = (
            round(rows / elapsed, 2) for rows in (report.images, report.rows)
        )
        self._tracker.write(report.step, figures)


class Follow:
    """Tells an order that follows the training the losses of its domains; what it makes of them is rank 0's on all ranks."""

    def __init__(self, order: Order, world: World) -> None:
        self._order, self._world = order, world

    def after(self, report: Report) -> None:
        # a loss that is no number would spoil the shares; the step counts all the same, they may be settled at it
        loss_of_domain = {} if report.skipped else report.loss_of_domain
        if self._order.observe(report.step, loss_of_domain):
            self._order.take_state(self._world.from_first(self._order.state()))


class Show:
    """The figures for whoever waits for the run, and a log line now and then."""

    def __init__(self, show: Callable[[int, str], None], *, num_steps: int) -> None:
        self._show, self._every = show, max(1, num_steps // 50)

    def after(self, report: Report) -> None:
        speed = report.images / (report.step_s + report.wait_s)
        note = f"loss {report.loss:.3f}  lr {report.lr:.2g}  {speed:.0f} images/s"
        self._show(report.step, note)
        if report.step % self._every == 0 or report.step == 1:
            log.info("step %d  %s  gradient norm %.3g", report.step, note, report.grad_norm)
