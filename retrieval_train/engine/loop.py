"""The training loop: it knows no loss, no tracker and no file name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from retrieval_train.data.batch import Batch
from retrieval_train.engine.agreement import Agreement
from retrieval_train.engine.engine import Engine, Report
from retrieval_train.engine.stop import Ending, Stop


class Watcher(Protocol):
    """Called after every step, in the order in which the job lists them; every rank calls them."""

    def after(self, report: Report) -> Ending | None:
        """Anything but None ends the loop: on all ranks or on none."""
        ...


class Clock:
    """What a step costs beside its mathematics, the wait for rows and for other ranks: bookkeeping, watchers, saving."""

    def __init__(self) -> None:
        self.own_s = 0.0
        """Of the last whole round."""
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        self._sum_s += seconds

    def end_round(self) -> None:
        self.own_s, self._sum_s = self._sum_s, 0.0


def train(
    engine: Engine,
    draws: Iterable[Sequence[Batch]],
    watchers: Sequence[Watcher],
    agreement: Agreement,
    stop: Stop,
    *,
    beat: Callable[[str], None],
    clock: Clock,
) -> Ending:
    """Step through `draws` until they end, the ranks agree to stop or a watcher ends it; says why.

    `beat` is told what comes next: "data", "step" or the name of a watcher.
    """
    beat("data")
    for micro_batches in draws:
        agreement.agree()  # waits for the slowest rank
        if ending := stop.agreed():
            return ending
        beat("step")
        report = engine.train_step(micro_batches)
        began = time.perf_counter()
        clock.add(report.step_s - report.forward_s - report.backward_s - report.update_s)
        for watcher in watchers:
            beat(type(watcher).__name__)
            if ending := watcher.after(report):
                return ending
        clock.add(time.perf_counter() - began)
        clock.end_round()
        beat("data")
    return "finished"
