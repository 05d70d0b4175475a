"""Batches out of tars without a sidecar: the face of `Loader`, rows filled with whatever sample comes next.

So every rank takes as many steps as it is asked for, however uneven the tars are; but which sample is in which row depends
on the ranks and workers, and a run that goes on draws a new order.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from retrieval_train.data.batch import Bad
from retrieval_train.data.config import DataConfig
from retrieval_train.data.decode import decode
from retrieval_train.data.foreign import WAY_OUT, ClassList, ForeignConfig
from retrieval_train.data.foreign_tars import Found, Tars
from retrieval_train.data.labels import Labels
from retrieval_train.data.loader import Loader
from retrieval_train.data.looks import Looks
from retrieval_train.data.order.order import Order
from retrieval_train.data.order.permutation import Int
from retrieval_train.data.ring import Ring
from retrieval_train.data.worker import Chunk, Rows, Stream, Task, Worker
from retrieval_train.world import World
from shards.files import shown
from shards.manifest import ShardError

log = logging.getLogger(__name__)

MOST_BAD = 1000  # samples one after the other: that many are no accident
NAME = "data.foreign"
"""What is told of these tars where a set would be named."""


class ForeignOrder(Order):
    """Rows are numbered as they are asked for: which samples fill them is known when they are read."""

    def __init__(self, *, batch: int, seed: int, num_samples: int) -> None:
        self.batch, self.seed, self.epoch_steps = batch, seed, num_samples // batch
        if not self.epoch_steps:
            raise ValueError(f"data.batch: {batch} rows, but an epoch has only {num_samples}; take a smaller batch")

    def rows(self, step: int, row_R: Int) -> tuple[Int, Int]:
        """See Order."""
        return np.zeros_like(row_R), step * self.batch + row_R

    def substitute(self, step: int, row: int, attempt: int) -> tuple[int, int]:
        """See Order."""
        raise AssertionError("the next sample of the stream takes the place of one that cannot be read")


@dataclass(frozen=True)
class ForeignLoader(Loader):
    """The face of `Loader`; its first stream comes from tars without a sidecar."""

    foreign: ForeignConfig
    classes: ClassList
    digest: str

    @property
    def num_samples(self) -> int:
        """Of an epoch."""
        return self.foreign.num_samples()

    @property
    def sets(self) -> dict[str, str]:
        """Name -> digest of the tars' names and sizes, and of every other set."""
        return {NAME: self.digest, **super().sets}

    def worker(self, first: int, ring: Ring) -> Worker:
        """See Loader. A run that goes on at step `first` draws a new order."""
        workers = max(self.config.workers, 1)
        tars = Tars(
            self.foreign, self.classes, (self.order.seed, first), self.world.rank * workers, workers * self.world.size
        )
        return ForeignWorker(self.streams, ring, tars=tars)


def foreign_labels(classes: ClassList) -> Labels:
    """The classes in the file's order. How many images each has is not known."""
    return Labels(classes.names, None, (), classes.domains)


def tell(config: ForeignConfig, world: World, workers: int) -> None:
    """What a run must know of such tars, once at its start."""
    tars, streams = len(config.tars), world.size * max(workers, 1)
    log.warning(
        "data.foreign: %d tars without a sidecar are streamed in sequence: after a stop the run does not see the same "
        "samples in the same order, and samples may come twice or not at all; to have an exact order, %s",
        tars,
        WAY_OUT,
    )
    if tars < streams:
        log.warning(
            "data.foreign: %d tars for %d ranks x %d workers: a tar is read by up to %d workers at a time, each of which "
            "takes its share of the samples; more and smaller tars are read faster",
            tars,
            world.size,
            max(workers, 1),
            -(-streams // tars),
        )


def build_foreign_loader(
    config: DataConfig,
    world: World,
    others: Sequence[Stream],
    looks: Looks,
    *,
    image_px: int,
    accumulate: int,
    seed: int,
) -> ForeignLoader:
    """`others` are the streams of sets that come along. Raises ValueError for a batch or classes that do not fit."""
    foreign = config.foreign
    assert foreign is not None, "asked for"
    tell(foreign, world, config.workers)
    classes = foreign.class_list()
    order = ForeignOrder(batch=config.batch, seed=seed, num_samples=foreign.num_samples())
    stream = Stream((), foreign_labels(classes), order, looks)
    return ForeignLoader([stream, *others], world, config, image_px, accumulate, foreign, classes, foreign.digest())


# --- batches out of samples


@dataclass
class ForeignWorker(Worker):
    """Fills the rows of the first stream with whatever comes next, those of others as ever."""

    tars: Tars = field(kw_only=True)
    coming: Iterator[Found] | None = None
    bad_in_a_row: int = 0

    def __getitem__(self, task: Task) -> Chunk | Exception:
        return super().__getitem__(replace(task, ahead=tuple(piece for piece in task.ahead if piece[0] > 0)))

    def _fill(self, rows: Rows, task: Task, stream: Stream) -> None:
        if task.stream > 0:
            return super()._fill(rows, task, stream)
        if self.coming is None:
            self.coming = self.tars.found(self.number)
        for row, seed in zip(task.row_R.tolist(), task.seed_R.tolist(), strict=True):
            while not self._add_next(rows, task, stream, row, seed):
                continue
        return None

    def _add_next(self, rows: Rows, task: Task, stream: Stream, row: int, seed: int) -> bool:
        """The next sample as a row; False where it cannot be used, which `rows.bad` tells."""
        assert self.coming is not None
        started = time.perf_counter()
        found = next(self.coming)
        between = time.perf_counter()
        rows.read_s += between - started
        reason = found.fault
        if not reason:
            domain = self.tars.classes.domain_of(found.class_id)
            min_side = stream.looks.min_side_for(task.image_px, domain=stream.labels.domains[domain], seed=seed)
            try:
                image_CHW = decode(found.image, key=found.key, min_side=min_side)
                rows.decode_s += time.perf_counter() - between
                rows.add(found.key, image_CHW, labels=(found.class_id,), domain=domain)
                self.bad_in_a_row = 0
                return True
            except ValueError as error:
                reason = str(error)
        rows.bad.append(Bad(task.step, row, NAME, shown(found.tar), found.place, reason))
        self.bad_in_a_row += 1
        if self.bad_in_a_row >= MOST_BAD:
            raise ShardError(
                f"data.foreign: {MOST_BAD} samples in a row cannot be used, the last of {shown(found.tar)}: {reason}"
            )
        return False
