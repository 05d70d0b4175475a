"""A shuffle that reads in blocks: blocks of neighbours in a tar are permuted, then all samples of a window of blocks.

Up to one window the shuffle is a full permutation. Beyond, what is needed in the next hundreds of batches lies in a few
thousand contiguous pieces, which a file system reads ahead while the window before is used up.

Legend: R places of a permutation of `size` samples.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from retrieval_train.config import Section
from retrieval_train.data.order.permutation import Int, mixed, permuted


class Shuffle(Section):
    """How far the samples of a set are mixed."""

    block: int = Field(default=64, ge=1)
    """Neighbouring samples that are read in one piece."""
    window: int = Field(default=32_768, ge=1)
    """Samples that are shuffled among each other; they and as many again should fit into the node's page cache."""

    def samples(self, place_R: Int, size: int, key: int) -> Int:
        """Which sample of range(size) is at each place."""
        blocks, windows = self._extent(size)
        if windows == 1:
            return permuted(place_R, size, key)
        window_R = -(-(place_R // self.block + 1) * windows // blocks) - 1
        inside_R = np.empty_like(place_R)
        for window in np.unique(window_R):
            first, stop = self._bounds(int(window), blocks, windows, size)
            here = window_R == window
            inside_R[here] = first + permuted(place_R[here] - first, stop - first, mixed(key, 1, int(window)))
        first_R, _ = self._block(inside_R // self.block, size, key)
        return (first_R + inside_R % self.block) % size

    def needed_next(self, place_R: Int, size: int, key: int) -> list[tuple[int, int]]:
        """(first sample, count) of the pieces to be read ahead when these places are used: one window later they are due.

        Of the places of one block exactly one asks, so nothing is asked for twice, whoever uses the places.
        """
        blocks, windows = self._extent(size)
        if windows == 1:
            return []
        block_K = place_R[place_R % self.block == 0] // self.block + -(-blocks // windows)
        block_K = block_K[block_K < blocks]
        pieces = []
        for first, count in zip(*self._block(block_K, size, key), strict=True):
            pieces.append((int(first), int(min(count, size - first))))
            if first + count > size:  # the turned range goes on at its beginning
                pieces.append((0, int(first + count - size)))
        return pieces

    def _extent(self, size: int) -> tuple[int, int]:
        """Blocks and windows."""
        return -(-size // self.block), max(1, -(-size // max(self.window, self.block)))

    def _bounds(self, window: int, blocks: int, windows: int, size: int) -> tuple[int, int]:
        """Places of a window: all windows have equally many blocks, to one."""
        first, stop = window * blocks // windows, (window + 1) * blocks // windows
        return first * self.block, min(stop * self.block, size)

    def _block(self, place_K: Int, size: int, key: int) -> tuple[Int, Int]:
        """First sample and length of the blocks at these places of their permutation.

        The range is turned by a random number first, so that cuts fall elsewhere in every pass; the short block at its end
        stays at the end, where another one is each time.
        """
        whole = size // self.block
        block_K = place_K.copy()
        block_K[place_K < whole] = permuted(place_K[place_K < whole], whole, mixed(key, 2))
        first_K = block_K * self.block
        return (first_K + mixed(key, 3) % size) % size, np.minimum(self.block, size - first_K)
