"""Which sample is in which row of which global batch: arithmetic on (manifests, config, seed, step), nothing else.

The number of nodes, ranks and workers changes who reads a row, never what is in it. So a run resumes exactly at any
step and on any world size, every rank takes the same number of steps, and "which images did step 1234 see" has an answer.

Legend: R some rows of a global batch, B all of them, N samples of a set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval_train.config import Section
from retrieval_train.data.order.permutation import Int, Word, mixed_each

if TYPE_CHECKING:
    from retrieval_train.data.labels import Labels
    from retrieval_train.data.reader import Reader
    from shards.manifest import Manifest


@dataclass(frozen=True)
class Samples:
    """What an order deals: the samples of the mixture's sets, numbered in each set as its reader numbers them."""

    readers: Sequence[Reader]
    labels: Labels
    weights: tuple[float, ...]
    """How often an epoch takes each sample of a set."""
    only_labelled: bool = True
    """Samples without a label are left out."""

    @cached_property
    def label_N(self) -> list[Int]:
        """For each set: every sample's joint class id, one of them where it has several, -1 for none."""
        return [
            self.labels.joint(number, reader.labels()).astype(np.int32) for number, reader in enumerate(self.readers)
        ]

    @cached_property
    def pairs(self) -> dict[int, tuple[Int, Int]]:
        """(sample, joint class id) of every label of every sample, of the sets whose images have several."""
        found = {}
        for number, reader in enumerate(self.readers):
            if reader.manifest.is_multi_label:
                sample_K, label_K = reader.label_pairs()
                found[number] = sample_K, self.labels.joint(number, label_K)
        return found

    def is_all_labelled(self, number: int) -> bool:
        """Whether set `number` has no sample without a label. Read from its class counts and not from its samples, but where
        images have several labels, which says nothing of their number."""
        reader = self.readers[number]
        if reader.manifest.is_multi_label:
            return bool((reader.labels() >= 0).all())
        return int(reader.manifest.classes.counts(reader.split).sum()) == len(reader)


class Order(ABC):
    """The content of every global batch."""

    batch: int
    """B, rows of the global batch."""
    seed: int
    epoch_steps: int
    """Steps of an epoch: whole batches."""
    streams: int = 1
    """Parts of a batch that read ranges of the shards of their own."""

    @abstractmethod
    def rows(self, step: int, row_R: Int) -> tuple[Int, Int]:
        """(set, sample) of these rows of global batch `step`, both (R,)."""

    @abstractmethod
    def substitute(self, step: int, row: int, attempt: int) -> tuple[int, int]:
        """(set, sample) that takes the place of a row whose sample cannot be read; another one for every attempt."""

    def batch_rows(self, step: int) -> tuple[Int, Int]:
        """(set, sample) of every row of global batch `step`, both (B,)."""
        return self.rows(step, np.arange(self.batch))

    def micro_rows(self, part: int, parts: int) -> Int:
        """The rows of the global batch that micro-batch `part` of `parts` holds; the same on any world size."""
        return np.arange(self.batch)[share(self.batch, part, parts)]

    def needed_next(self, step: int, row_R: Int) -> list[tuple[int, int, int]]:
        """(set, first sample, count) of what should be read ahead when these rows are dealt; may be empty."""
        return []

    # --- orders that follow the training: what they learned is in the checkpoint

    def observe(self, step: int, loss_of_domain: Mapping[str, float]) -> bool:
        """Told after every step, `step` of them done; whether something was settled, which all ranks should agree on."""
        return False

    def state(self) -> dict[str, Any]:
        """What `take_state` needs to go on; JSON."""
        return {}

    def take_state(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError when the state is of another order."""
        if state:
            raise ValueError(f"the checkpoint holds the state of another order ({', '.join(state)}); start a new run")


class OrderConfig(Section):
    """Base of all orders."""

    name: str
    """The order: the name of a file in data/order/."""

    @abstractmethod
    def build(self, samples: Samples, *, batch: int, seed: int) -> Order:
        """Raises ValueError for samples that this order cannot deal."""

    def problems(self, manifests: Sequence[Manifest], weights: Sequence[float], batch: int) -> list[tuple[str, str]]:
        """What can be told from the manifests alone: (key, what to do); key `batch` is data.batch. Reads no sample."""
        return []


def share(batch: int, rank: int, size: int) -> slice:
    """Rows of the global batch that rank `rank` of `size` reads. Sizes differ by one at most."""
    return slice(rank * batch // size, (rank + 1) * batch // size)


def sample_seeds(seed: int, step: int, row_R: Int, set_R: Int, sample_R: Int) -> Word:
    """The seed of everything random about each row: the same whatever rank or worker has it.

    Of (seed, step, sample), and of the row, since a sample may be in a batch several times: copies look different.
    """
    return mixed_each(seed, step, row_R, set_R, sample_R) >> np.uint64(1)
