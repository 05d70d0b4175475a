"""The stream of global batches, seen from one rank: each step's rows of this rank, decoded and augmented by workers.

The rank's own process says which samples (arithmetic), workers make chunks of rows of them, and the chunks of a step are
put together here. Chunks are small, so that many workers share one step and the first batch is there soon.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval_train.data.config import DataConfig
from retrieval_train.data.deaths import deaths_told

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.data.batch import Batch
    from retrieval_train.data.labels import Labels
    from retrieval_train.data.order.order import Order
    from retrieval_train.data.ring import Buffers, Ring
    from retrieval_train.data.view import View
    from retrieval_train.data.worker import Chunk, Stream, Task, Worker
    from retrieval_train.world import World

CHUNK_ROWS = 32
MOST_AHEAD = 48  # steps that are read ahead at most: orders that follow the training know no more than 64 ahead


@dataclass(frozen=True)
class Part:
    """Rows of one stream that this rank has in one micro-batch."""

    stream: int
    row_N: Any
    counts: tuple[int, ...]
    """Of every rank."""


@dataclass(frozen=True)
class Loader:
    """Iterating `draws` gives, for each step, this rank's micro-batches."""

    streams: Sequence[Stream]
    """The labelled samples and, if there are any, the unlabelled ones."""
    world: World
    config: DataConfig
    image_px: int
    accumulate: int

    @property
    def labels(self) -> Labels:
        return self.streams[0].labels

    @property
    def order(self) -> Order:
        return self.streams[0].order

    @property
    def epoch_steps(self) -> int:
        return self.order.epoch_steps

    @property
    def num_samples(self) -> int:
        return sum(map(len, self.streams[0].readers))

    @property
    def sets(self) -> dict[str, str]:
        """Name -> digest of every set."""
        return {r.manifest.name: r.manifest.digest for stream in self.streams for r in stream.readers}

    def draws(self, first: int, stop: int, *, num_steps: int | None = None) -> Generator[list[Batch], None, None]:
        """The micro-batches of steps [first, stop), of a run of `num_steps` (else `stop`), on the rank's device.

        Close it (`contextlib.closing`): that ends the workers.
        """
        from torch.utils.data import DataLoader

        from retrieval_train.data.ring import Buffers
        from retrieval_train.data.worker import start_worker

        parts = self._parts()
        chunks = sum(len(self._cut(part)) for part in parts)
        workers = min(self.config.workers, MOST_AHEAD * chunks)
        ahead = max(2, -(-2 * chunks // max(workers, 1)))  # chunks of each worker: two steps, and two chunks
        prefetched = max(1, min(ahead, MOST_AHEAD * chunks // workers)) if workers else 1
        # a task is given out before the chunk that made room for it is copied
        ring = self._ring(parts, slots=max(workers, 1) * prefetched + 2)
        loader: Any = DataLoader(
            self.worker(first, ring),  # type: ignore[arg-type]
            batch_size=None,
            sampler=self._tasks(parts, first, stop, num_steps or stop),  # type: ignore[arg-type]
            num_workers=workers,
            prefetch_factor=prefetched if workers else None,
            multiprocessing_context="fork" if workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=start_worker,
        )
        stream, buffers = iter(loader), Buffers(pinned=self.world.device.type == "cuda")
        try:
            for _ in range(first, stop):
                started = time.perf_counter()
                batches = [self._batch(part, stream, ring, buffers) for part in parts]
                wait_s = time.perf_counter() - started
                yield self._assembled(batches, wait_s)
        finally:
            # the workers ignore SIGTERM, so what Python does at exit would wait for them for ever
            if workers:
                stream._shutdown_workers()

    def worker(self, first: int, ring: Ring) -> Worker:
        """What each worker process runs, from step `first` on."""
        from retrieval_train.data.worker import Worker

        return Worker(self.streams, ring)

    def my_rows(self, stream: int, part: int) -> Part:
        """This rank's rows of micro-batch `part`: the same rows make up the micro-batch on any world size."""
        from retrieval_train.data.order.order import share

        row_M = self.streams[stream].order.micro_rows(part, self.accumulate)
        shares = [share(len(row_M), rank, self.world.size) for rank in range(self.world.size)]
        return Part(stream, row_M[shares[self.world.rank]], tuple(one.stop - one.start for one in shares))

    # --- what is to be done

    def _parts(self) -> list[Part]:
        """Of one step: every micro-batch's labelled rows, and its unlabelled ones behind them."""
        streams = range(len(self.streams))
        return [self.my_rows(stream, part) for part in range(self.accumulate) for stream in streams]

    def _chunk_rows(self, part: Part) -> int:
        """So many that all workers have their share of a step, where it is large enough."""
        return max(1, min(CHUNK_ROWS, -(-len(part.row_N) // max(self.config.workers, 1))))

    def _cut(self, part: Part) -> list[slice]:
        rows = self._chunk_rows(part)
        return [slice(at, at + rows) for at in range(0, len(part.row_N), rows)]

    def _tasks(self, parts: list[Part], first: int, stop: int, num_steps: int) -> Iterator[Task]:
        """The tasks of steps [first, stop) in order; each says also what a task two steps later will need."""
        waiting: deque[Task] = deque()
        lead, number = 2 * sum(len(self._cut(part)) for part in parts), count()
        for step in range(first, stop):
            for task in self._tasks_of(parts, step, num_steps):
                waiting.append(task)
                if len(waiting) > lead:
                    ready = waiting.popleft()
                    yield replace(ready, number=next(number), ahead=(*ready.ahead, *_samples(task)))
        yield from (replace(task, number=next(number)) for task in waiting)

    def _tasks_of(self, parts: list[Part], step: int, num_steps: int) -> Iterator[Task]:
        from retrieval_train.data.order.order import sample_seeds
        from retrieval_train.data.worker import Task

        image_px = self.config.px_at(step, num_steps, image_px=self.image_px)
        for part in parts:
            order = self.streams[part.stream].order
            set_N, sample_N = order.rows(step, part.row_N)
            seed_N = sample_seeds(order.seed, step, part.row_N, set_N, sample_N)
            blocks = tuple((part.stream, *piece) for piece in order.needed_next(step, part.row_N))
            for cut in self._cut(part):
                row_R, set_R, sample_R, seed_R = part.row_N[cut], set_N[cut], sample_N[cut], seed_N[cut]
                yield Task(step, part.stream, image_px, row_R, set_R, sample_R, seed_R, ahead=blocks)
                blocks = ()

    # --- what was done

    def _next(self, stream: Iterator[Any]) -> Chunk:
        with deaths_told(self.world.rank):
            try:
                made = next(stream)
            except (ConnectionError, EOFError) as error:  # its pipe broke before torch saw that it is gone
                raise RuntimeError(f"DataLoader worker: {error}") from error
        if isinstance(made, Exception):
            raise made
        chunk: Chunk = made
        return chunk

    def _batch(self, part: Part, stream: Iterator[Any], ring: Ring, buffers: Buffers) -> Batch:
        """The rows of one part, from as many chunks as it was cut into; copied out of the ring as they come."""
        import torch

        from retrieval_train.data.batch import Batch
        from retrieval_train.data.worker import images_of

        device = self.world.device
        chunks: list[Chunk] = []
        views: list[Tensor] = []
        for cut in self._cut(part):
            chunk = self._next(stream)
            chunks.append(chunk)
            image_VRCHW = images_of(ring, chunk, self.streams[part.stream])
            if not views:  # in (H, W, 3) memory, as the images come
                shape = (len(part.row_N), chunk.image_px, chunk.image_px, 3)
                views = [buffers.take(shape).permute(0, 3, 1, 2) for _ in image_VRCHW]
            for view_NCHW, image_RCHW in zip(views, image_VRCHW, strict=True):
                view_NCHW[cut].copy_(image_RCHW)
        labels_N = [labels for chunk in chunks for labels in chunk.labels_R]
        label_N = torch.tensor([labels[0] if labels else -1 for labels in labels_N])
        domain_N = torch.tensor([domain for chunk in chunks for domain in chunk.domain_R])
        has_pairs = self.streams[part.stream].is_labelled and self.streams[part.stream].labels.has_several
        pairs_2P = _pairs(labels_N).to(device) if has_pairs else (None, None)
        image_NCHW, *strong = (view_NCHW.to(device, non_blocking=True) for view_NCHW in views)
        return Batch(
            image_NCHW,
            label_N.to(device),
            part.counts,
            weight=sum(part.counts) / self.streams[part.stream].order.batch,
            domain_N=domain_N.to(device),
            strong_NCHW=strong[0] if strong else None,
            pair_row_P=pairs_2P[0],
            pair_class_P=pairs_2P[1],
            read_s=sum(chunk.read_s for chunk in chunks),
            decode_s=sum(chunk.decode_s for chunk in chunks),
            row_N=tuple(part.row_N.tolist()),
            key_N=tuple(key for chunk in chunks for key in chunk.key_R),
            bad=tuple(bad for chunk in chunks for bad in chunk.bad),
        )

    def _assembled(self, batches: list[Batch], wait_s: float) -> list[Batch]:
        """The micro-batches of a step, unlabelled rows with them."""
        if len(self.streams) > 1:
            pairs = zip(batches[::2], batches[1::2], strict=True)
            batches = [replace(labelled, unlabelled=unlabelled) for labelled, unlabelled in pairs]
        return [replace(batches[0], wait_s=wait_s), *batches[1:]]

    def _ring(self, parts: list[Part], *, slots: int) -> Ring:
        from retrieval_train.data.ring import Ring

        rows = max(self._chunk_rows(part) for part in parts)
        image_px = self.config.largest_px(self.image_px)
        return Ring(slots, rows=rows, image_px=image_px, views=max(s.looks.num_views for s in self.streams))


def _pairs(labels_N: Sequence[tuple[int, ...]]) -> Tensor:
    """(row, class id) of every label of every row, int64 (2, P)."""
    import torch

    pairs = [(row, label) for row, labels in enumerate(labels_N) for label in labels]
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T.contiguous()


def _samples(task: Task) -> list[tuple[int, int, int, int]]:
    pairs = zip(task.set_R.tolist(), task.sample_R.tolist(), strict=True)
    return [(task.stream, number, sample, 1) for number, sample in pairs]


def _as_it_is(value: Any) -> Any:
    return value


def build_loader(
    config: DataConfig,
    shards_root: Path,
    world: World,
    *,
    image_px: int,
    accumulate: int,
    seed: int,
    view: View | None = None,
) -> Loader:
    """`view` is how the backbone was pretrained, where the config says nothing.

    Raises ShardError for a set that cannot be opened and ValueError for a batch or an order that does not fit.
    """
    from retrieval_train.data.streams import labelled_stream, looks_of, unlabelled_stream

    looks = looks_of(config, view)
    if found := rows_problems(config, accumulate, world.size):
        raise ValueError(" ".join(found[0]))
    streams: list[Stream] = []
    if config.unlabelled:
        streams.append(unlabelled_stream(config, shards_root, looks, image_px=image_px, seed=seed + 1))
    if config.foreign:
        from retrieval_train.data.foreign_loader import build_foreign_loader

        return build_foreign_loader(config, world, streams, looks, image_px=image_px, accumulate=accumulate, seed=seed)
    streams.insert(0, labelled_stream(config, shards_root, looks, image_px=image_px, seed=seed))
    return Loader(streams, world, config, image_px, accumulate)


def rows_problems(config: DataConfig, accumulate: int, ranks: int) -> list[tuple[str, str]]:
    """Batches too small for so many ranks: (the config's key, what to do)."""
    batches = {"data.batch": config.batch}
    if config.unlabelled:
        batches["data.unlabelled.batch"] = config.unlabelled.batch
    text = "{} in {} micro-batches gives {} ranks less than one row each; take a larger batch or fewer ranks"
    return [(key, text.format(size, accumulate, ranks)) for key, size in batches.items() if size // accumulate < ranks]
