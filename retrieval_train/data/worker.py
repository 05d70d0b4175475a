"""What a worker process does: reads, decodes and augments some rows of one step.

A worker knows nothing of order: it is told which samples, and the seed of everything random about each. Legend: R rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrieval_train.data.batch import Bad
from retrieval_train.data.decode import MinSide, decode
from retrieval_train.data.decoded import DecodedCache
from retrieval_train.data.labels import Labels
from retrieval_train.data.looks import Canvas, Looks
from retrieval_train.data.order.order import Order
from retrieval_train.data.order.permutation import Int, Word
from retrieval_train.data.reader import Reader
from shards.manifest import ShardError

MOST_ATTEMPTS = 16  # samples tried for one row: that many bad ones in a row are no accident


@dataclass(frozen=True)
class Task:
    """Some rows of one step."""

    step: int
    stream: int
    """Position in the loader's streams."""
    image_px: int
    row_R: Int
    set_R: Int
    sample_R: Int
    seed_R: Word
    ahead: tuple[tuple[int, int, int, int], ...] = ()
    """(stream, set, first sample, count) of what will be needed soon."""


@dataclass(frozen=True)
class Chunk:
    """The rows of a task, ready."""

    image_RCHW: Tensor
    strong_RCHW: Tensor | None
    label_R: Tensor
    domain_R: Tensor
    key_R: tuple[str, ...]
    bad: tuple[Bad, ...]
    read_s: float
    decode_s: float

    def pin_memory(self) -> Chunk:
        """torch's loader looks for this name: page-locked rows reach the GPU while it computes."""
        strong = self.strong_RCHW.pin_memory() if self.strong_RCHW is not None else None
        return replace(self, image_RCHW=self.image_RCHW.pin_memory(), strong_RCHW=strong)


@dataclass(frozen=True)
class Stream:
    """Samples and how they look."""

    readers: Sequence[Reader]
    labels: Labels
    order: Order
    looks: Looks
    is_labelled: bool = True
    keeps_keys: bool = False
    """Whether every row's key is wanted, for which also the tar of a cached image is read."""
    caches: Sequence[DecodedCache] = ()
    """Decoded images, of each set; empty: none are kept."""
    cache_px: int = 0
    """The largest image size of the run: what is kept must serve it."""


class Rows:
    """A chunk in the making, row after row."""

    def __init__(self, task: Task, stream: Stream) -> None:
        self.bad: list[Bad] = []
        self.read_s = self.decode_s = 0.0
        self._task, self._domains = task, stream.labels.domains
        self._canvas = Canvas(len(task.row_R), task.image_px, stream.looks)
        self._labels: list[int] = []
        self._domain_R: list[int] = []
        self._keys: list[str] = []

    def add(self, key: str, image_CHW: Tensor, *, label: int, domain: int) -> None:
        """The next row; its image as decoded."""
        started, row = time.perf_counter(), len(self._keys)
        seed = int(self._task.seed_R[row])
        self._canvas.draw(row, image_CHW, domain=self._domains[domain], seed=seed)
        self._labels.append(label)
        self._domain_R.append(domain)
        self._keys.append(key)
        self.decode_s += time.perf_counter() - started

    def chunk(self) -> Chunk:
        return Chunk(
            self._canvas.weak_RCHW,
            self._canvas.strong_RCHW,
            torch.tensor(self._labels),
            torch.tensor(self._domain_R),
            tuple(self._keys),
            tuple(self.bad),
            self.read_s,
            self.decode_s,
        )


@dataclass
class Worker:
    """What torch's DataLoader takes for a dataset: task -> chunk."""

    streams: Sequence[Stream]
    number: int = 0
    """Of the worker process in its rank."""

    def __getitem__(self, task: Task) -> Chunk | Exception:
        try:
            for stream, number, first, count in task.ahead:
                self.streams[stream].readers[number].ahead(first, count)
            rows = Rows(task, self.streams[task.stream])
            self._fill(rows, task, self.streams[task.stream])
            return rows.chunk()
        except (ValueError, OSError) as error:  # handed over as it is: torch would wrap the traceback into its words
            return error

    def _fill(self, rows: Rows, task: Task, stream: Stream) -> None:
        places = zip(
            task.row_R.tolist(), task.set_R.tolist(), task.sample_R.tolist(), task.seed_R.tolist(), strict=True
        )
        for row, number, sample, seed in places:
            for attempt in range(MOST_ATTEMPTS):
                try:
                    self._add(rows, task, stream, number, sample, seed)
                    break
                except ValueError as error:
                    reader = stream.readers[number]
                    shard, place = reader.place(sample)
                    rows.bad.append(Bad(task.step, row, reader.manifest.name, shard.file, place, str(error)))
                    number, sample = stream.order.substitute(task.step, row, attempt)
            else:
                last = rows.bad[-1]
                raise ShardError(
                    f"{MOST_ATTEMPTS} samples in a row cannot be read, the last of {last.set}/{last.shard}: "
                    f"{last.reason}; run `shards check` on the set"
                )

    def _add(self, rows: Rows, task: Task, stream: Stream, number: int, sample: int, seed: int) -> None:
        """Raises ValueError where the sample cannot be read or decoded."""
        reader, labels = stream.readers[number], stream.labels
        domain = int(labels.joint_domain_of[number][reader.domain(sample)])
        label = int(labels.joint(number, np.array([reader.label(sample)]))[0]) if stream.is_labelled else -1
        started = time.perf_counter()
        cache = stream.caches[number] if stream.caches else None
        if cache is not None and (kept := cache.get(sample)) is not None:
            key = reader.read(sample).key if stream.keeps_keys else ""
            image_CHW = torch.from_numpy(kept.copy()).permute(2, 0, 1)
            rows.read_s += time.perf_counter() - started
            return rows.add(key, image_CHW, label=label, domain=domain)
        read = reader.read(sample)
        between = time.perf_counter()
        min_side: MinSide = stream.looks.min_side(stream.cache_px)
        if cache is None:
            min_side = stream.looks.min_side_for(task.image_px, domain=labels.domains[domain], seed=seed)
        image_CHW = decode(read.image, key=read.key, min_side=min_side)
        if cache is not None:
            cache.put(sample, image_CHW.permute(1, 2, 0).numpy(), self.number)
        rows.read_s += between - started
        rows.decode_s += time.perf_counter() - between
        return rows.add(read.key, image_CHW, label=label, domain=domain)


def start_worker(number: int) -> None:
    """A worker decodes on one core, and leaves Ctrl-C and the scheduler's signals to its rank, which saves first."""
    import signal

    torch.set_num_threads(1)
    info: Any = torch.utils.data.get_worker_info()
    info.dataset.number = number
    for caught in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(caught, signal.SIG_IGN)
