"""The folder that a set ends in: written beside it, renamed when everything succeeded, untouched otherwise."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.errors import ShardError
from shards.manifest import MANIFEST, Manifest


@contextmanager
def new_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """Yields `OUT.partial-<pid>`; renamed to OUT at the end of the block, removed on any error or Ctrl-C."""
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a dead process that had our number
        partial.mkdir(parents=True)
    except OSError as error:
        raise ShardError(f"{partial}: {error.strerror}; choose another --out") from error
    try:
        yield partial
        publish(partial, out, force=force)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, out: Path, *, force: bool) -> None:
    """Puts the finished folder in its place; with `force` in the place of an older set."""
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    if force and out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except OSError as error:
        if old.exists():
            old.rename(out)
        raise ShardError(f"{out}: {error.strerror}; it appeared while the set was made") from error
    shutil.rmtree(old, ignore_errors=True)


def check_free(out: Path, *, force: bool) -> None:
    """Refuses what must not be replaced: a file, a folder that is no set."""
    if not out.name or out.name == "..":
        raise ShardError(f"--out {out}: give the new folder a name, like shard_sets/food")
    if out.exists() and not out.is_dir():
        raise ShardError(f"--out {out} is a file; choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        hint = "--force replaces shard sets only; " if force else ""
        raise ShardError(f"--out {out} exists and is not a shard set; {hint}choose another --out")


def find_finished(out: Path, about: Mapping[str, Any], *, changed_at: float) -> Manifest | None:
    """The set that lies at OUT already, if it is the one asked for; None if nothing lies there.

    It is the one if the options and the records are equal, no image file changed since, and its shards are all there.
    """
    if not (out / MANIFEST).is_file():
        return None
    advice = "pass --force to replace it, or another --out"
    try:
        manifest = Manifest.load(out)
    except ShardError as error:
        raise ShardError(f"--out {out} exists but cannot be read ({error}); {advice}") from error
    made_with, wanted = manifest.about.get("config", {}), about["config"]
    changes = [
        f"{name} was {made_with.get(name)!r} and is {wanted.get(name)!r}"
        for name in sorted({*made_with, *wanted})
        if made_with.get(name) != wanted.get(name)
    ]
    if changes:
        raise ShardError(f"--out {out} exists and was made with other options ({'; '.join(changes)}); {advice}")
    if manifest.about.get("fingerprint") != about["fingerprint"]:
        raise ShardError(f"--out {out} exists and was made from other images or labels; {advice}")
    if changed_at > (out / MANIFEST).stat().st_mtime:
        raise ShardError(f"--out {out} exists and images changed after it was made; {advice}")
    for shard in manifest.shards:
        try:
            manifest.sidecar(shard)
        except ShardError as error:
            raise ShardError(f"--out {out} exists but is damaged ({error}); {advice}") from error
    return manifest
