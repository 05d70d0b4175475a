"""The stream of global batches, seen from one rank: each step's rows of this rank, decoded and augmented by workers."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from retrieval_train.config import FileName, Section, place
from retrieval_train.data.augment import Augment
from retrieval_train.data.view import View

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.data.batch import Batch
    from retrieval_train.data.labels import Labels
    from retrieval_train.data.order import Order
    from retrieval_train.data.reader import Reader
    from retrieval_train.world import World
    from shards.manifest import Manifest


class DataConfig(Section):
    """Which sets, in which shares, in what batches."""

    mixture: dict[FileName, float]
    """Set name (a folder under shards_root) -> how often an epoch takes each of its samples: 1.0 once, 2.0 twice."""
    batch: int = Field(default=256, ge=1)
    """Rows of the global batch, over all ranks and accumulated micro-batches."""
    augment: Augment = Augment()
    """What is random about a training image."""
    view: View = View()
    """How an image is seen when nothing is random: goes into the export, for evaluation."""
    workers: int = Field(default=1, ge=0, json_schema_extra=place())
    """Processes of each rank that decode and augment; 0 does it between the steps."""

    @field_validator("mixture")
    @classmethod
    def _some_weight(cls, mixture: dict[str, float]) -> dict[str, float]:
        if not mixture:
            raise ValueError("names no set; say for example data.mixture.sample=1.0")
        if any(weight < 0 for weight in mixture.values()) or not sum(mixture.values()):
            raise ValueError(f"{mixture} needs weights of 0 or more, and one above 0")
        return mixture

    def manifests(self, shards_root: Path) -> list[Manifest]:
        """The sets of the mixture, by name. Raises ShardError."""
        from shards.manifest import Manifest

        return [Manifest.load(shards_root / name) for name in sorted(self.mixture)]

    def weights(self) -> list[float]:
        return [self.mixture[name] for name in sorted(self.mixture)]

    def problems(self, shards_root: Path) -> list[tuple[str, str]]:
        from shards.manifest import Manifest, ShardError

        found, rows = [], 0
        for name in sorted(self.mixture):
            try:
                manifest = Manifest.load(shards_root / name)
                if not manifest.select("train"):
                    splits = sorted({shard.split for shard in manifest.shards})
                    found.append((f"data.mixture.{name}", f"has no training samples, only {', '.join(splits)}"))
                elif manifest.is_multi_label:
                    text = (
                        "has images with several labels, which no head or loss here can train on; give each image one"
                    )
                    found.append((f"data.mixture.{name}", text))
                rows += round(self.mixture[name] * sum(shard.samples for shard in manifest.select("train")))
            except ShardError as error:
                found.append((f"data.mixture.{name}", str(error)))
        if not found and rows < self.batch:
            found.append(("data.batch", f"{self.batch} rows, but an epoch has only {rows}; take a smaller batch"))
        return found


@dataclass(frozen=True)
class Loader:
    """Iterating gives, for each step from `first`, this rank's micro-batches."""

    readers: Sequence[Reader]
    labels: Labels
    order: Order
    world: World
    augment: Augment
    image_px: int
    accumulate: int
    workers: int

    def draws(self, first: int, stop: int) -> Generator[Sequence[Batch], None, None]:
        """The micro-batches of steps [first, stop). Close it (`contextlib.closing`): that ends the workers."""
        from torch.utils.data import DataLoader

        loader: Any = DataLoader(
            _Steps(self),  # type: ignore[arg-type]
            batch_size=None,
            sampler=range(first, stop),
            num_workers=self.workers,
            prefetch_factor=2 if self.workers else None,
            multiprocessing_context="fork" if self.workers else None,
            pin_memory=self.world.device.type == "cuda",
            collate_fn=_as_it_is,
            worker_init_fn=_quiet_worker,
        )
        stream = iter(loader)
        try:
            for _ in range(first, stop):
                started = time.perf_counter()
                micro_batches = next(stream)
                if isinstance(micro_batches, ValueError):
                    raise micro_batches
                wait_s = time.perf_counter() - started
                yield [replace(micro_batches[0], wait_s=wait_s), *micro_batches[1:]]
        finally:
            # the workers ignore SIGTERM, so what Python does at exit would wait for them for ever
            if self.workers:
                stream._shutdown_workers()

    def step(self, step: int) -> list[Batch]:
        """This rank's rows of global batch `step`, cut into micro-batches; counts of every rank with them."""
        import torch

        from retrieval_train.data.batch import Batch
        from retrieval_train.data.order import share

        set_B, sample_B = self.order.rows(step)
        rows = self.order.batch
        batches = []
        for part in range(self.accumulate):
            micro = share(rows, part, self.accumulate)
            size = micro.stop - micro.start
            shares = [share(size, rank, self.world.size) for rank in range(self.world.size)]
            mine = range(rows)[micro][shares[self.world.rank]]
            images = [self._image(int(set_B[row]), int(sample_B[row]), step, row) for row in mine]
            labels = [self._label(int(set_B[row]), int(sample_B[row])) for row in mine]
            counts = tuple(one.stop - one.start for one in shares)
            batches.append(Batch(torch.stack(images), torch.tensor(labels), counts, size / rows))
        return batches

    def _image(self, number: int, sample: int, step: int, row: int) -> Tensor:
        from retrieval_train.data.decode import decode
        from retrieval_train.data.order import row_seed

        found = self.readers[number].read(sample)
        seed = row_seed(self.order.seed, step, row)
        return self.augment.apply(decode(found.image, key=found.key), self.image_px, seed=seed)

    def _label(self, number: int, sample: int) -> int:
        return int(self.labels.joint_of[number][self.readers[number].label(sample)])


class _Steps:
    """What torch's DataLoader takes for a dataset: step -> micro-batches."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getitem__(self, step: int) -> list[Batch] | ValueError:
        try:
            return self._loader.step(step)
        except ValueError as error:  # handed over as it is: torch would wrap the worker's traceback into its words
            return error


def _as_it_is(value: Any) -> Any:
    return value


def _quiet_worker(number: int) -> None:
    """A worker decodes on one core, and leaves Ctrl-C and the scheduler's signals to its rank, which saves first."""
    import signal

    import torch

    torch.set_num_threads(1)
    for caught in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(caught, signal.SIG_IGN)


def build_loader(
    config: DataConfig, shards_root: Path, world: World, *, image_px: int, accumulate: int, seed: int
) -> Loader:
    """Raises ShardError for a set that cannot be opened and ValueError for a batch that does not fit."""
    from retrieval_train.data.labels import join
    from retrieval_train.data.order import Order
    from retrieval_train.data.reader import Reader

    manifests = config.manifests(shards_root)
    readers = [Reader(manifest, manifest.select("train")) for manifest in manifests]
    order = Order(tuple(len(reader) for reader in readers), tuple(config.weights()), config.batch, seed)
    if config.batch // accumulate < world.size:
        raise ValueError(
            f"data.batch {config.batch} in {accumulate} micro-batches gives {world.size} ranks less than one row each; "
            "take a larger batch or fewer ranks"
        )
    return Loader(readers, join(manifests), order, world, config.augment, image_px, accumulate, config.workers)
