"""The training loop: it knows no loss, no tracker and no file name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from retrieval_train.data.batch import Batch
from retrieval_train.engine.engine import Engine, NotFinite, Report
from retrieval_train.engine.stop import Ending, Stop


class Watcher(Protocol):
    """Called after every step, in the order in which the job lists them; every rank calls them."""

    def after(self, report: Report) -> None: ...


def train(engine: Engine, draws: Iterable[Sequence[Batch]], watchers: Sequence[Watcher], stop: Stop) -> Ending:
    """Step through `draws` until they end or the ranks agree to stop; says why."""
    for micro_batches in draws:
        if ending := stop.agreed():
            return ending
        try:
            report = engine.train_step(micro_batches)
        except NotFinite:
            return "not finite"
        for watcher in watchers:
            watcher.after(report)
    return "finished"
