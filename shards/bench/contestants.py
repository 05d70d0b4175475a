"""Who writes the photos: this package here, webdataset in shardwriter.py, everybody else in others.py.

Every contestant takes the case and writes into its folder: a photo and its json a sample. Those of one module share a
process (turns.py).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.images.imaging import Look
from shards.making.layout import Sizes
from shards.making.maker import Order, make_set
from shards.making.rules import Rules
from shards.sources import folder

SHORT_SIDE = 256
QUALITY = 90
SHARD_BYTES = 256_000_000
SHARDS_EACH = 4  # of several workers


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

    @property
    def num_bytes(self) -> int:
        """Of all photos."""
        return sum((self.photos / name).stat().st_size for name in self.names)


def describe(name: str) -> dict[str, Any]:
    """What the json of a photo's sample says."""
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
        """Gives (seconds, CPU seconds) of the writing alone, from the finished plan to the last sidecar: of one process."""
        # as always with one worker; with more, each gets a few shards
        shard_bytes = SHARD_BYTES if self.workers == 1 else case.num_bytes // (SHARDS_EACH * self.workers)
        order = Order(
            out=case.out / "set",
            config={"source": "bench"},
            given={},
            rules=Rules(train_only=True, min_images=1),
            sizes=Sizes(shard_bytes),
            look=Look(verify=self.verify, short_side=self.short_side, quality=QUALITY),
            workers=self.workers,
        )
        moments: list[tuple[float, float]] = []

        def watch(total: int, images: int, num_bytes: int) -> None:
            if images in (0, total):
                moments.append((time.perf_counter(), time.process_time()))

        options = argparse.Namespace(root=case.photos, out=order.out, domain="photos", levels="class")
        make_set(order, folder.records(options), watch)
        (started, cpu_before), *_, (ended, cpu_after) = moments
        return {"writing": (ended - started, cpu_after - cpu_before)} if self.workers == 1 else {}
