"""One tar being written: samples in, sidecar rows and a sum out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from shards.key import key_hash
from shards.manifest import SIDECAR, read_sample
from shards.ustar import BLOCK, END, pack_header, padding


@dataclass(frozen=True, slots=True)
class Ready:
    """A sample about to be written."""

    key: str
    extension: str
    """Of the image, without the dot."""
    image: bytes
    meta: bytes
    """Its json."""
    numbers: tuple[int, int, int]
    """label, domain, group of its sidecar row."""
    labels: tuple[int, ...] = ()
    """Class ids where it has several."""


class TarWriter:
    """Appends samples to a file. The caller opens and closes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        self.num_bytes = 0
        self.rows: list[tuple[int, ...]] = []
        """Of the sidecar (manifest.SIDECAR)."""
        self.labels: list[tuple[int, int]] = []
        """(row, class id) of samples with several labels (manifest.LABELS)."""

    def add(self, sample: Ready) -> None:
        """Appends one sample: the image, then its json."""
        image, meta = sample.image, sample.meta
        folder, _, stem = sample.key.rpartition("/")
        image_at = self.num_bytes + BLOCK
        json_at = image_at + len(image) + padding(len(image)) + BLOCK
        self.labels += [(len(self.rows), label) for label in sample.labels]
        self.rows.append((image_at, len(image), json_at, len(meta), key_hash(sample.key), *sample.numbers))
        self._write(pack_header(folder, f"{stem}.{sample.extension}", len(image)))
        self._write(image)  # never copied: it is most of the bytes
        header = pack_header(folder, f"{stem}.json", len(meta))
        self._write(b"".join((bytes(padding(len(image))), header, meta, bytes(padding(len(meta))))))

    def copy(self, tar: BinaryIO, row: np.void, labels: Iterable[int] = ()) -> None:
        """Appends the sample that this sidecar row points to in another tar, byte for byte.

        ShardError where it is not there.
        """
        read_sample(tar, row)
        start, end = int(row["image_at"]) - BLOCK, int(row["json_at"]) + int(row["json_bytes"])
        tar.seek(start)
        shift = self.num_bytes - start
        self.labels += [(len(self.rows), label) for label in labels]
        moved = {"image_at": int(row["image_at"]) + shift, "json_at": int(row["json_at"]) + shift}
        self.rows.append(tuple(moved.get(name, int(row[name])) for name in SIDECAR.names or ()))
        self._write(tar.read(end - start) + bytes(padding(end - start)))

    def end(self) -> str:
        """Closes the archive and gives its sha256."""
        self._write(END)
        return self._sum.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sum.update(data)
        self.num_bytes += len(data)


def member_bytes(num_bytes: int) -> int:
    """What a member of this size takes in a tar."""
    return BLOCK + num_bytes + padding(num_bytes)
