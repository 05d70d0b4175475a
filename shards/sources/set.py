"""A finished shard set, to be made anew: with other classes left out, at another size, in other shards.

    shards make set shard_sets/food --max-side 336 --out shard_sets/food_336

Every sample keeps its key, split, role and all that is said about it; images are read from the set's tars in place.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from shards.errors import ShardError
from shards.files import is_url
from shards.inputs.rows import load_json
from shards.key import key_hash
from shards.place import Span
from shards.record import Record
from shards.ustar import BLOCK, parse_header

if TYPE_CHECKING:
    from shards.manifest import Shard

ROWS = 4096  # of a sidecar, as numbers at a time
TEXTS, OPTIONAL_TEXTS = ("domain", "source"), ("label", "group")


def add_options(parser: argparse.ArgumentParser) -> None:
    """DIR."""
    parser.add_argument("set", type=Path, metavar="DIR", help="the shard set")


def records(options: argparse.Namespace) -> Iterator[Record]:
    """One record a sample, shard by shard. Times stay 0: the same samples are the same input wherever they were copied."""
    from shards.manifest import Manifest

    manifest = Manifest.load(options.set)
    if manifest.num_folds:
        raise ShardError(
            f"{options.set} has folds, which would be lost: make it again from its source, with the same "
            "`shards make ... --folds` and the options that shall be others (--drop, --max-side, ...)"
        )
    if not is_url(options.out) and Path(options.set).resolve() in Path(options.out).resolve().parents:
        raise ShardError(f"--out {options.out} lies inside the set {options.set}; choose a place beside it")
    for shard in manifest.shards:
        rows = manifest.sidecar(shard)
        path = os.path.abspath(manifest.folder / shard.file)
        with open(path, "rb", buffering=0) as file:
            for first in range(0, len(rows), ROWS):
                numbers = rows[first : first + ROWS]
                columns = (
                    numbers[name].tolist() for name in ("image_at", "image_bytes", "json_at", "json_bytes", "key_hash")
                )
                for image_at, image_bytes, *about in zip(*columns, strict=True):
                    key, meta = read_meta(file, shard, *about)
                    yield make_record(key, meta, shard, Span(path, image_at, image_bytes))


def read_meta(file: BinaryIO, shard: Shard, at: int, num_bytes: int, hashed: int) -> tuple[str, dict[str, Any]]:
    """(key, json) of a sample, from one read of the json's header and content."""
    block = os.pread(file.fileno(), BLOCK + num_bytes, max(at - BLOCK, 0))
    header = parse_header(block[:BLOCK])
    key = header[0].removesuffix(".json") if header else ""
    try:
        meta = load_json(block[BLOCK:].decode())
        is_right = header is not None and header[1] == num_bytes and key_hash(key) == hashed and is_meta(meta)
    except ValueError:
        is_right = False
    if not is_right:
        raise ShardError(
            f"{shard.file}: no json of a sample at byte {at}; tar and sidecar do not belong together, run `shards check` "
            "on the set"
        )
    return key, meta


def is_meta(meta: Any) -> bool:
    """Whether this is what `shards` writes of a sample."""
    if not isinstance(meta, dict):
        return False
    labels, box = meta.get("labels", []), meta.get("box", [0, 0, 0, 0])
    return (
        all(isinstance(meta.get(name), str) for name in TEXTS)
        and all(isinstance(meta.get(name), (str, type(None))) for name in OPTIONAL_TEXTS)
        and (isinstance(labels, list) and all(isinstance(label, str) for label in labels))
        and (isinstance(box, list) and len(box) == 4 and all(isinstance(side, (int, float)) for side in box))
        and isinstance(meta.get("extra", {}), dict)
    )


def make_record(key: str, meta: dict[str, Any], shard: Shard, place: Span) -> Record:
    """The record of a sample."""
    left, top, right, bottom = meta.get("box") or (0, 0, 0, 0)
    return Record(
        domain=meta["domain"],
        label=meta.get("label"),
        labels=tuple(meta.get("labels", ())),
        source=meta["source"],
        place=place,
        group=meta.get("group"),
        split=shard.split if shard.role == shard.split else f"{shard.split}_{shard.role}",
        box=(left, top, right, bottom) if meta.get("box") else None,
        extra=meta.get("extra", {}),
        key=key,
        num_bytes=place.num_bytes,
    )
