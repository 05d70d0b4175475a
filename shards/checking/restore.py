"""Broken tars made what they were, byte for byte: from a copy that lies elsewhere, or written again from the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards import pool
from shards.checking.check import Watch
from shards.checking.inspection import sum_of
from shards.checking.origin import Hashes, Origin
from shards.errors import ShardError
from shards.making.writer import Work, write_shard
from shards.manifest import SIDECAR, Manifest, Shard
from shards.npy import read_rows

Order = Callable[[Shard], Hashes | None]
"""Gives the keys of a shard in tar order, if it can."""


def find_copies(
    shards: Sequence[Shard], folders: Sequence[Path], sums: Mapping[Path, str | None]
) -> Iterator[tuple[Shard, Path]]:
    """(shard, file with its bytes) for those that lie in one of these folders, whatever their names; known sums are used."""
    sizes = {shard.bytes for shard in shards}
    found: dict[str, Path] = {}
    for path in sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir()):
        if path.is_file() and path.stat().st_size in sizes:
            found.setdefault(sums.get(path) or sum_of(path), path)
    for shard in shards:
        if shard.sha256 in found:
            yield shard, found[shard.sha256]


def find_homes(manifest: Manifest) -> Iterator[Path]:
    """Folders of the sets that this one was merged from: their tars have the same bytes."""
    about = manifest.about
    if about.get("config", {}).get("source") == "merge":
        for path in about.get("given", {}).values():
            if isinstance(path, str):
                yield Path(path)


def order_by_sidecar(folder: Path, shard: Shard) -> Hashes | None:
    """As the sidecar has it; None where it cannot be read or is of another length."""
    rows = read_array(folder / shard.sidecar, SIDECAR)
    return rows["key_hash"].copy() if rows is not None and len(rows) == shard.samples else None


def read_array(path: Path, dtype: np.dtype) -> NDArray[np.void] | None:
    """The rows of a sidecar, or None; whether they are right nobody knows when the tar is broken."""
    try:
        rows = read_rows(path) if path.is_file() else np.empty(0)
    except (OSError, ValueError):
        return None
    return np.array(rows) if rows.dtype == dtype and rows.ndim == 1 else None


def plan_again(origins: Sequence[Origin], skipped: Path) -> dict[str, Hashes]:
    """The keys of every shard, by the first source that is unchanged; empty where none is."""
    for origin in origins:
        if origin.is_unchanged:
            try:
                return origin.plan(skipped)
            except ShardError:  # rules of another version: the manifest's sums would have refused its plan
                return {}
    return {}


def write_again(
    shards: Sequence[Shard],
    sums: Mapping[str, str | None],
    order: Order,
    origins: Sequence[Origin],
    *,
    workers: int,
    watch: Watch,
) -> Iterator[tuple[Shard, Path]]:
    """(shard, new tar) for those that come out with the sums that they should have, or that the tars there have."""
    wanted = {shard.file: shard for shard in shards}
    works = [work for shard in shards if (work := find_work(shard, order(shard), origins))]
    folders = {work.file: work.folder for work in works}
    total = sum(len(work.row) for work in works)
    count = lambda images, num_bytes: watch(total, images, num_bytes)  # noqa: E731
    with closing(pool.run(write_shard, works, workers=workers, watch=count)) as ready:
        for written in ready:
            file = written.shard.file
            if written.shard.sha256 in (wanted[file].sha256, sums.get(file)):
                yield written.shard, folders[file] / file
            else:
                (folders[file] / file).unlink()


def find_work(shard: Shard, hashes: Hashes | None, origins: Sequence[Origin]) -> Work | None:
    """The shard as the source that has most of its samples can write it; None where one is missing."""
    if hashes is None or not len(hashes) or not origins:
        return None
    found = [origin.find_rows(hashes) for origin in origins]
    best = max(range(len(origins)), key=lambda at: int((found[at] >= 0).sum()))
    return origins[best].work(shard, found[best]) if (found[best] >= 0).all() else None
