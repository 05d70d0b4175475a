"""Width, height and format of the images of a set, read from the first bytes of each: no pixel is decoded."""

from __future__ import annotations

import io
from typing import BinaryIO, NamedTuple

import numpy as np

from shards.images.container import EXTENSIONS
from shards.images.pixels import pillow_limits
from shards.manifest import Manifest

MOST = 20_000
"""Images measured of a larger set, evenly spread over it."""
HEAD_BYTES = 16_384  # holds the size of most images; some JPEGs carry a colour profile or a preview before it
NO_LIMIT = 2**62  # pixels: nothing is decoded here, so a large image does no harm


class Sizes(NamedTuple):
    """One entry an image measured."""

    at: np.ndarray
    """Its place in the set: position over all shards."""
    width: np.ndarray
    """Pixels, as stored; 0 where the image is broken."""
    height: np.ndarray
    formats: np.ndarray
    """`jpg`, `png`, …; empty where the image is broken."""


def measure_images(manifest: Manifest, *, most: int = MOST) -> Sizes:
    """Of all images, or of `most` evenly spread ones where the set has more."""
    num_samples = sum(shard.samples for shard in manifest.shards)
    chosen = np.linspace(0, num_samples - 1, min(num_samples, most)).astype(np.int64)
    found: list[tuple[str, int, int]] = []
    first = 0
    with pillow_limits(NO_LIMIT):
        for shard in manifest.shards:
            rows = manifest.sidecar(shard)
            mine = chosen[(chosen >= first) & (chosen < first + len(rows))] - first
            with (manifest.folder / shard.file).open("rb", buffering=0) as file:
                spans = zip(rows["image_at"][mine].tolist(), rows["image_bytes"][mine].tolist(), strict=True)
                found += [measure_image(file, at, num_bytes) for at, num_bytes in spans]
            first += len(rows)
    formats, widths, heights = zip(*found, strict=True) if found else ((), (), ())
    return Sizes(chosen, np.array(widths, np.int64), np.array(heights, np.int64), np.array(formats, np.str_))


def measure_image(file: BinaryIO, at: int, num_bytes: int) -> tuple[str, int, int]:
    """(format, width, height) of the image at this place of a tar; ("", 0, 0) where it is broken.

    By Pillow, not by container.py: that one wants to see the whole file.
    """
    from PIL import Image

    for length in sorted({min(HEAD_BYTES, num_bytes), num_bytes}):
        file.seek(at)
        try:
            image = Image.open(io.BytesIO(file.read(length)), formats=list(EXTENSIONS))
        except Exception:  # what Pillow's plugins raise on half a file or on a broken one; the whole one comes next
            continue
        return EXTENSIONS.get(image.format or "", "jpg"), image.width, image.height  # MPO: a JPEG and more behind it
    return "", 0, 0
