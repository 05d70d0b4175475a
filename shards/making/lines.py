"""A record as one JSON line of a file on disk: how a catalog keeps what it does not hold in memory, and how another process
learns what to read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.place import unpack
from shards.record import Record

RECORDS, BLOBS = "records.jsonl", "images.bin"
to_json = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps makes such an encoder for every call


def say(record: Record) -> str:
    """What the input says of an image, as JSON; where its bytes lie and what its key was is not part of that.

    The sum of the hashes of these texts is the fingerprint. What is drawn counts by its name.
    """
    return to_json(
        (
            record.domain,
            record.label,
            record.source,
            record.group,
            record.split,
            record.num_bytes,
            record.labels,
            record.box,
            dict(record.extra),
            record.problem,
        )
    )


def from_line(line: bytes) -> Record:
    """The record as it was but for `changed_at`."""
    said, (place, key) = json.loads(line.decode())  # given bytes, json first looks for their encoding
    domain, label, source, group, split, num_bytes, labels, box, extra, problem = said
    return Record(
        domain=domain,
        label=label,
        source=source,
        place=unpack(place),
        group=group,
        split=split,
        labels=tuple(labels),
        box=tuple(box) if box else None,
        extra=extra,
        key=key,
        num_bytes=num_bytes,
        problem=problem,
    )


def read_records(folder: Path, starts: Sequence[int], lengths: Sequence[int]) -> Iterator[Record]:
    """The records on these lines."""
    with (folder / RECORDS).open("rb") as file:
        for start, length in zip(starts, lengths, strict=True):
            yield from_line(os.pread(file.fileno(), length, start))
