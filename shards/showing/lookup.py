"""One sample of a set, found by its key: the sidecars hold a hash of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.errors import ShardError, did_you_mean, first_few
from shards.images.container import read_header
from shards.key import encode, encode_domain, key_hash, stem_of
from shards.manifest import Manifest, Sample, Shard
from shards.record import Unreadable
from shards.ustar import BLOCK, parse_header

MOST_KEYS = 5_000
"""Keys compared with one that is not there, to guess what was meant."""


class Found(NamedTuple):
    """A sample and its place."""

    sample: Sample
    shard: Shard
    row: int
    span: np.void
    """Its row of the sidecar."""


def find_sample(manifest: Manifest, word: str) -> Found:
    """By key, by the name of a member of the tar, or by `domain/source`; ShardError with the nearest key."""
    domain, _, source = word.partition("/")
    keys = dict.fromkeys((word.partition(".")[0], f"{encode_domain(domain)}/{encode(stem_of(source))}"))
    hashes = {key_hash(key) for key in keys if key.isascii()}  # a key is never anything else
    for shard in manifest.shards:
        rows = manifest.sidecar(shard)
        for row in np.flatnonzero(np.isin(rows["key_hash"], np.array(list(hashes), np.uint64))).tolist():
            sample = manifest.read(shard, row)
            if sample.key in keys:
                return Found(sample, shard, row, rows[row])
    raise ShardError(f"no sample {word!r} in {manifest.folder}{guess_key(manifest, word)}")


def guess_key(manifest: Manifest, word: str) -> str:
    """What may have been meant: a domain, or a key of the domain."""
    folders = [encode_domain(domain) for domain in manifest.domains]
    folder = word.partition("/")[0]
    if folder not in folders:
        starts = [f"{name}/" for name in folders]
        return f"; keys start with {first_few(starts)}{did_you_mean(f'{folder}/', starts)}"
    keys = list(read_keys(manifest, folders.index(folder)))
    return f"; there are {first_few(keys)}{did_you_mean(word.partition('.')[0], keys)}"


def read_keys(manifest: Manifest, domain: int) -> Iterator[str]:
    """Keys of a domain in the order of its samples, not more than MOST_KEYS of a shard."""
    for shard in manifest.shards:
        rows = manifest.sidecar(shard)
        mine = rows["image_at"][rows["domain"] == domain][:MOST_KEYS]
        with (manifest.folder / shard.file).open("rb", buffering=0) as file:
            for at in mine.tolist():
                file.seek(at - BLOCK)
                header = parse_header(file.read(BLOCK))
                if header:
                    yield header[0].partition(".")[0]


def describe_found(found: Found) -> dict[str, Any]:
    """Where it lies, what it is, and its json."""
    try:
        header = read_header(found.sample.image)
        pixels: dict[str, Any] = {"format": header.kind, "width": header.width, "height": header.height}
    except Unreadable as error:
        pixels = {"problem": str(error)}
    names = ("image_at", "image_bytes", "json_at", "json_bytes")
    return {
        "key": found.sample.key,
        "shard": found.shard.file,
        "row": found.row,
        **{name: int(found.span[name]) for name in names},
        **pixels,
        "json": found.sample.meta,
    }


def save_image(image: bytes, path: Path) -> None:
    """The bytes as they lie in the tar."""
    try:
        path.write_bytes(image)
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; the image cannot be saved there") from error
