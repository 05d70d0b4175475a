"""Photos of about 155 kB, drawn from those that installed packages bring along, or somebody's own.

A window of a sample photo is enlarged to 0.65 megapixels and given some grain, which makes it as large as a camera's
JPEG of that size is. Beside each photo lies its json, for those that take files only.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from shards.bench.contestants import describe
from shards.errors import ShardError
from shards.inputs.listing import is_image, walk_files
from shards.sources.sample.pixels import load_photo

SAMPLES = ("china", "flower", "cat", "coffee", "hubble", "motorcycle", "rocket")
SIZE = (930, 700)
QUALITY = 92
GRAIN = 1.4  # standard deviation, of 255
DRAWN = 140  # photos with other pixels; more differ in a comment only
NUM_CLASSES = 20


def write_photos(folder: Path, count: int, given: Path | None) -> list[str]:
    """Fills the folder with photos and a json beside each; gives the photos' paths below it, in the order of a listing."""
    sources: Iterator[tuple[str, Path | bytes]] = link_photos(given, count) if given else draw_photos(count)
    names = []
    for number, (suffix, photo) in enumerate(sources):
        name = f"class{number % NUM_CLASSES:02d}/{number:06d}{suffix}"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        put(photo, path)
        path.with_suffix(".json").write_text(json.dumps(describe(name), separators=(",", ":")))
        names.append(name)
    return sorted(names)


def put(photo: Path | bytes, path: Path) -> None:
    """The bytes, or a second name for the file; a copy where that cannot be."""
    if isinstance(photo, bytes):
        path.write_bytes(photo)
        return
    try:
        os.link(photo, path)
    except OSError:
        shutil.copyfile(photo, path)


def link_photos(given: Path, count: int) -> Iterator[tuple[str, Path | bytes]]:
    """(suffix, file) of the first images below a folder."""
    if not given.is_dir():
        raise ShardError(f"{given}: {'not a folder' if given.exists() else 'no such folder'}")
    found = [Path(entry.place) for entry in islice(walk_files(given, is_image), count)]
    if len(found) < NUM_CLASSES:
        raise ShardError(f"{given}: {len(found)} images in it or below; at least {NUM_CLASSES} are needed")
    return ((path.suffix, path) for path in found)


def draw_photos(count: int) -> Iterator[tuple[str, Path | bytes]]:
    """(suffix, JPEG) of each."""
    rng = np.random.default_rng(0)
    drawn = [draw_photo(rng, SAMPLES[number % len(SAMPLES)]) for number in range(min(count, DRAWN))]
    for number in range(count):
        yield ".jpg", with_comment(drawn[number % len(drawn)], b"%08d" % number)


def draw_photo(rng: np.random.Generator, name: str) -> bytes:
    """A window of between half and all of this photo."""
    from PIL import Image

    photo = load_photo(name)
    width, height = (side * rng.uniform(0.7, 1) for side in photo.size)
    left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    large = photo.resize(SIZE, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    grain = rng.normal(0, GRAIN, (SIZE[1], SIZE[0], 1))
    pixels = np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def with_comment(jpeg: bytes, comment: bytes) -> bytes:
    """The same image in another file."""
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]
