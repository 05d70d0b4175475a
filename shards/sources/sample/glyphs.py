"""Glyphs: a class is a character, its images are printings of it in 15 typefaces, askew, in any ink on any ground.

Characters that look alike in print (A, Greek Alpha, Cyrillic A; c and C) would be one class with two names, so of each
such family only the first is taken.
"""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw

from shards.sources.sample.pixels import FONTS, load_font
from shards.sources.sample.view import expose, look, paint, random_backdrop, random_quad, save, shine

EXTENSION = "png"
SIZE_PX, CANVAS_PX = 56, 128
MIN_FONTS = 8
MAX_ALIKE = 0.80  # correlation of two glyphs cut out and brought to one size
UNASSIGNED = "\u0378"  # every font draws its "missing" box for it
# group: (first, last code point, most classes to take)
BLOCKS = {
    "latin": (0x41, 0x7A, 48),
    "latin-more": (0xA1, 0x24F, 24),
    "greek": (0x391, 0x3C9, 40),
    "cyrillic": (0x402, 0x45F, 48),
    "armenian": (0x531, 0x586, 30),
    "georgian": (0x10D0, 0x10FA, 30),
    "arrows": (0x2190, 0x21FF, 24),
    "math": (0x2200, 0x22FF, 36),
    "shapes": (0x25A0, 0x25FF, 16),
}


@cache
def list_characters() -> tuple[tuple[str, str], ...]:
    """(character, group) of every class, in code point order within the groups."""
    missing = {font: draw(UNASSIGNED, font).tobytes() for font in FONTS}
    taken: list[tuple[str, str]] = []
    shapes = np.zeros((0, 32 * 32), np.float32)
    for group, (first, last, most) in BLOCKS.items():
        room = most
        for character in map(chr, range(first, last + 1)):
            if room == 0 or unicodedata.category(character)[0] not in "LS" or unicodedata.decomposition(character):
                continue
            fonts = fonts_with(character, missing)
            shape = outline(character) if len(fonts) >= MIN_FONTS else None
            if shape is None or (len(shapes) and (shapes @ shape).max() > MAX_ALIKE):
                continue
            shapes = np.vstack([shapes, shape])
            taken.append((character, group))
            room -= 1
    return tuple(taken)


def fonts_with(character: str, missing: dict[str, bytes] | None = None) -> list[str]:
    """The typefaces that have this character."""
    missing = missing or {font: draw(UNASSIGNED, font).tobytes() for font in FONTS}
    return [font for font in FONTS if draw(character, font).tobytes() != missing[font]]


def outline(character: str) -> np.ndarray | None:
    """The glyph cut out, brought to 32 x 32 and normalised, for comparing shapes; None where it is too small to see."""
    mask = draw(character, FONTS[0])
    box = mask.getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) < SIZE_PX // 3:
        return None
    side = max(box[2] - box[0], box[3] - box[1])
    square = Image.new("L", (side, side))
    square.paste(mask.crop(box), ((side - box[2] + box[0]) // 2, (side - box[3] + box[1]) // 2))
    pixels = np.asarray(square.resize((32, 32), Image.Resampling.BOX), np.float32).ravel()
    pixels -= pixels.mean()
    length = float(np.linalg.norm(pixels))
    return pixels / length if length else None


def draw(character: str, font: str) -> Image.Image:
    """The character, white on black, in the middle of the canvas."""
    canvas = Image.new("L", (CANVAS_PX, CANVAS_PX))
    middle = (CANVAS_PX / 2, CANVAS_PX / 2)
    ImageDraw.Draw(canvas).text(middle, character, font=load_font(font, SIZE_PX), fill=255, anchor="mm")
    return canvas


def label_of(character: str) -> str:
    """`greek-small-letter-omega`."""
    return unicodedata.name(character).lower().replace(" ", "-")


@lru_cache(maxsize=64)
def fonts_of(character: str) -> tuple[str, ...]:
    """See fonts_with."""
    return tuple(fonts_with(character))


def render(character: str, rng: np.random.Generator) -> bytes:
    """One printing."""
    fonts = fonts_of(character)
    mask = draw(character, fonts[rng.integers(len(fonts))])
    box = mask.getbbox()
    assert box, f"{label_of(character)} is blank"
    side = max(box[2] - box[0], box[3] - box[1]) * rng.uniform(1.15, 1.4)
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    mask = look(mask, random_quad(rng, centre, side, turn_degrees=10, shift=0.05, skew=0.05))
    pixels = shine(rng, paint(rng, random_backdrop(rng, texture=rng.uniform(0, 0.25)), mask), lamps=0.6)
    return save(rng, expose(rng, pixels, light=0.1, noise=0.05), blur=0.7, extension=EXTENSION)
