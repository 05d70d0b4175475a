"""A record: one image of a raw release, with what is known about it and a way to read its bytes later.

Sources yield records, split.py decides where each goes, writer.py turns them into samples. A record costs a few hundred
bytes, whatever its image weighs: only `read` touches pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPLITS = ("train", "dev", "test")
ROLES = ("train", "query", "index", "distractor")


class Unreadable(Exception):
    """One image cannot be used, for the reason given; the run counts it and goes on."""


@dataclass(frozen=True, slots=True)
class Record:
    """One raw image and its label."""

    domain: str
    label: str | None
    """Unique within the domain; None for a distractor, which belongs to no class."""
    source: str
    """The image's path inside the release, with `/`; the sample's key is made from it."""
    read: Callable[[], bytes]
    """Gives the image file's bytes; raises Unreadable or OSError."""
    group: str | None = None
    """A coarser or neighbouring unit that an evaluation may want to know (brand, alphabet, photo)."""
    split: str | None = None
    """What the release says: train, dev, test, or with a role, dev_query; None leaves it to split.py."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the release says about this image; kept in the sample's json."""
    num_bytes: int = 0
    """Size of the image file, 0 where it is made on reading; part of the set's fingerprint."""
    changed_at: float = 0.0
    """Modification time of the file that holds the bytes, 0 where there is none."""
    problem: str | None = None
    """Why this record can never become a sample; set by the source, counted and listed like an unreadable image."""

    @property
    def name(self) -> str:
        """`domain/path`, for messages."""
        return f"{self.domain}/{self.source}"


@dataclass(frozen=True, slots=True)
class Skip:
    """A record that did not become a sample, and why."""

    record: Record
    reason: str


def read_file(path: Path) -> bytes:
    """The bytes of an image file; a missing one is an unreadable image, not a crash."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise Unreadable(reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """`No such file or directory` rather than the error's number and path, which the message names already."""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
