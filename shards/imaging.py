"""What a shard takes of an image file: its bytes as they are once they prove readable, or a smaller JPEG of it.

Every image is decoded once here, so that nobody finds a truncated file in the middle of a training run. JPEGs are
decoded at 1/8 of their size, which still reads all of their data.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from shards.record import Unreadable

if TYPE_CHECKING:
    from PIL import Image as PILImage

EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
}
MAX_PIXELS = 100_000_000  # 300 MB decoded; beyond this it is a scan or an attack
QUALITY = 90
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"


def prepare(data: bytes, *, max_side: int | None = None) -> tuple[bytes, str]:
    """(bytes, extension) for the tar; Unreadable with the reason where the image is broken.

    With `max_side`, everything that is not already an upright RGB JPEG of at most that many pixels a side becomes one:
    quality 90, EXIF rotation applied, transparency on white.
    """
    if not data:
        raise Unreadable("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large images; we count pixels ourselves
        try:
            return _prepare(data, max_side)
        except Unreadable:
            raise
        except Exception as error:  # Pillow's plugins raise whatever their parser ran into
            raise Unreadable(f"cannot be decoded ({error or type(error).__name__})") from error


def _prepare(data: bytes, max_side: int | None) -> tuple[bytes, str]:
    image = open_image(data)
    is_jpeg = EXTENSIONS[image.format or ""] == "jpg"
    if is_jpeg and data.rfind(END_OF_IMAGE) < data.rfind(START_OF_SCAN):
        raise Unreadable("truncated: the JPEG has no end")
    if max_side is None or (is_jpeg and is_plain(image, max_side)):
        if is_jpeg:
            image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
        image.load()
        return data, EXTENSIONS[image.format or ""]
    return shrink(image, max_side), "jpg"


def open_image(data: bytes) -> PILImage.Image:
    """The image with its header read and no pixel decoded; Unreadable where we would not decode it."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise Unreadable("not an image") from error
    except Image.DecompressionBombError as error:
        raise Unreadable(f"more than {MAX_PIXELS // 10**6} megapixels") from error
    if image.format not in EXTENSIONS:
        raise Unreadable(f"{image.format} images are not taken; convert it to JPEG, PNG or WebP")
    if image.width * image.height > MAX_PIXELS:
        raise Unreadable(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS // 10**6} megapixels")
    return image


def is_plain(image: PILImage.Image, max_side: int) -> bool:
    """Whether this JPEG needs no work: small enough, RGB, upright."""
    return max(image.size) <= max_side and image.mode == "RGB" and image.getexif().get(ORIENTATION, 1) == 1


def shrink(image: PILImage.Image, max_side: int) -> bytes:
    """A JPEG of at most `max_side` pixels a side."""
    from PIL import Image, ImageOps

    image.draft("RGB", (2 * max_side, 2 * max_side))  # JPEG: decode at a half, quarter or eighth, but never below twice
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):  # 16-bit and float grey: convert() would clip instead of scaling
        upright = stretch_to_8_bit(upright)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    upright = upright.convert("RGB")
    upright.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=None)
    stream = io.BytesIO()
    upright.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def stretch_to_8_bit(image: PILImage.Image) -> PILImage.Image:
    """Grey levels from the image's own darkest to its brightest onto 0…255."""
    low, high = image.getextrema()
    assert isinstance(low, (int, float)) and isinstance(high, (int, float)), "single-band modes only"
    scale = 255.0 / max(high - low, 1e-12)
    return image.convert("F").point(lambda value: value * scale - low * scale).convert("L")
