"""webdataset's ShardWriter, as its documentation uses it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
from typing import Any

from shards.bench.contestants import QUALITY, SHARD_BYTES, SHORT_SIDE, Case, describe


def is_there() -> bool:
    """Whether webdataset is installed; looks, and imports nothing."""
    return importlib.util.find_spec("webdataset") is not None


def write(case: Case) -> None:
    """The photos as they are."""
    with open_writer(case) as sink:
        for name in case.names:
            key, _, extension = name.rpartition(".")
            sink.write({"__key__": key, extension: case.read(name), "json": describe(name)})


def write_and_sum(case: Case) -> None:
    """The same, and then the sha256 of its tars: the work that `shards make` does."""
    write(case)
    for path in case.out.glob("*.tar"):
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")


def write_smaller(case: Case) -> None:
    """Every photo made smaller by Pillow."""
    with open_writer(case) as sink:
        for name in case.names:
            sink.write({"__key__": name.rpartition(".")[0], "jpg": shrink(case.read(name)), "json": describe(name)})


def open_writer(case: Case) -> Any:
    """webdataset imports torch, and this package depends on neither: it is looked up by name when it is its turn."""
    webdataset = importlib.import_module("webdataset")
    return webdataset.ShardWriter(f"{case.out}/%06d.tar", maxsize=SHARD_BYTES, verbose=0)


def shrink(photo: bytes) -> bytes:
    """To a short side of 256 pixels by Pillow's bicubic, as a JPEG."""
    from PIL import Image

    image = Image.open(io.BytesIO(photo)).convert("RGB")
    scale = SHORT_SIDE / min(image.size)
    if scale < 1:
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()
