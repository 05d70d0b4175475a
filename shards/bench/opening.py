"""How fast a large set opens: its files are as large as a real set's, but hold nothing (sparse files).

What a program does before its first sample: manifest.json, the sidecars, and the classes where it needs their names.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from shards.bench.outcome import Goal, Outcome
from shards.bench.turns import Watch
from shards.classes import Classes
from shards.manifest import SIDECAR, Manifest, Shard, write_manifest
from shards.showing.tables import Table

SHARD_SAMPLES = 10_000
SAMPLE_BYTES = 25_600
CLASS_IMAGES = 100
NUM_READ = 1000
LOAD, READ, ALL, CLASSES = "manifest.json", f"{NUM_READ:,} random samples' rows", "all sidecars", "classes.tsv"
MOST_S = 1.0


def bench_opening(scratch: Path, *, count: int, rounds: int, watch: Watch) -> Outcome:
    """One table."""
    folder = scratch / "large"
    write_empty_set(folder, count)
    seconds: dict[str, list[float]] = {name: [] for name in (LOAD, READ, ALL, CLASSES)}
    for number in range(rounds):
        open_set(folder, seconds)
        watch(rounds, number + 1, 0)
    manifest = Manifest.load(folder)
    medians = {name: median(found) for name, found in seconds.items()}
    opened = {
        f"{LOAD} and {READ}": medians[LOAD] + medians[READ],
        f"{LOAD} and {ALL}": medians[LOAD] + medians[ALL],
    }
    of = {LOAD: len(manifest.shards), READ: NUM_READ, ALL: len(manifest.shards), CLASSES: len(manifest.classes)}
    rows = [[name, of[name], round(medians[name], 3), round(max(seconds[name]), 3)] for name in seconds]
    num_samples = sum(shard.samples for shard in manifest.shards)
    return Outcome(
        name="open",
        notes=(
            f"{num_samples:,} samples in {len(manifest.shards):,} shards and {len(manifest.classes):,} classes; sparse "
            f"files in the page cache, medians of {rounds} rounds, imports not counted.",
        ),
        tables=(Table("opening a large set", ("", "entries", "seconds", "slowest"), rows),),
        goals=tuple(
            Goal(f"opening {num_samples:,} samples: {what}", f"< {MOST_S:g} s", f"{found:.2f} s", found < MOST_S)
            for what, found in opened.items()
        ),
        numbers={"samples": num_samples, "shards": len(manifest.shards), "seconds": seconds},
    )


def write_empty_set(folder: Path, count: int) -> None:
    """A manifest, and tars and sidecars of the right sizes; reading a sample of it would fail."""
    folder.mkdir()
    whole, rest = divmod(count, SHARD_SAMPLES)
    shards = []
    for number, samples in enumerate([SHARD_SAMPLES] * whole + ([rest] if rest else [])):
        file = f"train-{number:06d}.tar"
        shard = Shard(
            file, "train", "train", samples, samples * SAMPLE_BYTES, hashlib.sha256(file.encode()).hexdigest()
        )
        head = io.BytesIO()
        shape = {"descr": SIDECAR.descr, "fortran_order": False, "shape": (samples,)}
        np.lib.format.write_array_header_1_0(head, shape)
        write_sparse(folder / file, b"", shard.bytes)
        write_sparse(folder / shard.sidecar, head.getvalue(), head.tell() + samples * SIDECAR.itemsize)
        shards.append(shard)
    num_classes = max(count // CLASS_IMAGES, 1)
    classes = Classes(
        domains=("things",) * num_classes,
        labels=tuple(f"class{number:08d}" for number in range(num_classes)),
        groups=("",) * num_classes,
        table=np.array([[CLASS_IMAGES] * num_classes, [0] * num_classes, [0] * num_classes], np.int64),
    )
    write_manifest(
        folder,
        name=folder.name,
        shards=shards,
        domains=["things"],
        classes=classes,
        groups=[("", "")],
        about={"config": {"source": "bench"}, "given": {}},
    )


def write_sparse(path: Path, start: bytes, num_bytes: int) -> None:
    """A file that begins like this and takes hardly any room."""
    with path.open("wb") as file:
        file.write(start)
        file.flush()
        os.ftruncate(file.fileno(), num_bytes)


def open_set(folder: Path, seconds: dict[str, list[float]]) -> None:
    """Once, as a program would that knows nothing of the set yet."""
    chance = random.Random(0)

    def timed(name: str, do: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = do()
        seconds[name].append(time.perf_counter() - started)
        return result

    manifest = timed(LOAD, lambda: Manifest.load(folder))
    numbers = [chance.randrange(sum(shard.samples for shard in manifest.shards)) for _ in range(NUM_READ)]
    timed(READ, lambda: [read_row(manifest, number) for number in numbers])
    timed(ALL, lambda: [manifest.sidecar(shard) for shard in manifest.shards])
    timed(CLASSES, lambda: manifest.classes)


def read_row(manifest: Manifest, number: int) -> tuple[int, ...]:
    """The sidecar's row of this sample."""
    which, row = divmod(number, SHARD_SAMPLES)
    return tuple(manifest.sidecar(manifest.shards[which])[row].tolist())
