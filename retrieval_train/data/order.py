"""Which sample is in which row of which global batch: arithmetic on (set sizes, weights, seed, step), nothing else.

The number of nodes, ranks and workers changes who reads a row, never what is in it. So a run resumes exactly at any
step and on any world size, every rank takes the same number of steps, and "which images did step 1234 see" has an answer.

An epoch has `N = sum of round(weight * size)` slots. Slot k belongs to the set whose next slot is due first when set s
takes its j-th slot at time (j + 1/2) / quota_s: each set's share of any prefix is exact to one sample (Webster's method of
apportionment). The j-th slot of a set is the j-th entry of a keyed permutation of its samples, another one every epoch
and every pass, so that within a pass no sample comes twice. Nothing is stored: memory does not grow with the sets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]
Word = NDArray[np.uint64]


@dataclass(frozen=True)
class Order:
    """The order over sets of `sizes` samples, each taken `weights` times an epoch."""

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    batch: int
    """B, rows of the global batch."""
    seed: int

    def __post_init__(self) -> None:
        if self.epoch_rows < self.batch:
            raise ValueError(
                f"data.batch is {self.batch}, but an epoch has only {self.epoch_rows} samples; take a smaller batch"
            )

    @property
    def quotas(self) -> tuple[int, ...]:
        return tuple(round(weight * size) for weight, size in zip(self.weights, self.sizes, strict=True))

    @property
    def epoch_rows(self) -> int:
        return sum(self.quotas)

    @property
    def epoch_steps(self) -> int:
        """Whole batches of an epoch; the rows left over are other ones in every epoch."""
        return self.epoch_rows // self.batch

    def rows(self, step: int) -> tuple[Int, Int]:
        """(set, sample) of each row of global batch `step`, both (B,)."""
        epoch, index = divmod(step, self.epoch_steps)
        set_B, slot_B = _apportioned(np.array(self.quotas), index * self.batch, (index + 1) * self.batch)
        sample_B = np.empty_like(slot_B)
        for number, size in enumerate(self.sizes):
            mine = set_B == number
            turn_R, place_R = np.divmod(slot_B[mine], max(size, 1))
            for turn in np.unique(turn_R):
                key = _mixed(self.seed, number, epoch, int(turn))
                here = np.flatnonzero(mine)[turn_R == turn]
                sample_B[here] = permuted(place_R[turn_R == turn], size, key)
        return set_B, sample_B


def share(batch: int, rank: int, size: int) -> slice:
    """Rows of the global batch that rank `rank` of `size` reads. Sizes differ by one at most."""
    return slice(rank * batch // size, (rank + 1) * batch // size)


def permuted(places: Int, size: int, key: int) -> Int:
    """Where a keyed permutation of range(size) sends `places`.

    A Feistel network of 4 rounds permutes the next even power of two; a value that falls outside goes through it again
    until it is inside (cycle walking), which keeps it a permutation. Under 4 passes on average.
    """
    half = max(1, -(-max(size - 1, 1).bit_length() // 2))
    mask = np.uint64((1 << half) - 1)
    out = places.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> np.uint64(half), out[todo] & mask
        for turn in range(4):
            left, right = right, left ^ (_scrambled(right, _mixed(key, turn)) & mask)
        out[todo] = (left << np.uint64(half)) | right
        todo = todo[out[todo] >= size]
    return out.astype(np.int64)


def _apportioned(quotas: Int, start: int, stop: int) -> tuple[Int, Int]:
    """Set and slot within the set of the epoch's slots [start, stop)."""
    total = int(quotas.sum())
    # set s is due at times (j + 1/2) / quota_s; before slot k its count is near k quota_s / total: with S sets the time
    # of slot k is at most S/2 slots off k / total
    slack = len(quotas) + 1
    low = np.maximum(start * quotas // total - slack, 0)
    high = np.minimum(-(-stop * quotas // total) + slack, quotas)
    set_K = np.repeat(np.arange(len(quotas)), high - low)
    slot_K = np.concatenate([np.arange(a, b) for a, b in zip(low, high, strict=True)])
    # exact comparison of (2j + 1) / (2 quota): long double keeps 64 bits, enough for 1e9 samples
    due_K = (2 * slot_K + 1).astype(np.longdouble) / quotas[set_K]
    ordered = np.lexsort((set_K, due_K))
    first = start - int(low.sum())
    picked = ordered[first : first + stop - start]
    return set_K[picked].astype(np.int64), slot_K[picked].astype(np.int64)


def _scrambled(x: Word, key: int) -> Word:
    """splitmix64's finaliser: a good hash of 64 bits."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(key)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out: Word = x ^ (x >> np.uint64(31))
        return out


def _mixed(*parts: int) -> int:
    """One 64-bit key of several integers."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = _scrambled(key ^ np.uint64(part % 2**64), 0x9E3779B97F4A7C15)
    return int(key[0])


def row_seed(seed: int, step: int, row: int) -> int:
    """The seed of everything random about one row of one global batch."""
    return _mixed(seed, step, row) >> 1
