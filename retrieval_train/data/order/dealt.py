"""Pools dealt by shares that stay as they are: a dealing is an epoch, and what it leaves over is other samples every time.

Legend: R some rows of a batch, K pieces to be read ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from retrieval_train.data.order.deal import Deal, Places
from retrieval_train.data.order.order import Order
from retrieval_train.data.order.permutation import Int, Word, mixed, mixed_each, permuted
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
        self._last_placed: tuple[int, Int, tuple[Places, Int, Word]] | None = None

    def rows(self, step: int, row_R: Int) -> tuple[Int, Int]:
        return self._found(*self._numbers(step, row_R))

    def substitute(self, step: int, row: int, attempt: int) -> tuple[int, int]:
        """Each other sample of the same pool once, then samples of the largest pool."""
        [which], [bad] = (part.tolist() for part in self._numbers(step, np.array([row])))
        size, key = self.pools[which].size, mixed(self.seed, 13, step, row)
        if attempt < size - 1:
            number_R = permuted(np.array([attempt]), size - 1, key)
            number_R += number_R >= bad  # of the pool without the bad one
        else:
            which = max(range(len(self.pools)), key=lambda number: self.pools[number].size)
            most = self.pools[which].size
            number_R = permuted(np.array([(attempt - size + 1) % most]), most, key)
        [number] = self.pools[which].sample(number_R).tolist()
        return self.pools[which].set, number

    def micro_rows(self, part: int, parts: int) -> Int:
        """Every `parts`-th row: so a rank's rows of all micro-batches are of the same streams, where `parts` divides the
        rows of a stream; else a few rows at its ends are its neighbour's."""
        return np.arange(part, self.batch, parts)

    def needed_next(self, step: int, row_R: Int) -> list[tuple[int, int, int]]:
        some, place_R, key_R = self._placed(step, row_R)
        asks_K, first_K, count_K = self.shuffle.needed_next(place_R, some.size, key_R, some.parts)
        pieces = zip(some.pool[asks_K].tolist(), (some.first[asks_K] + first_K).tolist(), count_K.tolist(), strict=True)
        return [
            (self.pools[pool].set, *run) for pool, first, count in pieces for run in self.pools[pool].runs(first, count)
        ]

    @cached_property
    def _deal(self) -> Deal:
        return self._dealing(self.epoch_steps, self.quotas)

    def _dealing(self, steps: int, quotas: tuple[int, ...], *, cut: bool = True) -> Deal:
        return Deal(
            steps=steps,
            batch=self.batch,
            sizes=tuple(pool.size for pool in self.pools),
            quotas=quotas,
            components=self.components,
            groups=self.groups,
            streams=self.streams,
            cut=cut,
            seed=self.seed,
        )

    def _found(self, pool_R: Int, number_R: Int) -> tuple[Int, Int]:
        """(set, sample) of these samples of the pools."""
        set_R, sample_R = np.empty_like(number_R), np.empty_like(number_R)
        for which in np.unique(pool_R).tolist():
            here, pool = np.flatnonzero(pool_R == which), self.pools[which]
            set_R[here], sample_R[here] = pool.set, pool.sample(number_R[here])
        return set_R, sample_R

    def _numbers(self, step: int, row_R: Int) -> tuple[Int, Int]:
        """(pool, number of the sample in the pool) of these rows."""
        some, place_R, key_R = self._placed(step, row_R)
        return some.pool, some.first + self.shuffle.samples(place_R, some.size, key_R, some.parts)

    def _placed(self, step: int, row_R: Int) -> tuple[Places, Int, Word]:
        """The rows' ranges, their places in a permutation of the range, and its keys.

        A range that is dealt in part lasts for some epochs before it is permuted anew; one that is dealt several times an
        epoch is permuted for each time. The last answer is kept: rows and needed_next are asked about the same rows.
        """
        if (
            self._last_placed is not None
            and self._last_placed[0] == step
            and np.array_equal(self._last_placed[1], row_R)
        ):
            return self._last_placed[2]
        epoch, at = divmod(step, self.epoch_steps)
        some = self._deal.places(at, row_R)
        lasts_R = some.size // some.quota  # epochs; 0: not for one
        pass_R, part_R = np.divmod(epoch, np.maximum(lasts_R, 1))
        turn_R, place_R = np.divmod(part_R * some.quota + some.place, some.size)
        placed = some, place_R, self._keys(some, pass_R, turn_R)
        self._last_placed = step, row_R.copy(), placed
        return placed

    def _keys(self, some: Places, *turns: Int) -> Word:
        return mixed_each(self.seed, 14, some.pool, some.first, *turns)
