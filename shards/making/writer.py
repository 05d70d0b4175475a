"""One shard, from records to a finished tar with its sidecar: what each process of `shards make` does.

The tar is written under another name and renamed; `<shard>.done.json` comes last. A shard without it is written anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.images.imaging import Look, move_box, prepare
from shards.key import key_of
from shards.making.lines import read_records, to_json
from shards.manifest import SIDECAR, Shard, read_sample, write_labels, write_sidecar
from shards.record import Record, Unreadable, reason_of
from shards.remote import send, size
from shards.tar import Ready, TarWriter
from shards.ustar import MAX_FILE_BYTES

DONE = ".done.json"
WRITE_BYTES = 2**20  # at a time: disks' file systems take less time for them than for an image each
GIVE_UP = 20  # images in a row without bytes
Watch = Callable[[int], None]
"""Called after every image with the bytes that went into the tar, 0 for one that could not be read."""


@dataclass(frozen=True, slots=True)
class Work:
    """One shard to be written, as plain data for another process. Arrays have one entry a sample, in tar order."""

    folder: Path
    """Where the catalog's files lie, and what marks a shard as done."""
    into: Path
    """Where the shard goes."""
    file: str
    split: str
    role: str
    row: NDArray[np.int64]
    """Of the catalog; what is reported back as unreadable."""
    at: NDArray[np.uint64]
    length: NDArray[np.uint32]
    is_shared: NDArray[np.bool_]
    numbers: NDArray[np.int64]
    """(n, 3): label, domain and group ids."""
    labels: dict[int, tuple[int, ...]]
    """Class ids by row of the catalog, where images have several."""
    look: Look
    is_multi_label: bool = False
    url: str | None = None
    """Where the tar is sent when it is finished; it then leaves the folder."""
    fold: int | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """A finished shard."""

    shard: Shard
    lost: tuple[tuple[int, str], ...] = ()
    """(row of the catalog, reason) of images that could not be read."""
    left_out: tuple[int, ...] = ()
    """Rows of the catalog taken out again because they could not stand without a lost one."""
    is_final: bool = True
    """False where bytes could not be read at all: the file or its disk may be back when the run goes on."""

    def rows(self, work: Work) -> NDArray[np.int64]:
        """Of the catalog, of the samples that are in the tar, in its order."""
        gone = [*(row for row, _ in self.lost), *self.left_out]
        return work.row[~np.isin(work.row, gone)]

    def save(self, folder: Path) -> None:
        """Marks the shard as finished."""
        content = {
            "shard": self.shard.as_dict(),
            "lost": self.lost,
            "left_out": self.left_out,
            "is_final": self.is_final,
        }
        path = folder / (self.shard.file + DONE)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content))
        temporary.rename(path)

    @classmethod
    def load(cls, folder: Path, into: Path, file: str, *, url: str | None = None) -> Written | None:
        """What an earlier run finished; None where the shard is not there whole, or may get more samples now."""
        try:
            content: dict[str, Any] = json.loads((folder / (file + DONE)).read_bytes())
            shard = Shard(**content["shard"])
            lost = tuple((int(row), str(reason)) for row, reason in content["lost"])
            written = cls(shard, lost, tuple(int(row) for row in content["left_out"]))
            rows = np.load(into / shard.sidecar, mmap_mode="r", allow_pickle=False)
            num_bytes = size(f"{url}/{file}") if url else (into / file).stat().st_size
            is_whole = (
                content["is_final"] is True and not written.left_out and shard.file == file and num_bytes == shard.bytes
            )
            is_whole &= rows.shape == (shard.samples,) and rows.dtype == SIDECAR
            if is_whole and len(rows) and not url:
                with (into / file).open("rb") as tar:
                    read_sample(tar, rows[-1])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return written if is_whole else None


def write_shard(work: Work, watch: Watch) -> Written:
    """Writes the tar, its sidecar and what marks it as done."""
    losses = Losses()
    temporary = temporary_path(work.into, work.file)
    try:
        with temporary.open("wb", WRITE_BYTES) as stream:
            tar = TarWriter(stream)
            for sample in get_ready(work, losses, watch):
                tar.add(sample)
            sha256 = tar.end()
        return publish(
            work, temporary, tar, Written(as_shard(work, tar, sha256), tuple(losses.lost), is_final=losses.are_final)
        )
    finally:
        temporary.unlink(missing_ok=True)


def as_shard(work: Work, tar: TarWriter, sha256: str) -> Shard:
    """What the manifest will say of it."""
    return Shard(work.file, work.split, work.role, len(tar.rows), tar.num_bytes, sha256, work.fold)


def publish(work: Work, temporary: Path, tar: TarWriter, written: Written) -> Written:
    """Puts a finished tar under its name, with its sidecar, and marks it as done."""
    (work.folder / (work.file + DONE)).unlink(missing_ok=True)
    temporary.rename(work.into / work.file)
    write_sidecar(work.into, written.shard, tar.rows)
    if work.is_multi_label:
        write_labels(work.into, written.shard, tar.labels)
    if work.url:
        send(work.into / work.file, f"{work.url}/{work.file}")
        (work.into / work.file).unlink()
    written.save(work.folder)
    return written


@dataclass(slots=True)
class Losses:
    """Images of a shard that could not be used."""

    lost: list[tuple[int, str]] = field(default_factory=list)
    are_final: bool = True
    in_a_row: int = 0

    def unreadable(self, row: int, error: Exception) -> None:
        """There are bytes, and they are no image that we take."""
        self.lost.append((row, reason_of(error)))
        self.in_a_row = 0

    def absent(self, row: int, error: OSError) -> None:
        """There are no bytes. Many such in a row are no fault of the images: ShardError."""
        self.lost.append((row, reason_of(error)))
        self.are_final = False
        self.in_a_row += 1
        if self.in_a_row == GIVE_UP:
            raise ShardError(
                f"{GIVE_UP} images in a row that were listed before cannot be read now ({reason_of(error)}): "
                "is their disk or mount gone? Repeat the command when it is back; finished shards are kept"
            )


def get_ready(work: Work, losses: Losses, watch: Watch) -> Iterator[Ready]:
    """Reads, checks and if asked changes one image after the other."""
    records = read_records(work.folder, work.at.tolist(), work.length.tolist())
    columns = (work.row.tolist(), work.is_shared.tolist(), work.numbers.tolist())
    for record, row, is_shared, numbers in zip(records, *columns, strict=True):
        try:
            data = record.place.read()
        except OSError as error:
            losses.absent(row, error)
            watch(0)
            continue
        try:
            image, extension = prepare(data, work.look, box=record.box)
            if len(image) > MAX_FILE_BYTES:
                raise Unreadable(f"{len(image)} bytes, more than a tar member or a sidecar can hold")
        except Unreadable as error:
            losses.unreadable(row, error)
            watch(0)
            continue
        losses.in_a_row = 0
        watch(len(image))
        key = key_of(record, is_shared=is_shared)
        if record.box:
            box = None if work.look.crop else move_box(data, work.look, record.box)
            record = replace(record, box=box)
        meta = describe(record, work.split, work.role, work.fold)
        yield Ready(key, extension, image, meta, tuple(numbers), work.labels.get(row, ()))


def describe(record: Record, split: str, role: str, fold: int | None) -> bytes:
    """The sample's json."""
    label = {"labels": list(record.labels)} if record.labels else {"label": record.label}
    box = {"box": list(record.box)} if record.box else {}
    meta = {
        **label,
        "domain": record.domain,
        "group": record.group,
        "split": split,
        "role": role,
        **({} if fold is None else {"fold": fold}),
        "source": record.source,
        **box,
        "extra": dict(record.extra),
    }
    return to_json(meta).encode()


def thin(work: Work, written: Written, left_out: tuple[int, ...]) -> Written:
    """Writes a finished shard again without these rows, from its own bytes."""
    there = written.rows(work).tolist()
    rows = np.load(work.into / written.shard.sidecar, allow_pickle=False)
    if len(rows) != len(there):
        raise ShardError(f"{work.into / work.file}: changed while the set was made; remove it and repeat the command")
    kept = [at for at, row in enumerate(there) if row not in left_out]
    labels = [work.labels.get(there[at], ()) for at in kept]
    temporary = temporary_path(work.into, work.file)
    try:
        with (work.into / work.file).open("rb") as old, temporary.open("wb") as stream:
            tar = TarWriter(stream)
            for row, numbers in zip(rows[kept], labels, strict=True):
                tar.copy(old, row, numbers)
            sha256 = tar.end()
        thinned = replace(written, shard=as_shard(work, tar, sha256), left_out=left_out)
        return publish(work, temporary, tar, thinned)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(folder: Path, file: str) -> Path:
    """Where a tar is written before it has its name."""
    return folder / f".{file}.{os.getpid()}"
