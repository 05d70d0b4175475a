"""A small retrieval set that is always there: three domains made of real pixels of installed packages, offline.

    shards make sample --out shard_sets/sample
    shards make sample --out shard_sets/tiny --classes 12 --views 4      a few seconds, for tests

glyphs (characters in many typefaces), numbers (handwritten on plates) and places (spots on photos, seen from
elsewhere), all in coloured light, which raw pixels take for content and a trained model learns to ignore. About two
thirds of the classes are for training, the rest is dev, with unlabelled places as distractors. The same bytes on every
run, as long as Pillow, numpy and the three packages stay the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from shards.arguments import count
from shards.key import draw
from shards.place import Made
from shards.record import Record

RECIPE = 1  # count up with every change of the pictures: a set made by the old one is then not taken for the new
SEED = 20240607
EVALUATED = 0.33
NUM_DISTRACTORS = 60
VIEWS = 8


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much of it."""
    parser.add_argument(
        "--classes", type=count, metavar="N", help="only the first N classes of each domain (default: all)"
    )
    parser.set_defaults(recipe=RECIPE)
    parser.add_argument("--views", type=count, metavar="N", help="images a class (default: 8)")


def records(options: argparse.Namespace) -> Iterator[Record]:
    """One record an image; nothing is drawn before it is read."""
    yield from glyph_records(options)
    yield from number_records(options)
    yield from place_records(options)


def glyph_records(options: argparse.Namespace) -> Iterator[Record]:
    """Characters."""
    from shards.sources.sample import glyphs

    for character, group in glyphs.list_characters()[: options.classes]:
        label = glyphs.label_of(character)
        split = split_of("glyphs", label)
        for view in range(options.views or VIEWS):
            source = f"{label}/{view:02d}.{glyphs.EXTENSION}"
            yield Record("glyphs", label, source, drawn("glyphs", source, character), group, split)


def number_records(options: argparse.Namespace) -> Iterator[Record]:
    """00 to 99 in two hands; both hands of a number are in the same split."""
    from shards.sources.sample import numbers

    for label in numbers.list_labels()[: options.classes]:
        number = label.partition("-")[0]
        split = split_of("numbers", number)
        for view in range(options.views or VIEWS):
            source = f"{label}/{view:02d}.{numbers.EXTENSION}"
            yield Record("numbers", label, source, drawn("numbers", source, label, split), number, split)


def place_records(options: argparse.Namespace) -> Iterator[Record]:
    """Spots on photos, and some more as distractors."""
    from shards.sources.sample import places

    classes, rest = places.list_places()
    for place in classes[: options.classes]:
        split = split_of("places", place.label)
        for view in range(options.views or VIEWS):
            source = f"{place.label}/{view:02d}.{places.EXTENSION}"
            yield Record("places", place.label, source, drawn("places", source, *place), place.photo, split)
    for place in rest[:: max(len(rest) // NUM_DISTRACTORS, 1)][: options.classes]:
        source = f"distractors/{place.label}.{places.EXTENSION}"
        yield Record("places", None, source, drawn("places", source, *place), place.photo, "dev_distractor")


def drawn(domain: str, source: str, *arguments: str | int) -> Made:
    """Where the image comes from."""
    return Made("sample", (domain, source, *arguments))


def make_image(domain: str, source: str, *arguments: str | int) -> bytes:
    """Draws an image with a generator of its own, so that it depends on its name and on nothing drawn before."""
    import numpy as np

    from shards.sources.sample import glyphs, numbers, places

    rng = np.random.default_rng([SEED, int(draw((domain, source)) * 2**62)])
    if domain == "glyphs":
        return glyphs.render(str(arguments[0]), rng)
    if domain == "numbers":
        return numbers.render(str(arguments[0]), str(arguments[1]), rng)
    return places.render(places.Place(*arguments), rng)  # type: ignore[arg-type]


def split_of(domain: str, label: str) -> str:
    """The class's own draw decides, so that taking fewer classes moves none."""
    return "dev" if draw((domain, label)) < EVALUATED else "train"
