"""The tar command, Python's tarfile, and what nobody can do without: reading, summing, writing, decoding, encoding."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import time

from shards.bench.contestants import QUALITY, SHORT_SIDE, Case, describe
from shards.ustar import pack_header, padding


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


def python_tarfile(case: Case) -> None:
    """With times of 0, which spares every member a second header."""
    with tarfile.open(case.out / "a.tar", "w") as tar:
        for name in case.names:
            meta = json.dumps(describe(name)).encode()
            for member, data in ((name, case.read(name)), (f"{name.rpartition('.')[0]}.json", meta)):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def copy_files(case: Case) -> None:
    """The kernel copies, and no byte is looked at."""
    for number, name in enumerate(case.names):
        shutil.copyfile(case.photos / name, case.out / str(number))


def read_sum_write(case: Case) -> None:
    """Photos read, summed, and put into one file behind a header each: the least that a tar with a sum takes."""
    digest = hashlib.sha256()
    with (case.out / "a.tar").open("wb") as file:
        for name in case.names:
            photo = case.read(name)
            for part in (pack_header("", name, len(photo)), photo, bytes(padding(len(photo)))):
                digest.update(part)
                file.write(part)


def sum_alone(case: Case) -> dict[str, tuple[float, float]]:
    """sha256 of every photo; the reading is not counted."""
    seconds = cpu_s = 0.0
    for name in case.names:
        photo = case.read(name)
        started, before = time.perf_counter(), time.process_time()
        hashlib.sha256(photo).digest()
        seconds, cpu_s = seconds + time.perf_counter() - started, cpu_s + time.process_time() - before
    return {"sums": (seconds, cpu_s)}


def decode_and_encode(case: Case) -> None:
    """JPEGs decoded at the smallest size that is large enough, and pixels of the final size encoded: nothing in between."""
    import cv2
    import simplejpeg

    small = None
    for name in case.names:
        bounds = {"min_height": SHORT_SIDE, "min_width": SHORT_SIDE}
        pixels = simplejpeg.decode_jpeg(case.read(name), "RGB", **bounds)
        if small is None:
            scale = SHORT_SIDE / min(pixels.shape[:2])
            small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        simplejpeg.encode_jpeg(small, quality=QUALITY, colorsubsampling="420")
