"""The images that every contestant reads: as they are and made smaller, as a shard set and as files in class folders.

Drawn from photos that installed packages bring along (a window of one, enlarged to 0.65 megapixels with some grain,
which makes the JPEG as large as a camera's), or taken from a set of the user's.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrieval_train.data.reader import Reader
from shards.manifest import Manifest, ShardError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZE = (930, 700)
QUALITY = 92
GRAIN = 1.4  # standard deviation, of 255
NUM_CLASSES = 20
NUM_SHARDS = 8  # so that several workers have some each
CODE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Images:
    """One kind of them."""

    title: str
    shards_root: Path
    set: str
    files: Path
    count: int
    mean_bytes: int


def make_images(scratch: Path, *, given: Manifest | None, count: int, short_px: int) -> list[Images]:
    """As they are, and with a short side of `short_px`. Raises ShardError where no set can be made of them."""
    full, small = scratch / "files" / "full", scratch / "files" / "small"
    write_files(full, from_set(given, count) if given else draw_photos(count))
    make_set(full, scratch / "sets" / "full")
    make_set(full, scratch / "sets" / "small", "--short-side", str(short_px))
    write_files(small, from_set(Manifest.load(scratch / "sets" / "small"), count))
    titles = {full: "full size", small: f"{short_px} px"}
    return [describe(title, scratch / "sets", files) for files, title in titles.items()]


def describe(title: str, shards_root: Path, files: Path) -> Images:
    sizes = [path.stat().st_size for path in files.rglob("*") if path.is_file()]
    return Images(title, shards_root, files.name, files, len(sizes), round(np.mean(sizes)))


def write_files(folder: Path, images: Iterator[tuple[str, bytes]]) -> None:
    """One file an image, in class folders."""
    for number, (label, image) in enumerate(images):
        path = folder / label / f"{number:06d}{extension_of(image)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)


def extension_of(image: bytes) -> str:
    """By its first bytes."""
    if image.startswith(b"\x89PNG"):
        return ".png"
    return ".webp" if image[8:12] == b"WEBP" else ".jpg"


def from_set(manifest: Manifest, count: int) -> Iterator[tuple[str, bytes]]:
    """(class folder, image) of so many training samples, evenly spread."""
    reader = Reader(manifest, manifest.select("train"))
    for number in np.unique(np.linspace(0, len(reader) - 1, count).astype(int)):
        yield f"class{reader.label(int(number)):06d}", reader.read(int(number)).image


def make_set(files: Path, out: Path, *options: str) -> None:
    """`shards make folder`; training samples only, in a few shards."""
    count = sum(path.is_file() for path in files.rglob("*"))
    command = [sys.executable, "-m", "shards", "make", "folder", str(files), "--out", str(out), "--train-only"]
    command += ["--min-images", "1", "--verify", "structure", "--domain", "photos"]
    command += ["--shard-samples", str(-(-count // NUM_SHARDS)), *options]
    done = subprocess.run(command, cwd=CODE, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ShardError(f"no set of the benchmark's images: {done.stderr.strip() or done.stdout.strip()}")


def draw_photos(count: int) -> Iterator[tuple[str, bytes]]:
    """(class folder, JPEG) of each."""
    rng = np.random.default_rng(0)
    photos = load_photos()
    for number in range(count):
        yield f"class{number % NUM_CLASSES:06d}", draw_photo(rng, photos[number % len(photos)])


def load_photos() -> list[NDArray[np.uint8]]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    some = [data.chelsea(), data.coffee(), data.rocket(), data.astronaut(), data.hubble_deep_field()]
    return [*load_sample_images().images, *some]


def draw_photo(rng: np.random.Generator, photo_HWC: NDArray[np.uint8]) -> bytes:
    """A window of between half and all of the photo."""
    from PIL import Image

    height, width = (side * rng.uniform(0.7, 1) for side in photo_HWC.shape[:2])
    top, left = rng.uniform(0, photo_HWC.shape[0] - height), rng.uniform(0, photo_HWC.shape[1] - width)
    box = (left, top, left + width, top + height)
    large = Image.fromarray(photo_HWC).resize(SIZE, Image.Resampling.BICUBIC, box=box)
    grain_HW1 = rng.normal(0, GRAIN, (SIZE[1], SIZE[0], 1))
    pixels_HWC = np.clip(np.asarray(large) + grain_HW1, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()
