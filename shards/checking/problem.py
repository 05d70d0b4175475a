"""What `shards check` says of a set: one problem a line, with the file, the sample and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from shards.manifest import MANIFEST, Shard

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
    """The lists of domains, classes or groups and the samples disagree."""
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


@dataclass(slots=True)
class Report:
    """What was found in one shard."""

    shard: Shard
    problems: list[Problem] = field(default_factory=list)
    """The first of them."""
    num_problems: int = 0
    parts: set[Part] = field(default_factory=set)
    """Of all of them."""
    sha256: str | None = None
    """Of the tar as it is; None where nobody read it."""
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """Of the samples' keys, in tar order."""
    labels: NDArray[np.int64] | None = None
    """Class id of every label; None where the sidecar cannot be used."""

    @property
    def is_tar_right(self) -> bool:
        """Whether the tar's bytes are those that were written."""
        return self.sha256 == self.shard.sha256

    def say(self, part: Part, text: str, row: int | None = None, key: str | None = None) -> None:
        """Adds a problem."""
        files = {Part.SIDECAR: self.shard.sidecar, Part.LABELS: self.shard.labels, Part.ENTRY: MANIFEST}
        self.parts.add(part)
        self.num_problems += 1
        if len(self.problems) < MOST:
            self.problems.append(Problem(part, files.get(part, self.shard.file), text, row, key))


def printable(text: str) -> str:
    """The text with everything escaped that could confuse a terminal: it may come from damaged files."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
