"""From an image file to other pixels and back: decoding, colours, rotation, encoding. All in memory and by Pillow, but
for the JPEGs that jpeg.py takes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shards.images import jpeg
from shards.images.container import Header
from shards.images.resampling import Area, Size
from shards.record import Unreadable

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from PIL.ImageCms import ImageCmsTransform

ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
PLAIN_MODES = ("RGB", "L")
FULL_16_BIT = 257  # 65535 becomes 255
UNDONE_BY = {6: 8, 8: 6}  # the other orientations undo themselves


class Facts(NamedTuple):
    """What an opened image says beyond its header."""

    orientation: int = 1
    profile: bytes = b""
    """Its colour profile where that is not sRGB."""
    is_plain: bool = True
    """Whether it is upright, in 8-bit RGB or grey, opaque, in sRGB and a single picture."""


@contextmanager
def pillow_limits(max_pixels: int) -> Iterator[None]:
    """Pillow with our limit for frames that are larger than the header says, and without its warnings."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def open_image(data: bytes, header: Header) -> PILImage.Image:
    """The image with no pixel decoded; no format is tried but the one that the header names."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(data), formats=[header.kind])
    except UnidentifiedImageError as error:  # its message is the address of an object
        raise Unreadable(f"cannot be decoded (Pillow cannot make sense of the {header.kind}'s header)") from error


def check_pixels(data: bytes, header: Header) -> None:
    """Decodes everything once (of an animation the first picture), JPEGs at 1/8 of their size."""
    if header.is_common and jpeg.check_scans(data, header):
        return
    open_image(data, header).load()


def read_facts(data: bytes, header: Header) -> Facts:
    """Rotation, colour profile, and whether the image can stay as it is."""
    if is_simple(header) and not header.has_metadata:
        return Facts()
    image = open_image(data, header)
    # Pillow decodes a whole PNG to see whether EXIF follows the pixels; its header has told already
    orientation = 1 if header.kind == "PNG" and not header.has_metadata else read_orientation(image)
    profile = image.info.get("icc_profile") or b""
    if is_srgb(profile):
        profile = b""
    is_single = header.kind == "JPEG" or not getattr(image, "is_animated", False)
    is_opaque = image.mode in PLAIN_MODES and "transparency" not in image.info
    return Facts(orientation, profile, orientation == 1 and not profile and is_single and is_opaque)


def read_orientation(image: PILImage.Image) -> int:
    """1 to 8, of EXIF or XMP."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's parser raises whatever it ran into; a block that nobody can read turns no image
        return 1
    return orientation if orientation in range(1, 9) else 1


def is_srgb(profile: bytes) -> bool:
    """Whether the profile calls itself sRGB, in either of the encodings that ICC has for its name."""
    return b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile


def draw(data: bytes, header: Header, facts: Facts, area: Area, size: Size) -> PILImage.Image:
    """This part of the image, with so many pixels before it is turned: then upright, RGB or grey, opaque, in sRGB."""
    from PIL import Image

    pixels = jpeg.draw(data, header, area, size) if is_simple(header) else None
    image = draw_by_pillow(data, header, facts, area, size) if pixels is None else Image.fromarray(pixels)
    return turn(to_srgb(image, facts.profile), facts.orientation)


def is_simple(header: Header) -> bool:
    """Whether jpeg.py can do it."""
    return header.is_common and header.num_channels in (1, 3)


def draw_by_pillow(data: bytes, header: Header, facts: Facts, area: Area, size: Size) -> PILImage.Image:
    """The same for everything else; colours may still be CMYK or of the image's own profile."""
    from PIL import Image

    image = open_image(data, header)
    factor = 1
    if header.kind == "JPEG":
        if header.is_common:  # CMYK; Pillow would not say that data are missing
            jpeg.check_scans(data, header)
        factor = jpeg.choose_factor(area, size)
        image.draft(None, (max(header.width // factor, 1), max(header.height // factor, 1)))
        factor = 1 if image.width == header.width else factor  # not every kind of JPEG can be scaled
    image.load()
    if header.kind == "TIFF":  # the only format that Pillow turns by itself
        image = turn(image, UNDONE_BY.get(facts.orientation, facts.orientation))
    image = to_opaque_8_bit(image, has_full_scale=header.kind == "PNG")
    if (area[2] - area[0], area[3] - area[1]) == size:
        return image.crop(area)
    left, top, right, bottom = (edge / factor for edge in area)
    return image.resize(size, Image.Resampling.BICUBIC, box=(left, top, right, bottom), reducing_gap=3.0)


def to_opaque_8_bit(image: PILImage.Image, *, has_full_scale: bool) -> PILImage.Image:
    """Grey, RGB or CMYK or the like, with transparency on white.

    16-bit integers keep their scale, as in every viewer: 65535 is white. Floats and 32-bit integers have no white of
    their own, so theirs goes from the image's darkest to its brightest value.
    """
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        grey: np.ndarray = np.asarray(image).astype(np.float32)
        if has_full_scale or image.mode.startswith("I;16"):
            grey /= FULL_16_BIT
        else:
            known = grey[np.isfinite(grey)]
            low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)
            grey = (np.nan_to_num(grey, nan=low, posinf=high, neginf=low) - low) * (255 / max(high - low, 1e-12))
        return Image.fromarray(np.rint(grey).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        clear = image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
        canvas = Image.new("L" if clear.mode == "LA" else "RGB", clear.size, "white")
        canvas.paste(clear, mask=clear.getchannel("A"))
        return canvas
    return image.convert("RGB" if image.mode == "P" else "L") if image.mode in ("P", "1") else image


def to_srgb(image: PILImage.Image, profile: bytes) -> PILImage.Image:
    """RGB or grey; by the colour profile where it is of use, else by Pillow's plain formulas."""
    from PIL import ImageCms

    transform = make_transform(profile, image.mode) if profile else None
    if transform:
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None, "not in place"
        return converted.convert("L") if image.mode == "L" else converted
    return image if image.mode in PLAIN_MODES else image.convert("RGB")


@lru_cache(maxsize=8)
def make_transform(profile: bytes, mode: str) -> ImageCmsTransform | None:
    """From this profile to sRGB; None where it is broken or is of other colours than the image."""
    from PIL import ImageCms

    try:
        return ImageCms.buildTransform(io.BytesIO(profile), ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):  # other programs show such an image as if it had no profile
        return None


def turn(image: PILImage.Image, orientation: int) -> PILImage.Image:
    """Upright, from what EXIF says."""
    from PIL import Image

    if orientation == 1:
        return image
    turned = Image.Transpose
    how = {
        2: turned.FLIP_LEFT_RIGHT,
        3: turned.ROTATE_180,
        4: turned.FLIP_TOP_BOTTOM,
        5: turned.TRANSPOSE,
        6: turned.ROTATE_270,
        7: turned.TRANSVERSE,
        8: turned.ROTATE_90,
    }
    return image.transpose(how[orientation])


def encode(image: PILImage.Image, kind: str, quality: int) -> bytes:
    """An image file with nothing in it but the pixels; `kind` is JPEG, PNG or WEBP."""
    image.info.clear()  # Pillow would write comments and profiles that it finds there
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": quality, "subsampling": "4:2:0"},
        "WEBP": {"quality": quality},
        "PNG": {},
    }
    stream = io.BytesIO()
    try:
        image.save(stream, kind, **options[kind])
    except (ValueError, OSError) as error:
        raise Unreadable(f"cannot be written as {kind}, {image.width} x {image.height} pixels ({error})") from error
    return stream.getvalue()
