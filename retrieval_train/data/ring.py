"""Images from the workers to their rank without a copy through a pipe: a ring of slots in memory that all of them share.

The memory is anonymous and made before the workers fork: the kernel frees it whatever kills the run, and no name is left
behind. A slot is written by one worker, then read by the rank, which by then has not given its number away again.

Legend: V views of an image, R rows of a chunk, P pixels of a side.
"""

from __future__ import annotations

import mmap
import sys

import numpy as np
import torch
from torch import Tensor

_UNUSED = 3  # references to memory that only its list, a loop over it and the count itself have; a tensor is one more


class Ring:
    """`slots` chunks of up to `rows` images of `image_px` pixels, in `views` views each."""

    def __init__(self, slots: int, *, rows: int, image_px: int, views: int) -> None:
        self.slots = slots
        self._slot_bytes = -(-rows * views * image_px * image_px * 3 // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, max(slots, 1) * self._slot_bytes)

    def images(self, number: int, *, rows: int, image_px: int, views: int) -> Tensor:
        """The images of chunk `number` as (V, R, 3, P, P) over (P, P, 3) memory; valid until chunk number + slots begins."""
        count = views * rows * image_px * image_px * 3
        at = number % self.slots * self._slot_bytes
        flat = torch.frombuffer(self._memory, dtype=torch.uint8, count=count, offset=at)
        return flat.view(views, rows, image_px, image_px, 3).permute(0, 1, 4, 2, 3)


class Buffers:
    """Memory for batches, given out again once no tensor is left of it: fresh pages cost as much as copying the images."""

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._memory: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """uint8, with whatever it held before. Page-locked memory is torch's own, which also gives it out again."""
        if self._pinned:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self._memory = [memory for memory in self._memory if memory.shape == shape]
        free = next((memory for memory in self._memory if sys.getrefcount(memory) == _UNUSED), None)
        if free is None:
            free = np.empty(shape, np.uint8)
            self._memory.append(free)
        return torch.from_numpy(free)
