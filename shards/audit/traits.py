"""What one image file tells of itself: its content's hash, its picture's hash, its size, and how it was encoded.

Of each image one TRAITS row of 45 bytes is kept and nothing else, so a million images take 45 MB.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator

import numpy as np

from shards.audit import phash, pixels
from shards.record import Unreadable

FORMATS = ("broken", "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
BROKEN, JPEG = 0, 1
HAS_EXIF, IS_GREY, HAS_ALPHA = 1, 2, 4
TRAITS = np.dtype(
    [
        ("content", "<u8", (2,)),  # blake2b of the bytes, 128 bits
        ("phash", "<u8"),
        ("width", "<u4"),  # as stored, before any EXIF rotation
        ("height", "<u4"),
        ("bytes", "<u4"),
        ("deviation", "<f4"),  # standard deviation of the grey levels, 0 to 255
        ("format", "u1"),  # position in FORMATS
        ("flags", "u1"),
        ("quality", "u1"),  # of a JPEG, 1 to 100; 0: not a JPEG, or tables of its own
        ("encoder", "<u2"),  # of a JPEG: equal for equal tables and subsampling
    ]
)
LEAST_PX = 2 * phash.SIDE_PX
DQT, EXIF_SEGMENT, START_OF_SCAN = 0xDB, 0xE1, 0xDA
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length
SUM_AT_50 = 3688
"""Of the luminance table of the JPEG standard's Annex K, which encoders scale by their quality."""


def read_traits(images: Iterable[bytes]) -> np.ndarray:
    """One TRAITS row an image; broken ones have the format BROKEN. One image is in memory at a time."""
    pairs = [read_one(data) for data in images]
    rows = np.concatenate([np.empty(0, TRAITS), *(row for row, _ in pairs)])
    if pairs:
        rows["phash"] = phash.hash_pictures(np.stack([small for _, small in pairs]))
    return rows


def read_one(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(the image's row without its picture's hash, the picture as hash_pictures takes it)."""
    row = np.zeros(1, TRAITS)
    row["content"] = np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), "<u8")
    row["bytes"] = len(data)
    try:
        with pixels.reading():
            read_header(data, row[0])
        grey = pixels.decode(data, least_px=LEAST_PX, is_grey=True)
    except Unreadable:
        row["format"] = BROKEN
        return row, np.zeros((phash.SIDE_PX, phash.SIDE_PX), np.uint8)
    row["deviation"] = pixels.deviation(grey)
    return row, pixels.reduce(grey, phash.SIDE_PX)


def read_header(data: bytes, row: np.void) -> None:
    """Fills in what stands before the pixels."""
    if data.startswith(pixels.JPEG_START):
        read_jpeg(data, row)
    if not row["width"]:  # no JPEG, or one that we cannot follow
        image = pixels.open_image(data)
        row["width"], row["height"] = image.size
        row["format"] = FORMATS.index({"MPO": "JPEG"}.get(image.format or "", image.format or ""))
        is_grey = image.mode in ("1", "L", "LA") or image.mode.startswith(("I", "F"))
        has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        row["flags"] = HAS_EXIF * ("exif" in image.info) | IS_GREY * is_grey | HAS_ALPHA * has_alpha


def read_jpeg(data: bytes, row: np.void) -> None:
    """Size, tables and EXIF from the segments before the first scan."""
    row["format"] = JPEG
    tables = hashlib.blake2b(digest_size=2)
    for marker, content in jpeg_segments(data):
        if marker == DQT:
            tables.update(content)
            row["quality"] = row["quality"] or guess_quality(content)
        elif marker == EXIF_SEGMENT and content.startswith(b"Exif\0"):
            row["flags"] |= HAS_EXIF
        elif marker in FRAMES and len(content) >= 6:
            row["height"], row["width"] = struct.unpack_from(">HH", content, 1)
            row["flags"] |= IS_GREY * (content[5] == 1)
            tables.update(bytes((marker, *content[7::3])))  # baseline or progressive, subsampling
    row["encoder"] = int.from_bytes(tables.digest(), "little")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, content) up to the first scan; ends where the bytes make no sense."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == START_OF_SCAN:
            return
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + length


def guess_quality(tables: bytes) -> int:
    """The quality (1 to 100) at which libjpeg writes a luminance table with this sum; 0 where it is no 8-bit table.

    Too high below 25, where the largest steps stop at 255.
    """
    if len(tables) < 65 or tables[0] != 0:
        return 0
    scale = 100 * sum(tables[1:65]) / SUM_AT_50
    quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
    return min(max(round(quality), 1), 100)
