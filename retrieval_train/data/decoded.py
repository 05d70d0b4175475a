"""Decoded images in memory that all workers of a rank share: for sets that fit.

    entry_N     one 8-byte word a sample: where its record begins, 0 for none
    used_W      one word a writer: bytes of its region that are taken
    region_W    records of each writer: height, width, channels (3 x 4 bytes), 4 bytes of nothing, the pixels

Anonymous memory: the kernel frees it with the last process, whatever killed it, and no name stays behind. Every writer fills
a region of its own and writes the entry last, with one aligned store, so nobody waits for anybody and a reader sees a whole
image or none. Nothing is ever removed: an epoch asks for every image once, and then all are equally worth keeping.
"""

from __future__ import annotations

import mmap
import threading

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
WORD, HEAD, ALIGNED = 8, 16, 64


class DecodedCache:
    """Room for images of samples [0, num_samples), `max_bytes` in all, made before the workers fork."""

    def __init__(self, num_samples: int, max_bytes: int, writers: int) -> None:
        self._region = (max_bytes // writers) // ALIGNED * ALIGNED
        if self._region < HEAD:
            raise ValueError(f"{max_bytes} bytes for {writers} writers hold no image; give at least {1 << 20} each")
        self._first = -(-(num_samples + writers) * WORD // ALIGNED) * ALIGNED
        self._memory = mmap.mmap(-1, self._first + writers * self._region)
        words = np.frombuffer(self._memory, "<u8", num_samples + writers)
        self._entry_N, self._used_W = words[:num_samples], words[num_samples:]
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._fence = threading.Lock()

    def __reduce__(self) -> str:
        raise TypeError("a DecodedCache goes to workers by fork")

    def __len__(self) -> int:
        """Images that are there."""
        return int(np.count_nonzero(self._entry_N))

    def get(self, number: int) -> Pixels | None:
        """uint8 (H, W, C), a read-only view that stays valid; None where it has not been put."""
        at = int(self._entry_N[number])
        if not at:
            return None
        height, width, channels, _ = np.frombuffer(self._memory, "<u4", HEAD // 4, at).tolist()
        image = self._bytes[at + HEAD : at + HEAD + height * width * channels].reshape(height, width, channels)
        image.flags.writeable = False
        return image

    def put(self, number: int, image_HWC: Pixels, writer: int) -> bool:
        """Whether it is there now: not when this writer's region is full. No two processes may be the same writer."""
        if self._entry_N[number]:
            return True
        if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3:
            raise ValueError(f"an image is uint8 (H, W, C), not {image_HWC.dtype} {image_HWC.shape}")
        used = int(self._used_W[writer])
        needed = -(-(HEAD + image_HWC.size) // ALIGNED) * ALIGNED
        if used + needed > self._region:
            return False
        at = self._first + writer * self._region + used
        self._used_W[writer] = used + needed  # before the bytes: whoever is killed here has wasted them, no more
        self._bytes[at : at + HEAD].view("<u4")[:] = (*image_HWC.shape, 0)
        self._bytes[at + HEAD : at + HEAD + image_HWC.size].reshape(image_HWC.shape)[:] = image_HWC
        for _ in range(2):  # releasing and taking a lock orders the stores above before the one below on any processor
            with self._fence:
                pass
        self._entry_N[number] = at
        return True
