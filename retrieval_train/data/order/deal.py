"""One dealing of pools of samples over T batches of B rows: who gets which place of which pool, by arithmetic.

A pool is what is dealt evenly: a set, or one domain of a set. Pools make up components; a group of rows holds one
component only. Mixed batches have one component and one group; batches of one domain have a component for each domain.

Rows are cut into *streams*, fixed ranges of rows, and each pool into a range of places for each stream: whoever holds a
stream's rows reads only its places. Streams see the pools in the same proportions, at different moments.

Every place of a pool is dealt once. Nothing but a few numbers for each pool and stream is stored.

Legend: R some rows of a batch, P pools of a component.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from retrieval_train.data.order.apportion import counted, slots
from retrieval_train.data.order.permutation import Int, mixed

MIN_CUT = 64  # places for each stream below which a pool is not cut


class Places(NamedTuple):
    """Each row's place in a range of a pool, all (R,)."""

    pool: Int
    first: Int
    """The range: samples [first, first + size) of the pool ..."""
    size: Int
    quota: Int
    """... of which this dealing takes so many ..."""
    place: Int
    """... in this order: 0 to quota - 1."""
    parts: Int
    """Ranges of the pool; 1 where all streams share it."""


class Ranges(NamedTuple):
    """The ranges of a stream in the pools of a component, all (P,)."""

    first: Int
    size: Int
    quota: Int
    begin: Int
    """The pool's row with which the range's places begin ..."""
    parts: Int


class Region(NamedTuple):
    """Rows of a component that belong to one stream, in the component's numbering [start, start + length)."""

    start: int
    length: int
    turn: int
    """The region is walked from here on, and then from its beginning: streams are at different moments of a cycle."""


@dataclass(frozen=True, eq=False)
class Deal:
    """Who gets what; the module's docstring says how."""

    steps: int
    batch: int
    sizes: tuple[int, ...]
    """Samples of each pool."""
    quotas: tuple[int, ...]
    """Rows that each pool gets, all together steps * batch."""
    components: tuple[int, ...]
    """The component of each pool."""
    groups: int = 1
    """Equal parts of a batch that hold one component each."""
    streams: int = 1
    """Parts of a batch that read their own ranges; with several groups, the groups."""
    cut: bool = True
    """Whether they do; else all read the whole pools."""
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.batch % self.groups == 0 and sum(self.quotas) == self.steps * self.batch
        assert all(
            turns * self.group_rows == rows for turns, rows in zip(self._turns, self._component_rows, strict=True)
        )

    @property
    def group_rows(self) -> int:
        return self.batch // self.groups

    @cached_property
    def _component_rows(self) -> list[int]:
        rows: list[int] = np.bincount(self.components, self.quotas).astype(np.int64).tolist()
        return rows

    @cached_property
    def _turns(self) -> Int:
        """Group-slots of each component."""
        return np.array(self._component_rows, np.int64) // self.group_rows

    @cached_property
    def _pools(self) -> list[tuple[Int, Int]]:
        """For each component its pools and their quotas."""
        component, quotas = np.array(self.components), np.array(self.quotas, np.int64)
        members = [np.flatnonzero(component == number) for number in range(len(self._component_rows))]
        return [(pools, quotas[pools]) for pools in members]

    def places(self, step: int, row_R: Int) -> Places:
        """Where the rows of batch `step` (of this dealing) are taken from."""
        found = Places(*(np.empty(len(row_R), np.int64) for _ in Places._fields))
        group_R = row_R // self.group_rows
        for group in np.unique(group_R).tolist():
            component, turn = self._component(step, group)
            inside_R = row_R - group * self.group_rows
            stream_R = self._stream(inside_R) if self.groups == 1 else group_R
            for stream in np.unique(stream_R[group_R == group]).tolist():
                at = np.flatnonzero((group_R == group) & (stream_R == stream))
                region, ranges = self._known(component, stream)
                walked = self._walked(component, stream, turn, inside_R[at])
                number = region.start + (walked + region.turn) % region.length
                member_K, own_K = self._apportioned(component, number)
                first, size, quota, begin, parts = (of_P[member_K] for of_P in ranges)
                place = np.where(parts > 1, (own_K - begin) % quota, own_K)
                mine = self._pools[component][0][member_K], first, size, quota, place, parts
                for of_all, of_mine in zip(found, mine, strict=True):
                    of_all[at] = of_mine
        return found

    # --- components and streams

    def _component(self, step: int, group: int) -> tuple[int, int]:
        """The component of a group of rows, and how many times the component came before in the group's sequence."""
        if self.groups == 1 and len(self._pools) == 1:
            return 0, step
        slot = group * self.steps + (step + self._lag(group)) % self.steps
        component, turn = slots(self._turns, slot, slot + 1)
        return int(component[0]), int(turn[0])

    def _lag(self, group: int) -> int:
        """Groups are at different moments of the sequence of components, or all would hold the same one."""
        return mixed(self.seed, 11, group) % self.steps if group else 0

    def _bounds(self, stream: int) -> int:
        return stream * self.batch // self.streams

    def _stream(self, row_R: Int) -> Int:
        """The stream whose rows [s B / S, (s + 1) B / S) hold the row."""
        return ((row_R + 1) * self.streams - 1) // self.batch

    @cached_property
    def _kept(self) -> dict[tuple[int, int], tuple[Region, Ranges]]:
        """By component and stream."""
        return {}

    def _known(self, component: int, stream: int) -> tuple[Region, Ranges]:
        if (component, stream) not in self._kept:
            region = self._region(component, stream)
            self._kept[component, stream] = region, self._ranges(component, region)
        return self._kept[component, stream]

    def _ranges(self, component: int, region: Region) -> Ranges:
        """A range begins with the stream's turn, so that its places are used in their order."""
        pools, quotas = self._pools[component]
        places = (region.start, region.start + region.turn, region.start + region.length)
        before = zip(pools.tolist(), quotas.tolist(), *(counted(quotas, p).tolist() for p in places), strict=True)
        parts = self.streams if self.groups == 1 else self.groups
        found = []
        for pool, quota, first, turned, last in before:
            size = self.sizes[pool]
            if self.is_cut(pool) and quota:  # Python's integers: a product may have more than 64 bits
                low, high = size * first // quota, size * last // quota
                found.append((low, high - low, last - first, turned, parts))
            else:
                found.append((0, size, quota, 0, 1))
        return Ranges(*np.array(found, np.int64).T)

    def _region(self, component: int, stream: int) -> Region:
        if self.groups == 1:
            turns = int(self._turns[component])
            start, stop = turns * self._bounds(stream), turns * self._bounds(stream + 1)
            return Region(start, stop - start, mixed(self.seed, 12, stream) % (stop - start) if stream else 0)
        first, lagged, last = (int(counted(self._turns, slot)[component]) for slot in self._group_slots(stream))
        rows = self.group_rows
        return Region(first * rows, (last - first) * rows, (lagged - first) * rows)

    def _group_slots(self, group: int) -> tuple[int, int, int]:
        start = group * self.steps
        return start, start + self._lag(group), start + self.steps

    def _walked(self, component: int, stream: int, turn: int, inside_R: Int) -> Int:
        """How many rows of the region were dealt before each of these, which are rows of one group at one step."""
        if self.groups == 1:
            first = self._bounds(stream)
            return turn * (self._bounds(stream + 1) - first) + inside_R - first
        region, _ = self._known(component, stream)
        return (turn * self.group_rows - region.start - region.turn) % region.length + inside_R

    # --- pools

    def is_cut(self, pool: int) -> bool:
        """Whether streams have ranges of their own in the pool; a small one is shared by all."""
        parts = self.streams if self.groups == 1 else self.groups
        return self.cut and parts > 1 and self.sizes[pool] >= MIN_CUT * parts

    def _apportioned(self, component: int, number_R: Int) -> tuple[Int, Int]:
        """Pool (of the component's) and number within the pool of some of the component's rows, in any order."""
        _, quotas = self._pools[component]
        if len(quotas) == 1:
            return np.zeros(len(number_R), np.int64), number_R
        pool_R, own_R = np.empty_like(number_R), np.empty_like(number_R)
        order = np.argsort(number_R)
        for run in np.split(order, np.flatnonzero(np.diff(number_R[order]) > len(quotas) + 64) + 1):
            low, high = int(number_R[run[0]]), int(number_R[run[-1]]) + 1
            party, own = slots(quotas, low, high)
            pool_R[run], own_R[run] = party[number_R[run] - low], own[number_R[run] - low]
        return pool_R, own_R
