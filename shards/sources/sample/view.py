"""One view of something: the camera (homography), the light (gain, colour), the lens (blur), the sensor (noise).

Everything random comes from the numpy Generator that is handed in, so a view depends on its seed and nothing else.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from shards.sources.sample.pixels import PHOTOS, load_photo

SIDE_PX = 64
TINT = 0.08
Point = tuple[float, float]


def random_quad(
    rng: np.random.Generator, centre: Point, side: float, *, turn_degrees: float, shift: float, skew: float
) -> list[Point]:
    """Corners of a turned, moved and skewed square around the centre; shift and skew in parts of its side."""
    angle = np.deg2rad(rng.uniform(-turn_degrees, turn_degrees))
    middle = np.array(centre) + rng.uniform(-shift, shift, 2) * side
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    corners = corners + rng.uniform(-skew, skew, (4, 2))
    return [(float(x), float(y)) for x, y in middle + corners @ turn.T * side]


def look(image: Image.Image, quad: Sequence[Point]) -> Image.Image:
    """What a camera sees whose picture's corners fall on these four points of the image."""
    target = [(0, 0), (SIDE_PX, 0), (SIDE_PX, SIDE_PX), (0, SIDE_PX)]
    rows, values = [], []
    for (u, v), (x, y) in zip(target, quad, strict=True):
        rows += [[u, v, 1, 0, 0, 0, -u * x, -v * x], [0, 0, 0, u, v, 1, -u * y, -v * y]]
        values += [x, y]
    coefficients = np.linalg.solve(np.array(rows, float), np.array(values, float))
    return image.transform(
        (SIDE_PX, SIDE_PX),
        Image.Transform.PERSPECTIVE,
        tuple(coefficients),
        resample=Image.Resampling.BICUBIC,
    )


def random_backdrop(rng: np.random.Generator, texture: float) -> np.ndarray:
    """A (64, 64, 3) bright surface: a piece of a photo with its contrast turned down to `texture`."""
    photo = load_photo(list(PHOTOS)[rng.integers(len(PHOTOS))])
    side = rng.uniform(48, 160)
    left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    piece = photo.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    pixels = np.asarray(piece, np.float32) / 255
    backdrop: np.ndarray = (
        rng.uniform(0.6, 0.8) + rng.uniform(-TINT, TINT, 3) + texture * (pixels - pixels.mean((0, 1)))
    )
    return backdrop


def paint(rng: np.random.Generator, backdrop: np.ndarray, mask: Image.Image) -> np.ndarray:
    """The backdrop with dark ink where the mask is white."""
    cover = np.asarray(mask, np.float32)[..., None] / 255
    painted: np.ndarray = backdrop - cover * (rng.uniform(0.4, 0.6) + rng.uniform(-TINT, TINT, 3))
    return painted


def shine(rng: np.random.Generator, pixels: np.ndarray, lamps: float) -> np.ndarray:
    """Lit by coloured lamps from the sides: a smooth field, up to `lamps` brighter or darker by channel."""
    t = np.linspace(0, 1, SIDE_PX)
    basis = np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])  # a quadratic Bezier surface over 3 x 3 points
    field = np.einsum("iu,jv,ijc->uvc", basis, basis, rng.uniform(-lamps, lamps, (3, 3, 3)))
    lit: np.ndarray = pixels + field
    return lit


def expose(rng: np.random.Generator, pixels: np.ndarray, *, light: float, noise: float) -> np.ndarray:
    """Other gamma, contrast and brightness, in parts of `light`; then sensor noise."""
    pixels = np.clip(pixels, 0, 1) ** np.exp(rng.uniform(-light, light))
    pixels = (pixels - 0.5) * (1 + light * rng.uniform(-0.6, 0.6)) + 0.5 + light * rng.uniform(-0.3, 0.3)
    return pixels + rng.normal(0, noise * rng.random(), pixels.shape)


def save(rng: np.random.Generator, pixels: np.ndarray, *, blur: float, extension: str) -> bytes:
    """The file: slightly out of focus, PNG or a JPEG of random quality."""
    image = Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, blur)))
    stream = io.BytesIO()
    if extension == "png":
        image.save(stream, "PNG")
    else:
        image.save(stream, "JPEG", quality=int(rng.integers(60, 95)))
    return stream.getvalue()
