"""Images -> vectors, over all ranks, in parts that are fixed ranges of the samples.

A part is a file: a job that was stopped goes on with the parts that are missing, on any number of ranks. Beside the
vectors stand the samples' keys, so that embeddings can be used without the shard set.

Legend: N images of a part, D dimensions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from retrieval_train.config import Section, place

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.data.reader import Reader
    from retrieval_train.world import World


class Config(Section):
    """How images are embedded."""

    batch: int = Field(default=64, ge=1, json_schema_extra=place())
    """Images of one forward, on each rank."""
    workers: int = Field(default=1, ge=0, json_schema_extra=place())
    """Processes of each rank that decode; 0 decodes between the forwards."""


class NotFiniteVector(ValueError):
    """The model makes no numbers of an image."""


class NotJoined(OSError):
    """The table of keys could not be written: raised on all ranks together."""


@dataclass(frozen=True)
class Source:
    """What turns images into vectors: `prepare` in the worker processes, `embed` on the rank's device."""

    prepare: Callable[[Tensor], Tensor]
    """uint8 (3, H, W) -> what is stacked."""
    embed: Callable[[Tensor], Tensor]
    """A stack on the rank's device -> (N, D)."""
    min_side: int = 0
    """Pixels that `prepare` needs of an image's shorter side; 0: all there are."""


@dataclass(frozen=True)
class Embeddings:
    """A folder of parts."""

    folder: Path
    num_samples: int

    @property
    def parts(self) -> list[range]:
        """The ranges of samples: the same on any number of ranks; at least 64 parts of a large set."""
        size = min(max(-(-self.num_samples // 64), 32), 65536)
        return [range(at, min(at + size, self.num_samples)) for at in range(0, self.num_samples, size)]

    def file(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.npy"

    def mine(self, world: World) -> list[int]:
        """The parts of this rank."""
        return list(range(world.rank, len(self.parts), world.size))

    def vectors(self, parts: Sequence[int]) -> Any:
        """Unit vectors of some parts, (rows, D) float32, and their sample numbers."""
        if not parts:
            dim = np.load(self.file(0), mmap_mode="r").shape[1]
            return np.empty((0, dim), np.float32), np.empty(0, np.int64)
        rows = np.concatenate([np.load(self.file(part)) for part in parts])
        numbers = np.concatenate([np.arange(r.start, r.stop) for r in (self.parts[part] for part in parts)])
        length = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        return (rows / np.maximum(length, 1e-12)).astype(np.float32), numbers

    def keys(self) -> list[str]:
        """The key of every sample, in order."""
        import pyarrow.parquet

        return [str(key) for key in pyarrow.parquet.read_table(self.folder / "keys.parquet")["key"].to_pylist()]


def embed_mine(
    source: Source, reader: Reader, out: Embeddings, world: World, config: Config, *, shown: Callable[[int], None]
) -> int:
    """Embed this rank's parts of `reader`, but for those that lie there already; how many images these were.

    Not collective. `shown` is told after each part how many images are done. Raises ValueError that names an image that
    does not decode, and NotFiniteVector that names one.
    """
    out.folder.mkdir(parents=True, exist_ok=True)
    missing = [part for part in out.mine(world) if not (out.file(part).is_file() and _keys_file(out, part).is_file())]
    done = 0
    for part, (keys, vectors_ND) in zip(missing, _embedded(source, reader, out, missing, world, config), strict=True):
        bad = np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1))
        if len(bad):
            raise NotFiniteVector(
                f"the vector of '{keys[bad[0]]}' is not finite; the model is broken or fp16 overflowed"
            )
        _write_part(out, part, keys, vectors_ND)
        done += len(keys)
        shown(done)
    return done


def join(embedded: Sequence[Embeddings], world: World) -> None:
    """Wait until all ranks' parts are there, and write each folder's table of keys. Collective. Raises NotJoined."""
    world.barrier()
    problem = ""
    if world.rank == 0:
        try:
            for out in embedded:
                _join_keys(out)
        except OSError as error:
            problem = f"rank 0: {type(error).__name__}: {error}"
    if problem := world.from_first(problem):  # the others wait here for the tables
        raise NotJoined(problem)


def _embedded(
    source: Source, reader: Reader, out: Embeddings, missing: Sequence[int], world: World, config: Config
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Keys and vectors of each missing part."""
    import torch
    from torch.utils.data import DataLoader

    batches = [
        out.parts[part][at : at + config.batch]
        for part in missing
        for at in range(0, len(out.parts[part]), config.batch)
    ]
    loader: Any = DataLoader(
        _Images(reader, source),  # type: ignore[arg-type]
        batch_size=None,
        sampler=batches,  # type: ignore[arg-type]
        num_workers=config.workers,
        multiprocessing_context="fork" if config.workers else None,
        collate_fn=lambda pair: pair,
        worker_init_fn=_start_worker,
    )
    stream = iter(loader)
    for part in missing:
        keys: list[str] = []
        rows = []
        while len(keys) < len(out.parts[part]):
            item = next(stream)
            if isinstance(item, ValueError):
                raise item
            some, stacked = item
            with torch.no_grad():  # no inference mode: what a model in training caches there could not be trained with
                rows.append(source.embed(stacked.to(world.device)).float().cpu().numpy())
            keys += some
        yield keys, np.concatenate(rows)


class _Images:
    """What torch's DataLoader takes for a dataset: a range of samples -> their keys and their prepared stack."""

    def __init__(self, reader: Reader, source: Source) -> None:
        self._reader, self._source = reader, source

    def __getitem__(self, numbers: range) -> tuple[list[str], Tensor] | ValueError:
        import torch

        from retrieval_train.data.decode import decode

        try:
            found = [self._reader.read(number) for number in numbers]
            images = (decode(sample.image, key=sample.key, min_side=self._source.min_side) for sample in found)
            stack = torch.stack([self._source.prepare(image_CHW) for image_CHW in images])
        except ValueError as error:  # handed over as it is: torch would wrap the worker's traceback into its words
            return error
        return [sample.key for sample in found], stack


def _start_worker(worker: int) -> None:
    """On one core; Ctrl-C and the scheduler's signals are its rank's, which ends it."""
    import signal

    import torch

    torch.set_num_threads(1)
    for caught in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(caught, signal.SIG_IGN)


def _keys_file(out: Embeddings, part: int) -> Path:
    return out.folder / f"part-{part:05d}.keys.parquet"


def _write_part(out: Embeddings, part: int, keys: list[str], vectors_ND: np.ndarray) -> None:
    """Keys first: a part counts as done when both files are there under their names."""
    import pyarrow
    import pyarrow.parquet

    aside = out.folder / f".part-{part:05d}.keys.{os.getpid()}"
    pyarrow.parquet.write_table(pyarrow.table({"key": keys}), aside)
    aside.replace(_keys_file(out, part))
    aside = out.folder / f".part-{part:05d}.{os.getpid()}.npy"
    np.save(aside, vectors_ND.astype(np.float32))
    aside.replace(out.file(part))


def _join_keys(out: Embeddings) -> None:
    """All parts' keys in one table, in sample order."""
    import pyarrow
    import pyarrow.parquet

    tables = [pyarrow.parquet.read_table(_keys_file(out, part)) for part in range(len(out.parts))]
    aside = out.folder / f".keys.{os.getpid()}"
    pyarrow.parquet.write_table(pyarrow.concat_tables(tables), aside)
    aside.replace(out.folder / "keys.parquet")
