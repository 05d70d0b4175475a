"""What an image file says of itself before anything is decoded: its kind, its size, and whether it is all there.

This is plain byte reading, so that a truncated file or a decompression bomb costs microseconds. Only TIFF is left to
Pillow: its header may lie anywhere in the file.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import NamedTuple

from shards.record import Unreadable

EXTENSIONS = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
}
"""By the name of the format in Pillow; no other format is taken."""
MAX_SCANS = 100  # of a progressive JPEG; usual are 10, and each may cost as much as decoding the whole image
JPEG_END, PNG_START = b"\xff\xd9", b"\x89PNG\r\n\x1a\n"
SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
LONE_MARKERS = frozenset((0x00, 0x01, *range(0xD0, 0xD9)))
BMP_RAW = (0, 3)  # values of its compression field where a row's length follows from the width


class Header(NamedTuple):
    """The beginning of an image file."""

    kind: str
    """A key of EXTENSIONS."""
    width: int
    """As stored, before any EXIF rotation."""
    height: int
    num_channels: int = 0
    """JPEG: 1 grey, 3 colour, 4 CMYK."""
    is_common: bool = False
    """JPEG: 8 bits and Huffman coded, as nearly all are."""
    has_metadata: bool = False
    """JPEG and PNG: whether EXIF, XMP or (JPEG) a colour profile may ask for more than decoding."""
    data_at: int = 0
    """JPEG: where the first scan begins."""


def read_header(data: bytes) -> Header:
    """The header of a file that is whole as far as its container tells; Unreadable where it is not or is not taken."""
    read = find_reader(data)
    if read is None:
        raise Unreadable(name_format(data))
    try:
        header = read(data)
    except (IndexError, struct.error) as error:
        raise Unreadable("truncated: the file ends within its header") from error
    if header.width < 1 or header.height < 1:
        raise Unreadable(f"cannot be decoded ({header.width} x {header.height} pixels)")
    return header


def find_reader(data: bytes) -> Callable[[bytes], Header] | None:
    """The function that reads files which begin like this."""
    if data.startswith(b"\xff\xd8"):
        return read_jpeg
    if data.startswith(PNG_START):
        return read_png
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return read_webp
    if data.startswith((b"GIF87a", b"GIF89a")):
        return read_gif
    if data.startswith(b"BM"):
        return read_bmp
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return read_tiff
    return None


def name_format(data: bytes) -> str:
    """Why a file of another kind is refused: with its format where anybody knows it."""
    from PIL import Image

    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1"):
        name = "HEIC"  # unknown to Pillow, as is JPEG XL
    elif data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        name = "JPEG XL"
    else:
        try:
            with warnings.catch_warnings(action="ignore"):
                name = Image.open(io.BytesIO(data)).format or ""
        except Exception:  # UnidentifiedImageError, or whatever a parser ran into: not an image to anybody
            return "not an image"
    return f"{name} images are not taken; convert it to JPEG, PNG or WebP"


def read_jpeg(data: bytes) -> Header:
    """Marker segments up to the first scan, and an end somewhere after it.

    The data of a scan hold no marker but restarts, so an end found there is the image's own (or that of a further image
    in the file, which comes after it); the end of a thumbnail lies before. Bytes after the end are allowed.
    """
    width = height = num_channels = 0
    is_common = has_metadata = is_progressive = False
    at = 2
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            raise Unreadable("truncated: the file ends within its header")
        marker = data[at + 1]
        if marker == 0xFF or marker in LONE_MARKERS:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            raise Unreadable("cannot be decoded (the JPEG holds no image)")
        length = data[at + 2] << 8 | data[at + 3]
        if marker == 0xDA:
            break
        if marker in SOF_MARKERS:
            bits, height, width, num_channels = struct.unpack_from(">BHHB", data, at + 4)
            is_common = marker <= 0xC2 and bits == 8
            is_progressive = marker == 0xC2
        elif marker in (0xE1, 0xE2):
            has_metadata |= data.startswith((b"Exif\0", b"http://ns.adobe.com/xap/", b"ICC_PROFILE\0"), at + 4)
        at += 2 + max(length, 2)
    if data.rfind(JPEG_END, at) < 0:
        raise Unreadable("truncated: the JPEG has no end")
    if is_progressive and data.count(b"\xff\xda", at) > MAX_SCANS:
        raise Unreadable(f"more than {MAX_SCANS} scans")
    return Header("JPEG", width, height, num_channels, is_common, has_metadata, at)


def read_png(data: bytes) -> Header:
    """All chunks to the end, with their checksums (which Pillow leaves out where it matters, in the pixel data)."""
    width, height = struct.unpack_from(">II", data, 16)
    has_metadata = False
    view = memoryview(data)
    at = len(PNG_START)
    while True:
        length, name = struct.unpack_from(">I4s", data, at) if at + 8 <= len(data) else (0, b"")
        end = at + 8 + length
        if not name or end + 4 > len(data):
            raise Unreadable("truncated: the PNG has no end")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise Unreadable(f"damaged: a chunk of the PNG at byte {at} does not match its checksum")
        if name == b"IEND":
            return Header("PNG", width, height, has_metadata=has_metadata)
        is_text = name in (b"tEXt", b"zTXt", b"iTXt")
        has_metadata |= name == b"eXIf" or (is_text and data.startswith((b"Raw profile", b"XML:com.adobe"), at + 8))
        at = end + 4


def read_webp(data: bytes) -> Header:
    """The length that the container states, and the size of its canvas."""
    if 8 + int.from_bytes(data[4:8], "little") > len(data):
        raise Unreadable("truncated: the WebP is shorter than it says")
    kind = data[12:16]
    if kind == b"VP8X":  # with an alpha channel, metadata or animation
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    elif kind == b"VP8L":  # lossless: 14 bits each after the signature
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return Header("WEBP", width, height)


def read_gif(data: bytes) -> Header:
    """The size of its canvas; the last byte of a whole GIF is a semicolon."""
    width, height = struct.unpack_from("<HH", data, 6)
    if not data.rstrip(b"\0").endswith(b";"):
        raise Unreadable("truncated: the GIF has no end")
    return Header("GIF", width, height)


def read_bmp(data: bytes) -> Header:
    """The size, and for uncompressed pixels whether all of their rows are there: its own length field is often wrong."""
    pixels_at, header_bytes = struct.unpack_from("<II", data, 10)
    if header_bytes == 12:  # OS/2
        width, height, _, depth = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, depth, compression = struct.unpack_from("<iiHHI", data, 18)
        height = abs(height)  # negative: rows from top to bottom
    if compression in BMP_RAW and pixels_at + (width * depth + 31) // 32 * 4 * height > len(data):
        raise Unreadable("truncated: the BMP is shorter than its rows")
    return Header("BMP", width, height)


def read_tiff(data: bytes) -> Header:
    """The size of the first page, and whether all of its strips or tiles are there."""
    from PIL import TiffImagePlugin

    with warnings.catch_warnings(action="ignore"):
        tags = TiffImagePlugin.TiffImageFile(io.BytesIO(data)).tag_v2
    for starts, sizes in ((273, 279), (324, 325)):  # strips, tiles
        pieces = zip(tags.get(starts, ()), tags.get(sizes, ()), strict=False)
        if any(start + size > len(data) for start, size in pieces):
            raise Unreadable("truncated: the TIFF is shorter than it says")
    return Header("TIFF", int(tags[256]), int(tags[257]))
