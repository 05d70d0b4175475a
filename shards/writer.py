"""Turns placed records into tars with sidecars: streaming, one shard open at a time, sums taken while writing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from shards.imaging import prepare
from shards.key import key_hash
from shards.manifest import Shard, write_sidecar
from shards.record import Skip, Unreadable, reason_of
from shards.split import Placed
from shards.ustar import BLOCK, END, pack_header, padding

Watch = Callable[[int, Skip | None], None]
"""Called after every record with the bytes written and, where there was none, the reason."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What bounds a shard and an image."""

    shard_bytes: int = 256_000_000
    shard_samples: int | None = None
    max_side: int | None = None


@dataclass(frozen=True, slots=True)
class Numbers:
    """Names, and the numbers that stand for them in a sidecar."""

    classes: Mapping[tuple[str, str], int]
    domains: Mapping[str, int]
    groups: Mapping[tuple[str, str], int]

    def of(self, placed: Placed) -> tuple[int, int, int]:
        """label, domain, group of a sidecar row."""
        record = placed.record
        label = -1 if record.label is None else self.classes[record.domain, record.label]
        return (
            label,
            self.domains[record.domain],
            self.groups[record.domain, record.group] if record.group else 0,
        )


@dataclass(frozen=True, slots=True)
class Ready:
    """A sample about to be written."""

    key: str
    extension: str
    image: bytes
    meta: bytes
    numbers: tuple[int, int, int]


class Tar:
    """One shard being written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        self.num_bytes = 0
        self.rows: list[tuple[int, ...]] = []

    def has_room(self, sample: Ready, sizes: Sizes) -> bool:
        """Whether the sample still fits; an empty shard takes anything."""
        if not self.rows:
            return True
        needed = sum(BLOCK + len(data) + padding(len(data)) for data in (sample.image, sample.meta)) + len(END)
        return self.num_bytes + needed <= sizes.shard_bytes and len(self.rows) != sizes.shard_samples

    def add(self, sample: Ready) -> None:
        """Appends one sample: the image, then its json."""
        image_at = self._member(sample.key, sample.extension, sample.image)
        json_at = self._member(sample.key, "json", sample.meta)
        numbers = (
            image_at,
            len(sample.image),
            json_at,
            len(sample.meta),
            key_hash(sample.key),
            *sample.numbers,
        )
        self.rows.append(numbers)

    def end(self) -> str:
        """Closes the archive and gives its sha256."""
        self._write(END)
        return self._sum.hexdigest()

    def _member(self, key: str, extension: str, data: bytes) -> int:
        folder, _, stem = key.rpartition("/")
        self._write(pack_header(folder, f"{stem}.{extension}", len(data)))
        at = self.num_bytes
        self._write(data)
        self._write(bytes(padding(len(data))))
        return at

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sum.update(data)
        self.num_bytes += len(data)


def write_shards(
    folder: Path, placed: Sequence[Placed], numbers: Numbers, sizes: Sizes, *, seed: int, watch: Watch
) -> list[Shard]:
    """All tars and sidecars of a set, into the folder; what cannot be read goes to `watch` and is left out.

    The order within a split and role is a shuffle by seed and key, so it does not depend on the order of the source.
    """
    shards: list[Shard] = []
    ordered = sorted(placed, key=lambda entry: (entry.split, entry.role, shuffle_rank(seed, entry.key)))
    for (split, role), entries in groupby(ordered, key=lambda entry: (entry.split, entry.role)):
        shards += write_role(folder, split, role, get_ready(entries, numbers, sizes, watch), sizes)
    return shards


def write_role(folder: Path, split: str, role: str, samples: Iterator[Ready], sizes: Sizes) -> list[Shard]:
    """The shards of one split and role: `dev-query-000000.tar`, …; none where no sample comes."""
    shards: list[Shard] = []
    prefix = split if split == role else f"{split}-{role}"
    waiting = next(samples, None)
    while waiting is not None:
        file = f"{prefix}-{len(shards):06d}.tar"
        with (folder / file).open("wb") as stream:
            tar = Tar(stream)
            while waiting is not None and tar.has_room(waiting, sizes):
                tar.add(waiting)
                waiting = next(samples, None)
            sha256 = tar.end()
        shard = Shard(file, split, role, len(tar.rows), tar.num_bytes, sha256)
        write_sidecar(folder, shard, tar.rows)
        shards.append(shard)
    return shards


def get_ready(entries: Iterable[Placed], numbers: Numbers, sizes: Sizes, watch: Watch) -> Iterator[Ready]:
    """Reads, checks and if asked shrinks one image after the other."""
    for entry in entries:
        try:
            image, extension = prepare(entry.record.read(), max_side=sizes.max_side)
        except (Unreadable, OSError) as error:
            watch(0, Skip(entry.record, reason_of(error)))
            continue
        watch(len(image), None)
        yield Ready(entry.key, extension, image, describe(entry), numbers.of(entry))


def describe(entry: Placed) -> bytes:
    """The sample's json."""
    record = entry.record
    meta = {
        "label": record.label,
        "domain": record.domain,
        "group": record.group,
        "split": entry.split,
        "role": entry.role,
        "source": record.source,
        "extra": dict(record.extra),
    }
    return json.dumps(meta, separators=(",", ":")).encode()


def shuffle_rank(seed: int, key: str) -> bytes:
    """Sorting by this shuffles."""
    return hashlib.blake2b(key.encode(), digest_size=16, salt=seed.to_bytes(8, "little")).digest()
