"""What a shard takes of an image file: its bytes as they are once they prove readable, or another image made of it.

    prepare(data)                                           the same bytes, decoded once to see that they are whole
    prepare(data, Look(short_side=256, format="jpeg"))      a JPEG of 256 pixels at its shorter side, if it was larger
    prepare(data, Look(crop=True, margin=0.1), box=box)     the object with a tenth of its size around it

Every image is checked here, so that nobody finds a truncated file in the middle of a training run. container.py reads
what a file says of itself, jpeg.py and pixels.py decode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shards.errors import ShardError, did_you_mean
from shards.images.container import EXTENSIONS, Header, read_header
from shards.images.pixels import check_pixels, draw, encode, pillow_limits, read_facts
from shards.images.resampling import Area, Size
from shards.record import Box, Unreadable

FORMATS = {"keep": "", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
CHECKS = ("pixels", "structure")
QUALITY = 90
MAX_PIXELS = 100_000_000  # 300 MB decoded; beyond this it is a scan or an attack


@dataclass(frozen=True, slots=True)
class Look:
    """How images are to look in the tars.

    With none of the sizes, formats and crops asked for, every image stays byte for byte what it is, whatever its colours
    and rotation. With any, what comes out is upright, opaque (on white), 8-bit RGB or grey, in sRGB, a single picture,
    and without EXIF where it was encoded anew; an image that is all of this already and needs no other change stays
    byte for byte what it is. Nothing is enlarged.
    """

    max_side: int | None = None
    """Pixels of the longer side, at most."""
    short_side: int | None = None
    """Pixels of the shorter side, at most."""
    format: str = "keep"
    """keep, jpeg, png or webp. keep: what need not change stays as it is, the rest becomes JPEG."""
    quality: int = QUALITY
    """Of JPEG and WebP, 1 to 100."""
    crop: bool = False
    """Cut to the record's box; an image without one stays whole."""
    margin: float = 0.0
    """Widens the box on each side by this share of its width or height, as far as the image goes."""
    verify: str = "pixels"
    """pixels: everything is decoded once. structure: only start, header and end are looked at, for a hundredth of the time;
    then damage within the file stays unseen, but for PNG, which has checksums."""
    max_pixels: int = MAX_PIXELS
    """Images with more, by their header, are refused."""

    def __post_init__(self) -> None:
        for name in ("max_side", "short_side", "max_pixels"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ShardError(f"{name.replace('_', '-')} {number} is not a number of pixels; give 1 or more")
        if self.max_side is not None and self.short_side is not None:
            raise ShardError(
                "max-side and short-side are both given; the size of an image follows from one of them: leave one out"
            )
        for name, known in (("format", FORMATS), ("verify", CHECKS)):
            word = getattr(self, name)
            if word not in known:
                raise ShardError(f"unknown {name} {word!r}{did_you_mean(word, known)}; there are {', '.join(known)}")
        if not 1 <= self.quality <= 100:
            raise ShardError(f"quality {self.quality} is not in 1 to 100")
        if not 0 <= self.margin < math.inf:
            raise ShardError(f"margin {self.margin} is not a share of the box; 0.1 widens it by a tenth on each side")
        if self.margin and not self.crop:
            raise ShardError(f"margin {self.margin} widens the box of a crop, and no crop is asked for")

    @property
    def changes_nothing(self) -> bool:
        """Whether every image stays as it is."""
        return self.max_side is None and self.short_side is None and self.format == "keep" and not self.crop


AS_THEY_ARE = Look()


def prepare(data: bytes, look: Look = AS_THEY_ARE, *, box: Box | None = None) -> tuple[bytes, str]:
    """(bytes, extension) for the tar; Unreadable with the reason where the image is broken, too large or none.

    `box` is in pixels of the image as stored, before any EXIF rotation.
    """
    if not data:
        raise Unreadable("the file is empty")
    try:
        header = read_header(data)
        if header.width * header.height > look.max_pixels:
            limit = f"{look.max_pixels / 1e6:g} megapixels"
            raise Unreadable(f"{header.width} x {header.height} pixels, more than {limit}")
        return change(data, header, look, box)
    except Unreadable:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parser ran into
        raise Unreadable(f"cannot be decoded ({error or type(error).__name__})") from error


def change(data: bytes, header: Header, look: Look, box: Box | None) -> tuple[bytes, str]:
    """The same for a file whose header is read: the bytes as they are, or others."""
    whole = (0, 0, header.width, header.height)
    area = place_box(box, look.margin, header) if box and look.crop else whole
    size = fit(area, look)
    may_stay = area == whole and size == whole[2:] and look.format in ("keep", header.kind.lower())
    if look.verify == "structure" and look.changes_nothing:
        return data, EXTENSIONS[header.kind]
    with pillow_limits(look.max_pixels):
        facts = None if look.changes_nothing else read_facts(data, header)
        if facts is None or (may_stay and facts.is_plain):
            if look.verify == "pixels":
                check_pixels(data, header)
            return data, EXTENSIONS[header.kind]
        kind = FORMATS[look.format] or "JPEG"
        return encode(draw(data, header, facts, area, size), kind, look.quality), EXTENSIONS[kind]


def move_box(data: bytes, look: Look, box: Box) -> Box:
    """Where the box of these bytes lies in the image that `prepare` stores of them when it crops nothing.

    To be called for images that `prepare` took; in hundredths of a pixel where the image becomes another one.
    """
    if look.changes_nothing:
        return box
    header = read_header(data)
    whole = header.width, header.height
    size = fit((0, 0, *whole), look)
    with pillow_limits(look.max_pixels):
        orientation = read_facts(data, header).orientation
    if size == whole and orientation == 1:
        return box
    across, down = size[0] / whole[0], size[1] / whole[1]
    left, top, right, bottom = box
    scaled = (left * across, top * down, right * across, bottom * down)
    left, top, right, bottom = (round(edge, 2) for edge in turn_box(scaled, size, orientation))
    return left, top, right, bottom


def turn_box(box: Box, size: Size, orientation: int) -> Box:
    """Upright, from what EXIF says; `size` is the image's before."""
    left, top, right, bottom = box
    if orientation in (2, 3, 7, 8):
        left, right = size[0] - right, size[0] - left
    if orientation in (3, 4, 6, 7):
        top, bottom = size[1] - bottom, size[1] - top
    return (top, left, bottom, right) if orientation >= 5 else (left, top, right, bottom)


def place_box(box: Box, margin: float, header: Header) -> Area:
    """The box with its margin in whole pixels, outwards, as far as it lies in the image."""
    left, top, right, bottom = box
    shown = f"the box ({', '.join(f'{edge:g}' for edge in box)})"
    if not (all(map(math.isfinite, box)) and left < right and top < bottom):
        raise Unreadable(f"{shown} is empty")
    if right <= 0 or bottom <= 0 or left >= header.width or top >= header.height:
        raise Unreadable(f"{shown} lies outside of the {header.width} x {header.height} image")
    across, down = margin * (right - left), margin * (bottom - top)
    return (
        max(math.floor(left - across), 0),
        max(math.floor(top - down), 0),
        min(math.ceil(right + across), header.width),
        min(math.ceil(bottom + down), header.height),
    )


def fit(area: Area, look: Look) -> Size:
    """The size that the look asks for, in the same proportions, to the nearest pixel; never more than there is."""
    size = area[2] - area[0], area[3] - area[1]
    measured, wanted = max(size), look.max_side
    if look.short_side is not None:
        measured, wanted = min(size), look.short_side
    if wanted is None or measured <= wanted:
        return size
    width, height = (max((2 * side * wanted + measured) // (2 * measured), 1) for side in size)
    return width, height
