"""What a worker process does: reads, decodes and augments some rows of one step.

A worker knows nothing of order: it is told which samples, and the seed of everything random about each. Legend: R rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrieval_train.data.batch import Bad
from retrieval_train.data.decode import MinSide, decode
from retrieval_train.data.decoded import DecodedCache
from retrieval_train.data.labels import Labels
from retrieval_train.data.looks import Looks
from retrieval_train.data.order.order import Order
from retrieval_train.data.order.permutation import Int, Word
from retrieval_train.data.reader import Reader, Row
from retrieval_train.data.ring import Ring
from retrieval_train.data.several import LabelError
from retrieval_train.data.store.store import StoreError
from shards.manifest import Sample, ShardError

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
    number: int = 0
    """Of all tasks of the loader, in the order in which they are given out."""
    ahead: tuple[tuple[int, int, int, int], ...] = ()
    """(stream, set, first sample, count) of what will be needed soon."""

    def __len__(self) -> int:
        return len(self.row_R)


@dataclass(frozen=True)
class Chunk:
    """The rows of a task, but for their images, which lie in the ring: what goes through a pipe is small."""

    number: int
    """Of the task."""
    image_px: int
    labels_R: tuple[tuple[int, ...], ...]
    """Class ids of each row, ascending; () for a row without a label."""
    domain_R: tuple[int, ...]
    key_R: tuple[str, ...]
    bad: tuple[Bad, ...]
    read_s: float
    decode_s: float

    def __len__(self) -> int:
        return len(self.labels_R)


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

    def __init__(self, task: Task, stream: Stream, image_VRCHW: Tensor) -> None:
        self.bad: list[Bad] = []
        self.read_s = self.decode_s = 0.0
        self._task, self._stream, self._image_VRCHW = task, stream, image_VRCHW
        self._labels: list[tuple[int, ...]] = []
        self._domain_R: list[int] = []
        self._keys: list[str] = []

    def add(self, key: str, image_CHW: Tensor, *, labels: tuple[int, ...], domain: int) -> None:
        """The next row; its image as decoded."""
        started, row = time.perf_counter(), len(self._keys)
        name, seed = self._stream.labels.domains[domain], int(self._task.seed_R[row])
        views = self._stream.looks.views(image_CHW, self._task.image_px, domain=name, seed=seed)
        for place_RCHW, view_CHW in zip(self._image_VRCHW, views, strict=True):
            place_RCHW[row].copy_(view_CHW)
        self._labels.append(labels)
        self._domain_R.append(domain)
        self._keys.append(key)
        self.decode_s += time.perf_counter() - started

    def chunk(self) -> Chunk:
        labels, domains, keys = tuple(self._labels), tuple(self._domain_R), tuple(self._keys)
        number, image_px = self._task.number, self._task.image_px
        return Chunk(number, image_px, labels, domains, keys, tuple(self.bad), self.read_s, self.decode_s)


@dataclass
class Worker:
    """What torch's DataLoader takes for a dataset: task -> chunk."""

    streams: Sequence[Stream]
    ring: Ring
    number: int = 0
    """Of the worker process in its rank."""

    def __getitem__(self, task: Task) -> Chunk | Exception:
        stream = self.streams[task.stream]
        try:
            self._ahead(task)
            rows = Rows(task, stream, images_of(self.ring, task, stream))
            self._fill(rows, task, stream)
            return rows.chunk()
        except (ValueError, OSError) as error:  # handed over as it is: torch would wrap the traceback into its words
            return error

    def _ahead(self, task: Task) -> None:
        single: dict[Reader, list[int]] = {}
        for place, number, first, count in task.ahead:
            reader = self.streams[place].readers[number]
            if count == 1:
                single.setdefault(reader, []).append(first)
            else:
                reader.ahead(first, count)
        for reader, numbers in single.items():
            reader.ahead_each(np.array(numbers))

    def _fill(self, rows: Rows, task: Task, stream: Stream) -> None:
        places = zip(
            task.row_R.tolist(), task.set_R.tolist(), task.sample_R.tolist(), task.seed_R.tolist(), strict=True
        )
        for row, number, sample, seed in places:
            for attempt in range(MOST_ATTEMPTS):
                try:
                    self._add(rows, task, stream, number, sample, seed)
                    break
                except (StoreError, LabelError):  # the machine or a whole shard is at fault: no sample, so none is
                    raise  # replaced, and which are trained on does not depend on it
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
        """Raises ValueError where the sample is damaged or does not decode, StoreError where it cannot be had now."""
        reader, names = stream.readers[number], stream.labels
        started = time.perf_counter()
        known = reader.row(sample)
        domain = int(names.joint_domain_of[number][known.domain])
        labels = names.joint_each(number, reader.labels_of(known)) if stream.is_labelled else ()
        cache = stream.caches[number] if stream.caches else None
        if cache is not None and (kept := cache.get(sample)) is not None:
            key = read_sample(reader, known, stream).key if stream.keeps_keys else ""
            image_CHW = torch.from_numpy(kept.copy()).permute(2, 0, 1)
            rows.read_s += time.perf_counter() - started
            return rows.add(key, image_CHW, labels=labels, domain=domain)
        read = read_sample(reader, known, stream)
        between = time.perf_counter()
        min_side: MinSide = stream.looks.min_side(stream.cache_px)
        if cache is None:
            min_side = stream.looks.min_side_for(task.image_px, domain=names.domains[domain], seed=seed)
        image_CHW = decode(read.image, key=read.key, min_side=min_side)
        if cache is not None:
            cache.put(sample, image_CHW.permute(1, 2, 0).numpy(), self.number)
        rows.read_s += between - started
        rows.decode_s += time.perf_counter() - between
        return rows.add(read.key, image_CHW, labels=labels, domain=domain)


def read_sample(reader: Reader, known: Row, stream: Stream) -> Sample:
    """The sample of this row; ShardError where its json and its sidecar disagree on what is trained on."""
    sample = reader.read_row(known)
    reader.check(known, sample.meta, is_labelled=stream.is_labelled)
    return sample


def images_of(ring: Ring, one: Task | Chunk, stream: Stream) -> Tensor:
    """Where the images of a task or chunk lie, (views, rows, 3, px, px)."""
    return ring.images(one.number, rows=len(one), image_px=one.image_px, views=stream.looks.num_views)


def start_worker(number: int) -> None:
    """A worker decodes on one core, and leaves Ctrl-C and the scheduler's signals to its rank, which saves first."""
    import signal

    torch.set_num_threads(1)
    info: Any = torch.utils.data.get_worker_info()
    info.dataset.number = number
    for caught in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(caught, signal.SIG_IGN)
