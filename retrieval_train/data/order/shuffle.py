"""A shuffle that reads in blocks: blocks of neighbours in a tar are permuted, then all samples of a window of blocks.

Up to one window the shuffle is a full permutation. Beyond, what is needed in the next hundreds of batches lies in a few
thousand contiguous pieces, which a file system reads ahead while the window before is used up.

Every place may be of a range of its own: the ranges of all streams and sets of a batch are shuffled in one call.

Legend: R places, each of a permutation of range(size) under a key; K blocks.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from retrieval_train.config import Section
from retrieval_train.data.order.permutation import Int, Word, mixed_each, permuted_each


class Shuffle(Section):
    """How far the samples of a set are mixed."""

    block: int = Field(default=64, ge=1)
    """Neighbouring samples that are read in one piece."""
    window: int = Field(default=32_768, ge=1)
    """Samples of each set (with `by: domain`, of each domain of a set) that are shuffled among each other, those of all
    streams together: each stream has its part of them, at least a block. Smaller sets are shuffled as a whole. They and
    as many again should fit into the page caches of the nodes."""

    def samples(self, place_R: Int, size_R: Int, key_R: Word, parts_R: Int) -> Int:
        """Which sample of range(size) is at each place. `parts`: ranges that share a window."""
        blocks_R, windows_R = self._extent(size_R, parts_R)
        window_R = -(-(place_R // self.block + 1) * windows_R // blocks_R) - 1
        first_R = window_R * blocks_R // windows_R * self.block
        stop_R = np.minimum((window_R + 1) * blocks_R // windows_R * self.block, size_R)
        inside_R = first_R + permuted_each(place_R - first_R, stop_R - first_R, mixed_each(key_R, 1, window_R))
        cut = np.flatnonzero(windows_R > 1)
        begin_K, _ = self._block(inside_R[cut] // self.block, size_R[cut], key_R[cut])
        inside_R[cut] = (begin_K + inside_R[cut] % self.block) % size_R[cut]
        return inside_R

    def needed_next(self, place_R: Int, size_R: Int, key_R: Word, parts_R: Int) -> tuple[Int, Int, Int]:
        """(which of the places asks, first sample, count) of the pieces to be read ahead when these places are used: they
        are due one window later.

        Of the places of one block exactly one asks, so nothing is asked for twice, whoever uses the places.
        """
        blocks_R, windows_R = self._extent(size_R, parts_R)
        block_R = place_R // self.block + -(-blocks_R // windows_R)
        asks = np.flatnonzero((windows_R > 1) & (place_R % self.block == 0) & (block_R < blocks_R))
        size_K = size_R[asks]
        first_K, count_K = self._block(block_R[asks], size_K, key_R[asks])
        over_K = np.maximum(first_K + count_K - size_K, 0)  # the turned range goes on at its beginning
        again = np.flatnonzero(over_K)
        return (
            np.r_[asks, asks[again]],
            np.r_[first_K, np.zeros(len(again), np.int64)],
            np.r_[count_K - over_K, over_K[again]],
        )

    def _extent(self, size_R: Int, parts_R: Int) -> tuple[Int, Int]:
        """Blocks and windows: all windows of a range have equally many blocks, to one."""
        window_R = np.maximum(self.window // parts_R, self.block)
        return -(-size_R // self.block), np.maximum(1, -(-size_R // window_R))

    def _block(self, place_K: Int, size_K: Int, key_K: Word) -> tuple[Int, Int]:
        """First sample and length of the blocks at these places of their permutation.

        The range is turned by a random number first, so that cuts fall elsewhere in every pass; the short block at its end
        stays at the end, where another one is each time.
        """
        if not len(place_K):
            return place_K, place_K
        whole_K = size_K // self.block
        block_K = place_K.copy()
        here = np.flatnonzero(place_K < whole_K)
        block_K[here] = permuted_each(place_K[here], whole_K[here], mixed_each(key_K, 2)[here])
        first_K = block_K * self.block
        turn_K = (mixed_each(key_K, 3) % size_K.astype(np.uint64)).astype(np.int64)
        return (first_K + turn_K) % size_K, np.minimum(self.block, size_K - first_K)
