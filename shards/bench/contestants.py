"""Who writes the photos, each from the same files into the same kind of tar: a photo and its json a sample.

Every function takes the case and writes into its folder, in a process that turns.py keeps for it. Other tools are
imported here and only here, when it is their turn: webdataset imports torch.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import json
import shutil
import subprocess
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.imaging import Look
from shards.layout import Sizes
from shards.maker import Order, make_set
from shards.rules import Rules
from shards.sources import folder
from shards.ustar import pack_header, padding

SHORT_SIDE = 256
QUALITY = 90
SHARD_BYTES = 256_000_000


@dataclass(frozen=True, slots=True)
class Case:
    """What is to be written, and where."""

    photos: Path
    """Holds the photos and, beside each, its json."""
    names: tuple[str, ...]
    """Of the photos, below it."""
    out: Path
    """An empty folder; what is in it afterwards is removed."""

    def read(self, name: str) -> bytes:
        """A photo's bytes."""
        with open(f"{self.photos}/{name}", "rb", buffering=0) as file:
            return file.read()

    def meta(self, name: str) -> dict[str, Any]:
        """What the sample's json says."""
        label = name.partition("/")[0]
        meta = {"label": label, "domain": "photos", "group": None, "split": "train", "role": "train", "source": name}
        return {**meta, "extra": {}}


@dataclass(frozen=True, slots=True)
class Make:
    """`shards make folder` on the photos, from listing them to the finished set."""

    verify: str = "structure"
    workers: int = 1
    short_side: int | None = None

    def __call__(self, case: Case) -> dict[str, tuple[float, float]]:
        """Gives (seconds, CPU seconds of this process) of the writing alone, from the finished plan to the last sidecar."""
        order = Order(
            out=case.out / "set",
            config={"source": "bench"},
            given={},
            rules=Rules(train_only=True),
            sizes=Sizes(shard_bytes(case, self.workers)),
            look=Look(verify=self.verify, short_side=self.short_side, quality=QUALITY),
            workers=self.workers,
        )
        moments: list[tuple[float, float]] = []

        def watch(total: int, images: int, num_bytes: int) -> None:
            if images in (0, total):
                moments.append((time.perf_counter(), time.process_time()))

        options = argparse.Namespace(root=case.photos, out=order.out, domain="photos", levels="class")
        make_set(order, folder.records(options), watch)
        return {"writing": (moments[-1][0] - moments[0][0], moments[-1][1] - moments[0][1])}


def shard_bytes(case: Case, workers: int) -> int:
    """As always with one worker; with more, so small that each gets four shards."""
    if workers == 1:
        return SHARD_BYTES
    total = sum((case.photos / name).stat().st_size for name in case.names)
    return min(SHARD_BYTES, max(total // (4 * workers), 10_000))


def shard_writer(case: Case) -> None:
    """webdataset's, as its documentation uses it."""
    with open_shard_writer(case) as sink:
        for name in case.names:
            key, _, extension = name.rpartition(".")
            sink.write({"__key__": key, extension: case.read(name), "json": case.meta(name)})


def shard_writer_resizing(case: Case) -> None:
    """The same, with every photo made smaller by Pillow."""
    with open_shard_writer(case) as sink:
        for name in case.names:
            sink.write({"__key__": name.rpartition(".")[0], "jpg": shrink(case.read(name)), "json": case.meta(name)})


def open_shard_writer(case: Case) -> Any:
    """webdataset is one of the others here, so it is looked up by name: this package does not depend on it."""
    webdataset = importlib.import_module("webdataset")
    return webdataset.ShardWriter(f"{case.out}/%06d.tar", maxsize=SHARD_BYTES, verbose=0)


def shrink(photo: bytes) -> bytes:
    """To a short side of 256 pixels by Pillow's bicubic, as a JPEG."""
    from PIL import Image

    image = Image.open(io.BytesIO(photo)).convert("RGB")
    scale = SHORT_SIDE / min(image.size)
    stream = io.BytesIO()
    if scale < 1:
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
    image.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def python_tarfile(case: Case) -> None:
    """Python's tarfile, with times of 0, which spares every member a second header."""
    with tarfile.open(case.out / "a.tar", "w") as tar:
        for name in case.names:
            meta = json.dumps(case.meta(name)).encode()
            for member, data in ((name, case.read(name)), (f"{name.rpartition('.')[0]}.json", meta)):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def tar_all(case: Case) -> None:
    """The tar command on the photos and the jsons that lie beside them."""
    run_tar(case, [line for name in case.names for line in (name, f"{name.rpartition('.')[0]}.json")])


def tar_photos(case: Case) -> None:
    """The tar command on the photos alone: half as many files."""
    run_tar(case, list(case.names))


def run_tar(case: Case, names: list[str]) -> None:
    """The tar command, with the names on its stdin."""
    command = ["tar", "-cf", str(case.out / "a.tar"), "-C", str(case.photos), "--null", "-T", "-"]
    subprocess.run(command, input="\0".join(names).encode(), check=True)


def copy_files(case: Case) -> None:
    """shutil.copyfile, where the kernel copies and no byte is looked at."""
    for number, name in enumerate(case.names):
        shutil.copyfile(case.photos / name, case.out / str(number))


def bytes_alone(case: Case) -> None:
    """Photos read, put into one file behind a block each, and summed: what no writer of tars with sums can do without."""
    digest = hashlib.sha256()
    with (case.out / "a.tar").open("wb") as file:
        for name in case.names:
            photo = case.read(name)
            for part in (pack_header("", name, len(photo)), photo, bytes(padding(len(photo)))):
                digest.update(part)
                file.write(part)


def sums_alone(case: Case) -> dict[str, tuple[float, float]]:
    """sha256 of every photo, counted without the reading."""
    seconds = cpu_s = 0.0
    for name in case.names:
        photo = case.read(name)
        started, before = time.perf_counter(), time.process_time()
        hashlib.sha256(photo).digest()
        seconds, cpu_s = seconds + time.perf_counter() - started, cpu_s + time.process_time() - before
    return {"sums": (seconds, cpu_s)}


def decode_and_encode(case: Case) -> None:
    """JPEGs decoded at half their size and pixels of the final size encoded, with nothing in between."""
    import cv2
    import simplejpeg

    small = None
    for name in case.names:
        pixels = simplejpeg.decode_jpeg(case.read(name), "RGB", min_height=SHORT_SIDE, min_width=SHORT_SIDE)
        if small is None:
            scale = SHORT_SIDE / min(pixels.shape[:2])
            small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        simplejpeg.encode_jpeg(small, quality=QUALITY, colorsubsampling="420")
