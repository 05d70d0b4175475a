"""One image as it lies in a tar: where its bytes are, by the set's sidecar, and whether they are the ones that it means.

`row` is a row of manifest.SIDECAR. Trainers take all of this from manifest.py, their one door to sets.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shards.errors import ShardError
from shards.key import key_hash
from shards.ustar import BLOCK, padding, parse_header


@dataclass(frozen=True, slots=True)
class Sample:
    """One image as it lies in a tar."""

    key: str
    image: bytes
    meta: dict[str, Any]
    """The json: label (or labels), domain, group, split, role, source, extra, and box where there is one."""


def read_sample(file: BinaryIO, row: np.void) -> Sample:
    """The sample that a sidecar row points to, from an open tar; verified by the header in front of it.

    One seek and one read: the json follows its image.
    """
    start, num_bytes = span_of(row)
    file.seek(start)
    return parse_sample(file.read(num_bytes), row, Path(getattr(file, "name", "shard")).name)


def span_of(row: np.void) -> tuple[int, int]:
    """First byte and number of bytes of a sample in its tar, from the image's header to the end of the json; (0, 0)
    where the row states what no sample can be."""
    image_at, num_bytes = int(row["image_at"]), int(row["image_bytes"])
    json_at, json_end = int(row["json_at"]), int(row["json_at"]) + int(row["json_bytes"])
    start = max(image_at - BLOCK, 0)
    is_possible = json_at == image_at + num_bytes + padding(num_bytes) + BLOCK and json_end < 2**63
    return (start, json_end - start) if is_possible else (0, 0)


def spans_of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First byte of each of these samples, and the byte behind its last; no more than span_of for rows that are sound."""
    return np.maximum(rows["image_at"], BLOCK) - np.uint64(BLOCK), rows["json_at"] + rows["json_bytes"]


def parse_sample(span: bytes, row: np.void, file: str) -> Sample:
    """The sample whose bytes, see span_of, are given; ShardError that names the tar where they are another's."""
    image_at, num_bytes = int(row["image_at"]), int(row["image_bytes"])
    start, length = span_of(row)
    header = parse_header(span[:BLOCK])
    key = header[0].rpartition(".")[0] if header else ""
    meta = parse_json(span[int(row["json_at"]) - start :]) if length and len(span) == length else None
    if not header or header[1] != num_bytes or key_hash(key) != int(row["key_hash"]) or meta is None:
        found = f"{header[0]} of {header[1]} bytes{'' if meta else ' without its json'}" if header else "no tar header"
        raise ShardError(
            f"{file}: expected an image of {num_bytes} bytes at byte {image_at}, found {found}; "
            "tar and sidecar do not belong together, run `shards check` on the set"
        )
    return Sample(key, span[BLOCK : BLOCK + num_bytes], meta)


def parse_json(raw: bytes) -> dict[str, Any] | None:
    """The object, or None where the bytes hold none."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def last_byte(rows: np.ndarray) -> int:
    """Where the last sample's json ends; 0 without samples."""
    return int(rows["json_at"][-1]) + int(rows["json_bytes"][-1]) if len(rows) else 0
