"""What `shards check` says of a set: one problem a line, with the file, the sample and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MOST = 20
"""Problems kept of one shard, and shown of a set; the others are counted."""


class Part(Enum):
    """Where the fault lies, which decides how it is repaired."""

    TAR = "tar"
    """The bytes are not those that were written."""
    SAMPLE = "sample"
    """The bytes are those that were written, and the sample in them is broken all the same."""
    SIDECAR = "sidecar"
    LABELS = "labels"
    ENTRY = "entry"
    """What manifest.json says of the shard."""
    NAMES = "names"
    """Lists of domains, classes or groups and the samples disagree."""
    LISTS = "lists"
    """Files that follow from the rest."""
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    part: Part
    file: str
    text: str
    row: int | None = None
    """Place of the sample in the shard, from 0."""
    key: str | None = None

    def __str__(self) -> str:
        sample = "" if self.row is None else f"sample {self.row}"
        key = "" if self.key is None else repr(self.key)
        where = ", ".join(word for word in (sample, key) if word)
        return printable(f"{self.file}: {where}{': ' if where else ''}{self.text}")


def printable(text: str) -> str:
    """The text with everything escaped that could confuse a terminal: it may come from damaged files."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
