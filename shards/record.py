"""A record: one image of a raw release, with what is known about it and where its bytes lie.

Sources yield records, split.py decides where each goes, writer.py turns them into samples. A record is plain data: it is
written down and read back by another process, so it says *where* its bytes are (place.py) and holds no open file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shards.place import Place

SPLITS = ("train", "dev", "test")
ROLES = ("train", "query", "index", "distractor")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What people call the splits."""
Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels of the image as stored, before any EXIF rotation."""


class Unreadable(Exception):
    """One image cannot be used, for the reason given; the run counts it and goes on."""


@dataclass(frozen=True, slots=True)
class Record:
    """One raw image and its label."""

    domain: str
    label: str | None
    """Unique within the domain; None for a distractor, which belongs to no class, and where `labels` says it."""
    source: str
    """The image's path inside the release, with `/`; the sample's key is made from it."""
    place: Place
    """Where its bytes lie."""
    group: str | None = None
    """A coarser or neighbouring unit that an evaluation may want to know (brand, alphabet, photo)."""
    split: str | None = None
    """What the release says: train, dev, test, or with a role, dev_query; None leaves it to split.py."""
    labels: tuple[str, ...] = ()
    """All labels where an image may have several; `label` is then None."""
    box: Box | None = None
    """Where the object is; used by --crop, and kept in the sample's json otherwise."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the release says about this image; kept in the sample's json."""
    key: str | None = None
    """The sample's key where it had one before (a set made anew); else it is made from domain and source."""
    num_bytes: int = 0
    """Size of the image file, 0 where nobody knows before reading it; part of the set's fingerprint."""
    changed_at: float = 0.0
    """Modification time of the file that holds the bytes, 0 where there is none."""
    problem: str | None = None
    """Why this record can never become a sample; set by the source, counted and listed like an unreadable image."""

    @property
    def name(self) -> str:
        """`domain/path`, for messages."""
        return f"{self.domain}/{self.source}"


def part_of(split: str, fold: int | None) -> str:
    """`fold2`, or the split where there is no fold; how the names of shards begin."""
    return split if fold is None else f"fold{fold}"


def reason_of(error: Exception) -> str:
    """`No such file or directory` rather than the error's number and path, which the message names already."""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
