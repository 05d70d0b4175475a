"""One shard, from records to a finished tar with its sidecar: what each process of `shards make` does.

The tar is written under another name and renamed; `<shard>.done.json` comes last. A shard without it is written anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.catalog import read_records, to_json
from shards.errors import ShardError
from shards.imaging import Look, prepare
from shards.key import key_of
from shards.manifest import SIDECAR, Shard, read_sample, write_labels, write_sidecar
from shards.record import Record, Unreadable, reason_of
from shards.remote import send, size
from shards.tar import Ready, TarWriter
from shards.ustar import MAX_FILE_BYTES

DONE = ".done.json"
Watch = Callable[[int], None]
"""Called after every image with the bytes that went into the tar, 0 for one that could not be read."""


@dataclass(frozen=True, slots=True)
class Work:
    """One shard to be written, as plain data for another process. Arrays have one entry a sample, in tar work."""

    folder: Path
    """Where the catalog's files lie and the shard goes."""
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


@dataclass(frozen=True, slots=True)
class Written:
    """A finished shard."""

    shard: Shard
    lost: tuple[tuple[int, str], ...] = ()
    """(row of the catalog, reason) of images that could not be read."""
    left_out: tuple[int, ...] = ()
    """Rows of the catalog taken out again because they could not stand without a lost one."""

    def save(self, folder: Path) -> None:
        """Marks the shard as finished."""
        content = {"shard": asdict(self.shard), "lost": self.lost, "left_out": self.left_out}
        path = folder / (self.shard.file + DONE)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content))
        temporary.rename(path)

    @classmethod
    def load(cls, folder: Path, file: str, *, url: str | None = None) -> Written | None:
        """What an earlier run finished; None where the shard is not there whole."""
        try:
            content: dict[str, Any] = json.loads((folder / (file + DONE)).read_bytes())
            shard = Shard(**content["shard"])
            lost = tuple((int(row), str(reason)) for row, reason in content["lost"])
            written = cls(shard, lost, tuple(int(row) for row in content["left_out"]))
            rows = np.load(folder / shard.sidecar, mmap_mode="r", allow_pickle=False)
            num_bytes = size(f"{url}/{file}") if url else (folder / file).stat().st_size
            is_whole = shard.file == file and num_bytes == shard.bytes
            is_whole &= rows.shape == (shard.samples,) and rows.dtype == SIDECAR
            if is_whole and len(rows) and not url:
                with (folder / file).open("rb") as tar:
                    read_sample(tar, rows[-1])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return written if is_whole else None


def write_shard(work: Work, watch: Watch) -> Written:
    """Writes the tar, its sidecar and what marks it as done."""
    lost: list[tuple[int, str]] = []
    temporary = temporary_path(work.folder, work.file)
    try:
        with temporary.open("wb") as stream:
            tar = TarWriter(stream)
            for sample in get_ready(work, lost, watch):
                tar.add(sample)
            sha256 = tar.end()
        return publish(work, temporary, tar, sha256, tuple(lost))
    finally:
        temporary.unlink(missing_ok=True)


def publish(
    work: Work,
    temporary: Path,
    tar: TarWriter,
    sha256: str,
    lost: tuple[tuple[int, str], ...],
    left_out: tuple[int, ...] = (),
) -> Written:
    """Puts a finished tar under its name, with its sidecar."""
    shard = Shard(work.file, work.split, work.role, len(tar.rows), tar.num_bytes, sha256)
    (work.folder / (work.file + DONE)).unlink(missing_ok=True)
    temporary.rename(work.folder / work.file)
    write_sidecar(work.folder, shard, tar.rows)
    if work.is_multi_label:
        write_labels(work.folder, shard, tar.labels)
    if work.url:
        send(work.folder / work.file, f"{work.url}/{work.file}")
        (work.folder / work.file).unlink()
    written = Written(shard, lost, left_out)
    written.save(work.folder)
    return written


def get_ready(work: Work, lost: list[tuple[int, str]], watch: Watch) -> Iterator[Ready]:
    """Reads, checks and if asked changes one image after the other."""
    records = read_records(work.folder, work.at.tolist(), work.length.tolist())
    columns = (work.row.tolist(), work.is_shared.tolist(), work.numbers.tolist())
    for record, row, is_shared, numbers in zip(records, *columns, strict=True):
        try:
            image, extension = prepare(record.place.read(), work.look, box=record.box)
            if len(image) > MAX_FILE_BYTES:
                raise Unreadable(f"{len(image)} bytes, more than a tar member or a sidecar can hold")
        except (Unreadable, OSError) as error:
            lost.append((row, reason_of(error)))
            watch(0)
            continue
        watch(len(image))
        key = key_of(record, is_shared=is_shared)
        if work.look.crop:
            record = replace(record, box=None)
        yield Ready(
            key, extension, image, describe(record, work.split, work.role), tuple(numbers), work.labels.get(row, ())
        )


def describe(record: Record, split: str, role: str) -> bytes:
    """The sample's json."""
    label = {"labels": list(record.labels)} if record.labels else {"label": record.label}
    box = {"box": list(record.box)} if record.box else {}
    meta = {
        **label,
        "domain": record.domain,
        "group": record.group,
        "split": split,
        "role": role,
        "source": record.source,
        **box,
        "extra": dict(record.extra),
    }
    return to_json(meta).encode()


def thin(work: Work, written: Written, left_out: tuple[int, ...]) -> Written:
    """Writes a finished shard again without these rows, from its own bytes."""
    gone = {row for row, _ in written.lost} | set(written.left_out)
    there = [row for row in work.row.tolist() if row not in gone]
    rows = np.load(work.folder / written.shard.sidecar, allow_pickle=False)
    if len(rows) != len(there):
        raise ShardError(f"{work.folder / work.file}: changed while the set was made; remove it and repeat the command")
    kept = [not_out for not_out, number in enumerate(there) if number not in left_out]
    labels = [work.labels.get(there[at], ()) for at in kept]
    temporary = temporary_path(work.folder, work.file)
    try:
        with (work.folder / work.file).open("rb") as old, temporary.open("wb") as stream:
            tar = TarWriter(stream)
            for row, numbers in zip(rows[kept], labels, strict=True):
                tar.copy(old, row, numbers)
            sha256 = tar.end()
        kept_out = tuple(sorted({*written.left_out, *left_out}))
        return publish(work, temporary, tar, sha256, written.lost, kept_out)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(folder: Path, file: str) -> Path:
    """Where a tar is written before it has its name."""
    return folder / f".{file}.{os.getpid()}"
