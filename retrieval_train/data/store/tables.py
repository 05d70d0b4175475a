"""All of a remote set but its tars, copied once a node: manifest.json, classes, groups, sidecars, labels.

They lie in `tables-<first digits of manifest.json's sum>` in the set's folder of the node's cache (cache.py), which is
renamed to that name when it is complete, and used by all processes at once. Who only checks a config needs no sidecars,
which may be many: `classes-<digits>` is the same without them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from retrieval_train.data.store.cache import Cache
from retrieval_train.data.store.lock import locked
from retrieval_train.data.store.remote import read_range
from shards.files import below, shown
from shards.manifest import CLASSES, GROUPS, MANIFEST, Manifest, ShardError

THREADS = 16  # requests at a time: small files, so it is the answering that takes long
WAIT_S = 1800.0  # for another process that copies them


def fetch_tables(name: str, url: str, scratch: Path | None, *, with_rows: bool = True) -> Manifest:
    """The set behind a URL, its tables in a folder of the node: with the sidecars and labels of every sample or without.

    Raises ShardError where there is no set.
    """
    where = shown(below(url, MANIFEST))
    raw = read_range(below(url, MANIFEST), 0, None)
    manifest = Manifest.parse(raw, Path(), name=name, where=where)
    cache = Cache.open(scratch or Path(tempfile.gettempdir()), max_bytes=0, slots=1)
    home = cache.folder(manifest)
    home.mkdir(0o700, exist_ok=True)
    folder = home / f"{'tables' if with_rows else 'classes'}-{hashlib.sha256(raw).hexdigest()[:8]}"
    manifest = replace(manifest, folder=folder)
    names = set(names_of(manifest, with_rows=with_rows))
    if not is_complete(folder, names):
        with locked(folder.with_name(f"{folder.name}.lock"), wait_s=WAIT_S) as is_held:
            if not is_held:
                raise ShardError(f"{folder}: another process has been copying {shown(url)} for {WAIT_S:.0f} s")
            if not is_complete(folder, names):
                copy_tables(manifest, names, raw, url)
    return manifest


def names_of(manifest: Manifest, *, with_rows: bool) -> Iterator[str]:
    """The files of a set but manifest.json and the tars."""
    yield from (CLASSES, GROUPS)  # and not what the manifest may name besides
    for shard in manifest.shards if with_rows else ():
        yield shard.sidecar
        if manifest.is_multi_label:
            yield shard.labels


def is_complete(folder: Path, names: Set[str]) -> bool:
    """Whether all files are there: some clean what is old off scratch disks, file by file."""
    return folder.is_dir() and {MANIFEST, *names} <= set(os.listdir(folder))


def copy_tables(manifest: Manifest, names: Set[str], raw: bytes, url: str) -> None:
    """Under the folder's name only when every file is there and is what the manifest says."""
    aside = manifest.folder.with_name(f"{manifest.folder.name}.partial")
    for left in (aside, manifest.folder):  # of a process that was killed; of which some files were deleted
        if left.exists():
            shutil.rmtree(left)
    aside.mkdir()
    (aside / MANIFEST).write_bytes(raw)

    def fetch(name: str) -> None:
        (aside / name).write_bytes(read_range(below(url, name), 0, None))

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(fetch, names):
            pass
    there = replace(manifest, folder=aside)
    assert there.classes is not None and there.groups is not None, "read, and so compared with the manifest's sums"
    for shard in (shard for shard in manifest.shards if shard.sidecar in names):
        try:
            there.sidecar(shard), there.labels(shard)
        except ShardError as error:
            raise ShardError(f"{shown(url)}: {error}") from error
    aside.rename(manifest.folder)
