"""What happens after every step: numbers to the tracker, checkpoints to disk. The job lists them in order."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from retrieval_train.config import Section, place
from retrieval_train.engine.engine import Engine, Report
from retrieval_train.rundir import RunDir, put_in_place
from retrieval_train.tracking import Tracker

if TYPE_CHECKING:
    from retrieval_train.data.order.order import Order
    from retrieval_train.world import World

log = logging.getLogger(__name__)


class CheckpointConfig(Section):
    """How often the training state is saved, and how many are kept."""

    every_steps: int = Field(default=500, ge=1, json_schema_extra=place())
    """Steps between two checkpoints; the last step always has one."""
    keep: int = Field(default=2, ge=1, json_schema_extra=place())
    """How many of the newest stay."""


RANKS_EVERY = 10  # steps between two looks at all ranks


class Track:
    """Every step's figures for the tracker; now and then, and after the last of `num_steps`, those of all ranks.

    `agree` gives them (a collective).
    """

    def __init__(
        self, tracker: Tracker, *, epoch_steps: int, num_steps: int, agree: Callable[[], dict[str, float]]
    ) -> None:
        self._tracker, self._epoch_steps, self._num_steps, self._agree = tracker, epoch_steps, num_steps, agree
        self._last = time.perf_counter()

    def after(self, report: Report) -> None:
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        is_due = report.step % RANKS_EVERY == 0 or report.step == self._num_steps
        of_ranks = self._agree() if is_due else {}
        self._tracker.write(
            report.step,
            {
                "epoch": round(report.step / self._epoch_steps, 4),
                "images": report.step * report.images,
                "image_px": report.image_px,
                "loss": report.loss,
                "lr": report.lr,
                "grad_norm": report.grad_norm,
                "images_per_s": round(report.images / elapsed, 2),
                "data_wait_s": round(report.wait_s, 4),
                "step_s": round(report.step_s, 4),
                "time": round(time.time(), 3),
                **of_ranks,
                **{f"loss/{name}": loss for name, loss in report.loss_of_domain.items()},
            },
        )


class Follow:
    """Tells an order that follows the training the losses of its domains; what it makes of them is rank 0's on all ranks."""

    def __init__(self, order: Order, world: World) -> None:
        self._order, self._world = order, world

    def after(self, report: Report) -> None:
        if self._order.observe(report.step, report.loss_of_domain):
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


class Checkpoint:
    """Saves every n steps; the folder is written aside and renamed, `latest` follows."""

    def __init__(
        self,
        engine: Engine,
        run: RunDir,
        world: World,
        config: CheckpointConfig,
        *,
        extra: Callable[[], dict[str, Any]],
    ) -> None:
        self._engine, self._run, self._world, self._config, self._extra = engine, run, world, config, extra
        self._saved = engine.step

    def after(self, report: Report) -> None:
        if report.step % self._config.every_steps == 0:
            self.save()

    def save(self) -> Path:
        """Save this step unless it is saved already. Collective."""
        folder = self._run.checkpoint(self._engine.step)
        if self._saved == self._engine.step and folder.is_dir():
            return folder
        aside = folder.with_name(f".{folder.name}")
        if self._world.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        self._world.barrier()
        self._engine.save(aside, self._extra())
        if self._world.rank == 0:
            put_in_place(aside, folder)
            self._run.set_latest(folder)
            self._prune()
        self._world.barrier()
        self._saved = self._engine.step
        log.info("saved %s", folder)
        return folder

    def _prune(self) -> None:
        steps = sorted(self._run.checkpoints.glob("step-*"))
        leftovers = [path for path in self._run.checkpoints.iterdir() if re.match(r"\.step-\d+", path.name)]
        for folder in (*steps[: -self._config.keep], *leftovers):
            shutil.rmtree(folder, ignore_errors=True)
