"""Which sample goes into which shard, decided before any image is opened: so shards are independent of each other, any
number of processes writes them, and a stopped run finds its finished ones again.

The order within a split and role is a shuffle by seed and key. Where the sizes of the image files are known and they
go into the tars as they are, shards are cut by their exact size. Otherwise some images, spread over the split, are
prepared first, and shards get as many samples as fit on average: `--shard-mb` is then an aim, not a limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.images.imaging import Look, prepare
from shards.making.catalog import Catalog
from shards.making.plan import NO_FOLD, Plan
from shards.record import ROLES, SPLITS, Unreadable, part_of
from shards.tar import member_bytes
from shards.ustar import BLOCK, END

TRIED = 16  # of each split and role
NAMES_BYTES = 100  # by which the json of a sample is larger than what was said of its record, at most


@dataclass(frozen=True, slots=True)
class Sizes:
    """What bounds a shard."""

    shard_bytes: int = 256_000_000
    shard_samples: int | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One shard to be written."""

    file: str
    split: str
    role: str
    rows: NDArray[np.int64]
    """Of the catalog, in tar order."""
    fold: int | None = None


def lay_out(catalog: Catalog, plan: Plan, sizes: Sizes, look: Look) -> list[Task]:
    """All shards, in the order of their names."""
    tasks = []
    columns = (plan.split, plan.role, plan.fold)
    for split, role, fold in sorted(set(zip(*(column[plan.kept].tolist() for column in columns), strict=True))):
        rows = np.flatnonzero((plan.split == split) & (plan.role == role) & (plan.fold == fold))
        rows = rows[np.lexsort((catalog["key_hash"][rows], catalog["rank"][rows]))]
        cuts = cut(catalog, rows, sizes, look)
        tasks += name_tasks(SPLITS[split], ROLES[role], cuts, fold=None if fold == NO_FOLD else fold)
    return sorted(tasks, key=lambda task: task.file)


def name_tasks(split: str, role: str, cuts: Iterator[NDArray[np.int64]], *, fold: int | None) -> list[Task]:
    """`dev-query-000000.tar`, `fold0-query-000000.tar`, …"""
    part = part_of(split, fold)
    prefix = part if part == role else f"{part}-{role}"
    return [Task(f"{prefix}-{number:06d}.tar", split, role, rows, fold) for number, rows in enumerate(cuts)]


def cut(catalog: Catalog, rows: NDArray[np.int64], sizes: Sizes, look: Look) -> Iterator[NDArray[np.int64]]:
    """The rows of each shard."""
    most = sizes.shard_samples or len(rows)
    if look.changes_nothing and (catalog["num_bytes"][rows] > 0).all():
        ends = np.cumsum(sample_bytes(catalog, rows))
        start = 0
        while start < len(rows):
            written = int(ends[start - 1]) if start else 0
            end = int(np.searchsorted(ends, written + sizes.shard_bytes - len(END), side="right"))
            end = min(max(end, start + 1), start + most)
            yield rows[start:end]
            start = end
        return
    fit = max(int((sizes.shard_bytes - len(END)) / try_some(catalog, rows, look)), 1)
    for start in range(0, len(rows), min(most, fit)):
        yield rows[start : start + min(most, fit)]


def sample_bytes(catalog: Catalog, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """What each sample takes in a tar, at most."""
    image = catalog["num_bytes"][rows].astype(np.int64)
    meta = catalog["said"][rows].astype(np.int64) + NAMES_BYTES
    return 2 * BLOCK + image + -image % BLOCK + meta + -meta % BLOCK


def try_some(catalog: Catalog, rows: NDArray[np.int64], look: Look) -> float:
    """What a sample takes on average, found by preparing up to 16 of them."""
    tried = rows[np.unique(np.linspace(0, len(rows) - 1, TRIED).astype(np.int64))]
    taken: list[int] = []
    failed = 0
    for record in catalog.records(tried):
        try:
            image, _ = prepare(record.place.read(), look, box=record.box)
        except (Unreadable, OSError):  # found again, counted and listed when its shard is written
            failed += 1
            if failed > len(taken) + 2:  # a server that is down would be asked 16 times
                break
            continue
        taken.append(member_bytes(len(image)) + 2 * BLOCK)
    return float(np.mean(taken)) if taken else 1e5
