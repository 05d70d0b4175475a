"""An image file as a small array, upright, with transparency on white: fast, and good enough to compare pictures by.

JPEGs are decoded at the smallest of libjpeg's scales that leaves `least_px` a side, which still reads all their data.
Needs simplejpeg and, for everything that is no plain JPEG, Pillow.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from shards.record import Unreadable

if TYPE_CHECKING:
    from PIL import Image as PILImage

JPEG_START = b"\xff\xd8"
ORIENTATION, NUM_ORIENTATIONS = 0x0112, 8  # the EXIF tag, and its values: 1 is upright


@contextmanager
def reading() -> Iterator[None]:
    """Whatever a decoder raises in here becomes Unreadable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata
        try:
            yield
        except Unreadable:
            raise
        except Exception as error:  # Pillow's plugins raise whatever their parser ran into
            raise Unreadable(f"cannot be decoded ({error or type(error).__name__})") from error


def decode(data: bytes, *, least_px: int, is_grey: bool) -> np.ndarray:
    """uint8 of height x width, with a third axis for RGB unless `is_grey`; Unreadable where the image is broken."""
    with reading():
        return _decode(data, least_px, is_grey)


def _decode(data: bytes, least_px: int, is_grey: bool) -> np.ndarray:
    import simplejpeg

    if data.startswith(JPEG_START):
        colorspace = "GRAY" if is_grey else "RGB"
        try:
            pixels = simplejpeg.decode_jpeg(data, colorspace, min_height=least_px, min_width=least_px)
        except ValueError:  # CMYK, bytes before a marker, or truly broken: Pillow knows
            pass
        else:
            return turn(pixels[..., 0] if is_grey else pixels, read_orientation(data))
    image = open_image(data)
    shown = np.asarray(flatten(image).convert("L" if is_grey else "RGB"))
    return turn(shown, int(image.getexif().get(ORIENTATION, 1)))


def read_orientation(data: bytes) -> int:
    """What the EXIF of a JPEG says; 1, upright, where it says nothing."""
    if b"Exif\0\0" not in data[:65536]:
        return 1
    return int(open_image(data).getexif().get(ORIENTATION, 1))


def open_image(data: bytes) -> PILImage.Image:
    """The image with its header read; Pillow refuses what is no image and what would fill the memory."""
    from PIL import Image

    return Image.open(io.BytesIO(data))


def flatten(image: PILImage.Image) -> PILImage.Image:
    """Transparency on white, and 16-bit or float grey levels onto 0…255."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        levels = np.asarray(image, np.float64)
        span = max(float(levels.max() - levels.min()), 1e-12)
        return Image.fromarray(((levels - levels.min()) * (255 / span)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        drawn = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
    return image


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels as their EXIF orientation (1 to 8) says to show them."""
    if not 1 < orientation <= NUM_ORIENTATIONS:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    flip_rows, flip_columns = {
        2: (False, True),
        3: (True, True),
        4: (True, False),
        5: (False, False),
        6: (False, True),
        7: (True, True),
        8: (True, False),
    }[orientation]
    return np.ascontiguousarray(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def reduce(pixels: np.ndarray, side_px: int) -> np.ndarray:
    """A square of `side_px`, whatever the shape was: each new pixel is the mean of what it covers."""
    import cv2

    cv2.setNumThreads(1)  # one process a CPU is there already
    return np.asarray(cv2.resize(pixels, (side_px, side_px), interpolation=cv2.INTER_AREA))


def deviation(grey: np.ndarray) -> float:
    """The standard deviation, three times as fast as numpy's."""
    import cv2

    return float(cv2.meanStdDev(grey)[1][0, 0])
