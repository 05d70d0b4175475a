"""Pools dealt by shares that stay as they are: a dealing is an epoch, and what it leaves over is other samples every time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from retrieval_train.data.order.deal import Deal, Places
from retrieval_train.data.order.order import Order
from retrieval_train.data.order.permutation import Int, mixed
from retrieval_train.data.order.pools import Pool
from retrieval_train.data.order.shuffle import Shuffle


@dataclass
class Dealt(Order):
    """Deals the pools anew every epoch."""

    pools: Sequence[Pool]
    quotas: tuple[int, ...]
    """Rows of an epoch from each pool."""
    components: tuple[int, ...]
    """Of each pool; a group of rows holds one component. All 0: every batch holds all pools."""
    batch: int
    seed: int
    shuffle: Shuffle = field(default_factory=Shuffle)
    groups: int = 1
    streams: int = 1

    def __post_init__(self) -> None:
        self.epoch_steps = sum(self.quotas) // self.batch

    def rows(self, step: int, row_R: Int) -> tuple[Int, Int]:
        set_R, sample_R = np.empty_like(row_R), np.empty_like(row_R)
        epoch, at = divmod(step, self.epoch_steps)
        for some in self._deal.places(at, row_R):
            pool = self.pools[some.pool]
            for here, place_K, key in self._passes(some, epoch):
                number_K = some.first + self.shuffle.samples(place_K, some.size, key)
                set_R[some.at[here]], sample_R[some.at[here]] = pool.set, pool.sample(number_K)
        return set_R, sample_R

    def substitute(self, step: int, row: int, attempt: int) -> tuple[int, int]:
        """Another sample of the same pool, drawn by (seed, step, row, attempt)."""
        [some] = self._dealt_at(step, np.array([row]))
        pool = self.pools[some.pool]
        [number] = pool.sample(np.array([mixed(self.seed, 13, step, row, attempt) % pool.size]))
        return pool.set, int(number)

    def micro_rows(self, part: int, parts: int) -> Int:
        """Every `parts`-th row: so a rank's rows of all micro-batches are of the same streams."""
        return np.arange(part, self.batch, parts)

    def needed_next(self, step: int, row_R: Int) -> list[tuple[int, int, int]]:
        epoch, at = divmod(step, self.epoch_steps)
        found = []
        for some in self._deal.places(at, row_R):
            pool = self.pools[some.pool]
            for _, place_K, key in self._passes(some, epoch):
                for first, count in self.shuffle.needed_next(place_K, some.size, key):
                    low = some.first + first
                    ends = pool.sample(np.array([low, low + count - 1]))
                    found.append((pool.set, int(ends[0]), int(ends[1] - ends[0]) + 1))
        return found

    @cached_property
    def _deal(self) -> Deal:
        sizes = tuple(pool.size for pool in self.pools)
        return Deal(
            steps=self.epoch_steps,
            batch=self.batch,
            sizes=sizes,
            quotas=self.quotas,
            components=self.components,
            groups=self.groups,
            streams=self.streams,
            seed=self.seed,
        )

    def _dealt_at(self, step: int, row_R: Int) -> list[Places]:
        return self._deal.places(step % self.epoch_steps, row_R)

    def _passes(self, some: Places, epoch: int) -> list[tuple[Int, Int, int]]:
        """(which of the places, their place in a permutation, its key): a pool that is dealt in part lasts for some epochs
        before it is permuted anew, one that is dealt several times an epoch is permuted for each time."""
        if some.quota <= some.size:
            turn, part = divmod(epoch, some.size // some.quota)
            return [(np.arange(len(some.place)), part * some.quota + some.place, self._key(some, turn, 0))]
        return [
            (here := np.flatnonzero(some.place // some.size == turn), some.place[here] % some.size, key)
            for turn in np.unique(some.place // some.size).tolist()
            for key in [self._key(some, epoch, turn)]
        ]

    def _key(self, some: Places, *turn: int) -> int:
        return mixed(self.seed, 14, some.pool, some.first, *turn)
