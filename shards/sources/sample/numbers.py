"""Numbers: a class is a plate with a two-digit number in one handwriting (`37-b`), its images are pictures of it.

The scans of digits are shared out first: none that a training image shows occurs in an evaluation image. The plates are
of as many materials, each a piece of a photo that no other plate has. (Numbers that a new hand wrote in every image were
tried: in three minutes on a CPU a small transformer does not learn to read them.)
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from shards.sources.sample.pixels import load_scans
from shards.sources.sample.places import cut_out, list_places
from shards.sources.sample.view import expose, look, random_quad, save, shine

EXTENSION = "jpg"
SCANS_FOR_EVALUATION = 3  # every third
HANDS = ("a", "b")
WIDTH_PX, HEIGHT_PX, PLATE_PX = 40, 58, 128


@cache
def scans_of(digit: int, split: str) -> np.ndarray:
    """(N, 8, 8) scans of a digit that this split may use."""
    ink, digits = load_scans()
    at = np.flatnonzero(digits == digit)
    is_evaluation = np.arange(len(at)) % SCANS_FOR_EVALUATION == 0
    scans: np.ndarray = ink[at[~is_evaluation if split == "train" else is_evaluation]]
    return scans


def list_labels() -> list[str]:
    """Every number in every hand."""
    return [f"{number:02d}-{hand}" for number in range(100) for hand in HANDS]


@cache
def writing(label: str, place: int, split: str) -> np.ndarray:
    """(8, 8) ink of the digit at this place, the same in all images of the class."""
    number, hand = label.split("-")
    scans = scans_of(int(number[place]), split)
    ink: np.ndarray = scans[np.random.default_rng([int(number), HANDS.index(hand), place]).integers(len(scans))]
    return ink


@cache
def make_plate(label: str, split: str) -> Image.Image:
    """(128, 128) the material, a bleached cell of a photo that no other plate has, with the number written on it."""
    places = list_places()[0]
    material = cut_out(places[HANDS.index(label[-1]) * 100 + int(label[:2])]).resize((PLATE_PX, PLATE_PX))
    ink = Image.new("L", material.size)
    for place in (0, 1):
        scan = Image.fromarray((writing(label, place, split) * 255).astype(np.uint8))
        digit = scan.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)
        ink.paste(255, (PLATE_PX // 2 + (place - 1) * (WIDTH_PX - 4), (PLATE_PX - HEIGHT_PX) // 2), digit)
    ink = ink.point(lambda value: max(0, min(255, 2 * value - 110)))  # thin blur to strokes
    bleached = Image.blend(material, Image.new("RGB", material.size, "white"), 0.4)
    return Image.composite(Image.new("RGB", material.size, (40, 40, 60)), bleached, ink)


def render(label: str, split: str, rng: np.random.Generator) -> bytes:
    """One picture of the plate."""
    middle, side = (PLATE_PX / 2, PLATE_PX / 2), 2 * WIDTH_PX * rng.uniform(0.9, 1.1)
    quad = random_quad(rng, middle, side, turn_degrees=10, shift=0.05, skew=0.05)
    pixels = np.asarray(look(make_plate(label, split), quad), np.float32) / 255
    return save(rng, expose(rng, shine(rng, pixels, lamps=0.68), light=0.2, noise=0.05), blur=0.7, extension=EXTENSION)
