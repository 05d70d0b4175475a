"""What a worker process does: reads, decodes and augments some rows of one step.

A worker knows nothing of order: it is told which samples, and the seed of everything random about each. Legend: R rows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrieval_train.data.augment.augment import Augment
from retrieval_train.data.batch import Bad
from retrieval_train.data.decode import decode
from retrieval_train.data.decoded import DecodedCache
from retrieval_train.data.labels import Labels
from retrieval_train.data.order.order import Order
from retrieval_train.data.order.permutation import Int, Word, mixed
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
    augment: Augment
    augment_by_domain: Mapping[str, Augment]
    strong: Augment | None
    is_labelled: bool = True
    keeps_keys: bool = False
    """Whether every row's key is wanted, for which also the tar of a cached image is read."""
    caches: Sequence[DecodedCache] = ()
    """Decoded images, of each set; empty: none are kept."""
    cache_px: int = 0
    """The largest image size of the run: what is kept must serve it."""


@dataclass
class Clock:
    read_s: float = 0.0
    decode_s: float = 0.0


@dataclass
class Worker:
    """What torch's DataLoader takes for a dataset: task -> chunk."""

    streams: Sequence[Stream]
    number: int = 0
    """Of the worker process in its rank."""
    clock: Clock = field(default_factory=Clock)

    def __getitem__(self, task: Task) -> Chunk | Exception:
        try:
            for stream, number, first, count in task.ahead:
                self.streams[stream].readers[number].ahead(first, count)
            return self._chunk(task, self.streams[task.stream])
        except (ValueError, OSError) as error:  # handed over as it is: torch would wrap the traceback into its words
            return error

    def _chunk(self, task: Task, stream: Stream) -> Chunk:
        self.clock = Clock()
        views: list[tuple[Tensor, Tensor | None]] = []
        labels, domains, keys, bad = [], [], [], []
        for row, number, sample, seed in zip(task.row_R, task.set_R, task.sample_R, task.seed_R, strict=True):
            for attempt in range(MOST_ATTEMPTS):
                reader = stream.readers[number]
                try:
                    key, image_CHW = self._image(stream, int(number), int(sample), task.image_px)
                    break
                except ValueError as error:
                    shard, place = reader.place(int(sample))
                    name = reader.manifest.name
                    bad.append(Bad(task.step, int(row), name, shard.file, place, str(error)))
                    number, sample = stream.order.substitute(task.step, int(row), attempt)
            else:
                raise ShardError(
                    f"{MOST_ATTEMPTS} samples in a row cannot be read, the last of {bad[-1].set}/{bad[-1].shard}: "
                    f"{bad[-1].reason}"
                )
            domain = int(stream.labels.joint_domain_of[number][reader.domain(int(sample))])
            views.append(self._views(stream, image_CHW, task.image_px, domain, int(seed)))
            label = stream.labels.joint(int(number), np.array([reader.label(int(sample))]))[0]
            labels.append(int(label) if stream.is_labelled else -1)
            domains.append(domain)
            keys.append(key)
        strong = torch.stack([view for _, view in views if view is not None]) if stream.strong else None
        return Chunk(
            torch.stack([view for view, _ in views]),
            strong,
            torch.tensor(labels),
            torch.tensor(domains),
            tuple(keys),
            tuple(bad),
            self.clock.read_s,
            self.clock.decode_s,
        )

    def _image(self, stream: Stream, number: int, sample: int, image_px: int) -> tuple[str, Tensor]:
        """The key, and the decoded image (3, H, W) with as many pixels as the augmentation can use."""
        started = time.perf_counter()
        cache = stream.caches[number] if stream.caches else None
        largest_px = stream.cache_px if cache is not None else image_px
        reader = stream.readers[number]
        if cache is not None and (kept := cache.get(sample)) is not None:
            key = reader.read(sample).key if stream.keeps_keys else ""
            self.clock.read_s += time.perf_counter() - started
            return key, torch.from_numpy(kept.copy()).permute(2, 0, 1)
        read = reader.read(sample)
        between = time.perf_counter()
        image_CHW = decode(read.image, key=read.key, min_side=self._min_side(stream, largest_px))
        if cache is not None:
            cache.put(sample, image_CHW.permute(1, 2, 0).numpy(), self.number)
        self.clock.read_s += between - started
        self.clock.decode_s += time.perf_counter() - between
        return read.key, image_CHW

    def _min_side(self, stream: Stream, image_px: int) -> int:
        """Of every image the same, whatever its domain: a cached image serves every view."""
        looks = [stream.augment, *stream.augment_by_domain.values(), *([stream.strong] if stream.strong else [])]
        return max(look.min_side(image_px) for look in looks)

    def _views(
        self, stream: Stream, image_CHW: Tensor, image_px: int, domain: int, seed: int
    ) -> tuple[Tensor, Tensor | None]:
        started = time.perf_counter()
        augment = stream.augment_by_domain.get(stream.labels.domains[domain], stream.augment)
        weak = augment.apply(image_CHW, image_px, seed=seed)
        strong = None
        if stream.strong is not None:
            strong = stream.strong.apply(image_CHW, image_px, seed=mixed(seed, 2) >> 1)
        self.clock.decode_s += time.perf_counter() - started
        return weak, strong


def start_worker(number: int) -> None:
    """A worker decodes on one core, and leaves Ctrl-C and the scheduler's signals to its rank, which saves first."""
    import signal

    torch.set_num_threads(1)
    info: Any = torch.utils.data.get_worker_info()
    info.dataset.number = number
    for caught in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(caught, signal.SIG_IGN)
