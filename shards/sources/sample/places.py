"""Places: a class is a place on a photo, its images are views of it from elsewhere, in other light, out of focus.

Places are cells of a grid; a view stays inside its cell, so no pixel belongs to two classes.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from shards.sources.sample.pixels import PHOTOS, load_photo
from shards.sources.sample.view import expose, look, random_quad, save, shine

EXTENSION = "jpg"
CELL_PX = 90
MIN_DETAIL = 0.06  # standard deviation of the cell's grey levels, of 1
MOST_PER_PHOTO = 24


class Place(NamedTuple):
    """A cell of a photo's grid."""

    photo: str
    row: int
    column: int

    @property
    def label(self) -> str:
        """`china-r2-c5`."""
        return f"{self.photo}-r{self.row}-c{self.column}"


@cache
def list_places() -> tuple[tuple[Place, ...], tuple[Place, ...]]:
    """(classes, the rest): of each photo its most detailed cells, and those left over, for distractors."""
    classes: list[Place] = []
    rest: list[Place] = []
    for photo in PHOTOS:
        grey = np.asarray(load_photo(photo).convert("L"), np.float32) / 255
        cells = [
            (
                float(grey[r * CELL_PX : (r + 1) * CELL_PX, c * CELL_PX : (c + 1) * CELL_PX].std()),
                Place(photo, r, c),
            )
            for r in range(grey.shape[0] // CELL_PX)
            for c in range(grey.shape[1] // CELL_PX)
        ]
        detailed = [place for detail, place in sorted(cells, reverse=True) if detail >= MIN_DETAIL]
        classes += sorted(detailed[:MOST_PER_PHOTO])
        rest += sorted(detailed[MOST_PER_PHOTO:])
    return tuple(classes), tuple(rest)


def cut_out(place: Place) -> Image.Image:
    """The cell itself."""
    left, top = place.column * CELL_PX, place.row * CELL_PX
    return load_photo(place.photo).crop((left, top, left + CELL_PX, top + CELL_PX))


def render(place: Place, rng: np.random.Generator) -> bytes:
    """One view."""
    centre = ((place.column + 0.5) * CELL_PX, (place.row + 0.5) * CELL_PX)
    side = CELL_PX * rng.uniform(0.5, 0.68)
    quad = random_quad(rng, centre, side, turn_degrees=12, shift=0.05, skew=0.04)
    pixels = shine(rng, np.asarray(look(load_photo(place.photo), quad), np.float32) / 255, lamps=0.6)
    return save(rng, expose(rng, pixels, light=0.2, noise=0.05), blur=1.0, extension=EXTENSION)
