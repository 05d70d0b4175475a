"""Image bytes -> uint8 RGB tensor: rotated as EXIF says, transparency flattened on white.

JPEG goes through libjpeg-turbo, which also decodes to 1/2, 1/4 or 1/8 of the size for less than the whole costs; whatever
it cannot do right (CMYK, 12 bits, damaged files, other formats) is left to Pillow, which is not imported before.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import simplejpeg
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

FACTORS = (8, 4, 2)  # libjpeg-turbo knows others, which cost more than they save
MOST_PIXELS = 178_956_970  # where Pillow suspects a decompression bomb
COMMON_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended, progressive: Huffman coded, as nearly all are
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
LONE_MARKERS = frozenset((0x00, 0x01, *range(0xD0, 0xD9), 0xFF))
ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)


MinSide = int | Callable[[int, int], int]


def decode(image: bytes, *, key: str, min_side: MinSide = 0) -> Tensor:
    """uint8 (3, H, W), in memory (H, W, 3): torch resizes that fastest.

    A JPEG is decoded at the smallest of 1, 1/2, 1/4 and 1/8 of its size whose shorter side has `min_side` pixels or more;
    0 is full size. `min_side` may be a function of the whole image's height and width.
    Raises ValueError that names the sample when the bytes are no image.
    """
    pixels_HWC = _decode_jpeg(image, min_side)
    if pixels_HWC is None:
        try:
            pixels_HWC = _decode_any(image)
        except Exception as error:  # Pillow's parsers raise struct.error, zlib.error, IndexError ... for broken files
            raise ValueError(f"'{key}' does not decode ({error})") from error
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


# --- the fast way


class _Jpeg(NamedTuple):
    """What the segments before the pixels say."""

    width: int
    """As stored, before any rotation."""
    height: int
    orientation: int
    """EXIF's 1 to 8."""


def _decode_jpeg(image: bytes, min_side: MinSide) -> np.ndarray | None:
    """(H, W, 3); None where Pillow has to do it, or to say what is wrong."""
    try:
        header = _read_header(image)
    except (IndexError, struct.error):  # ends within its header
        return None
    if header is None:
        return None
    if callable(min_side):
        is_on_its_side = header.orientation in SIDEWAYS
        upright = (header.width, header.height) if is_on_its_side else (header.height, header.width)
        min_side = min_side(*upright)
    shorter = min(header.width, header.height)
    factor = next((f for f in FACTORS if -(-shorter // f) >= min_side), 1) if min_side > 0 else 1
    width, height = -(-header.width // factor), -(-header.height // factor)
    if width * height > MOST_PIXELS:
        return None
    bounds = {"min_height": height, "min_width": width} if factor > 1 else {}
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(image, "RGB", **bounds)
    except ValueError:  # damaged, or merely with bytes to spare: Pillow tells them apart
        return None
    assert pixels.shape == (height, width, 3), "the smallest fraction that is at least this large is 1/factor"
    return _turn(pixels, header.orientation)


def _read_header(image: bytes) -> _Jpeg | None:
    """None for what is no JPEG, or one that needs Pillow."""
    if not image.startswith(b"\xff\xd8\xff"):
        return None
    at, orientation = 2, 1
    while True:
        if image[at] != 0xFF:
            return None
        marker = image[at + 1]
        if marker in LONE_MARKERS:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in FRAMES:
            bits, height, width, num_channels = struct.unpack_from(">BHHB", image, at + 4)
            is_common = marker in COMMON_FRAMES and bits == 8 and num_channels in (1, 3) and width and height
            return _Jpeg(width, height, orientation) if is_common else None
        length = image[at + 2] << 8 | image[at + 3]
        if length < 2 or marker in (0xD9, 0xDA):
            return None
        if marker == 0xE1:
            segment = image[at + 4 : at + 2 + length]
            if segment.startswith(b"Exif\0\0"):
                orientation = _read_orientation(segment[6:])
            elif b"tiff:Orientation" in segment:  # XMP: Pillow looks there where EXIF says nothing
                return None
        at += 2 + length


def _read_orientation(exif: bytes) -> int:
    """The orientation in the first directory of a TIFF header; 1, upright, where there is none. May raise struct.error."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    (at,) = struct.unpack_from(order + "I", exif, 4)
    (num_entries,) = struct.unpack_from(order + "H", exif, at)
    for entry in range(at + 2, at + 2 + 12 * num_entries, 12):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", exif, entry)
        if tag == ORIENTATION and (kind, count) == (3, 1):
            return value if 1 <= value <= 8 else 1
    return 1


def _turn(pixels_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """Upright: EXIF says where the first row and the first column of the stored image belong."""
    if orientation == 1:
        return pixels_HWC
    if orientation in SIDEWAYS:
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels_HWC = pixels_HWC[::-1]
    if orientation in (2, 3, 6, 7):
        pixels_HWC = pixels_HWC[:, ::-1]
    return np.ascontiguousarray(pixels_HWC)


# --- the way that takes everything


def _decode_any(image: bytes) -> np.ndarray:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(image)) as opened:
        return np.array(_flatten(ImageOps.exif_transpose(opened)))


def _flatten(image: Image.Image) -> Image.Image:
    """RGB of an image in any mode."""
    from PIL import Image

    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # convert() would clip 16 bits at 255: all white
        values = np.asarray(image, np.float64)
        low, high = values.min(), max(values.max(), values.min() + 1)
        return Image.fromarray(((values - low) / (high - low) * 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
