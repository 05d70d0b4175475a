"""Every class equally often in an epoch: few images come several times, of many only some come, others each epoch.

An epoch is one list of slots, class by class, in the order of a keyed permutation; a slot is found by halving the list of
classes. A class goes on through its images where the epoch before left off.

Legend: C classes, R some rows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from retrieval_train.data.order.classes import NO_CLASSES, ClassIndex, ClassOrder, known_classes, odd_weights
from retrieval_train.data.order.order import Order, OrderConfig, Samples
from retrieval_train.data.order.permutation import Int, mixed, mixed_each, permuted, permuted_each
from retrieval_train.data.order.walk import passes_alike

if TYPE_CHECKING:
    from shards.manifest import Manifest


class Config(OrderConfig):
    """An epoch has `per_class` images of every class; what fills no whole batch is left out, other slots every epoch."""

    name: Literal["balanced"] = "balanced"
    """The order."""
    per_class: int = Field(ge=1)
    """Images of each class in an epoch; with a power above 0, of the mean class."""
    most_repeats: int = Field(default=1, ge=1)
    """An image comes at most so often in an epoch, for each of its labels: a class of n images gets no more than n times
    this."""
    power: float = Field(default=0.0, ge=0, le=1)
    """Classes get images by count ** power: 0 all alike, 1 as many as they have, 0.5 by the root; but each at least one."""

    def problems(self, manifests: Sequence[Manifest], weights: Sequence[float], batch: int) -> list[tuple[str, str]]:
        _, counts_C = known_classes(manifests, weights)
        found = odd_weights([manifest.name for manifest in manifests], weights)
        return found + self._problems(self.quotas(counts_C), batch)

    def build(self, samples: Samples, *, batch: int, seed: int) -> Order:
        index = ClassIndex.of(samples)
        quotas_C = self.quotas(index.counts_C)
        for key, text in self._problems(quotas_C, batch):
            raise ValueError(f"data.order.{key}: {text}")
        return Balanced(index, quotas_C, samples.labels.names, batch, seed)

    def quotas(self, counts_C: Int) -> Int:
        """Images of each class in an epoch, (C,); 0 for a class without any."""
        share_C = np.where(counts_C > 0, counts_C.astype(np.float64) ** self.power, 0.0)
        mean = share_C.sum() / max(np.count_nonzero(counts_C), 1) or 1.0
        wanted_C = np.maximum(np.rint(self.per_class * share_C / mean).astype(np.int64), 1)
        return np.minimum(wanted_C, counts_C * self.most_repeats)

    def _problems(self, quotas_C: Int, batch: int) -> list[tuple[str, str]]:
        slots = int(quotas_C.sum())
        if slots == 0:
            return [("name", NO_CLASSES)]
        if slots < batch:
            text = (
                f"{self.per_class} images of {np.count_nonzero(quotas_C)} classes, each at most {self.most_repeats} times, "
                f"make an epoch of {slots}, and data.batch is {batch}; take more of each class or a smaller batch"
            )
            return [("per_class", text)]
        return []


@dataclass
class Balanced(ClassOrder):
    """Deals `quotas` images of each class an epoch."""

    index: ClassIndex
    quotas_C: Int
    names: Sequence[str]
    batch: int
    seed: int

    def __post_init__(self) -> None:
        self._ends_C = np.cumsum(self.quotas_C)
        self._slots = int(self._ends_C[-1])
        self.epoch_steps = self._slots // self.batch

    def drawn_class(self, number: int) -> int:
        """By what the classes are due."""
        return int(np.searchsorted(self._ends_C, number % self._slots, side="right"))

    def picked(self, step: int, row_R: Int) -> tuple[Int, Int]:
        epoch, at = divmod(step, self.epoch_steps)
        slot_R = permuted(at * self.batch + row_R, self._slots, mixed(self.seed, 31, epoch))
        class_R = np.searchsorted(self._ends_C, slot_R, side="right")
        quota_R, count_R = self.quotas_C[class_R], self.index.counts_C[class_R]
        place_R = epoch * quota_R + slot_R - (self._ends_C[class_R] - quota_R)
        # a pass keeps its order until one ends with an epoch: so no epoch has an image more often than another, but for one
        order_R = place_R // count_R // passes_alike(count_R, quota_R)
        key_R = mixed_each(mixed(self.seed, 32), class_R, order_R)
        return class_R, permuted_each(place_R % count_R, count_R, key_R)
