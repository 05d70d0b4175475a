"""The classes of a set, as columns: position = class id = rank of (domain, label) over all splits.

`classes.tsv` has one row a class (id, domain, label, group, train, dev, test), `groups.tsv` one row a group
(id, domain, group; id 0 is no group). UTF-8, tab-separated, with \\t, \\n, \\r and \\\\ written as two characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shards.errors import ShardError
from shards.record import SPLITS

CLASS_COLUMNS = ("id", "domain", "label", "group", *SPLITS)
GROUP_COLUMNS = ("id", "domain", "group")
ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
UNESCAPES = {written: character for character, written in ESCAPES.items()}


@dataclass(frozen=True)
class Classes:
    """Everything about the classes that is not in the samples themselves."""

    domains: tuple[str, ...]
    """Domain by class id."""
    labels: tuple[str, ...]
    """Label by class id, unique within the domain."""
    groups: tuple[str, ...]
    """Group by class id: the one that all images of the class share, else empty."""
    table: np.ndarray
    """(3, C) int64: images by split (train, dev, test) and class id, all roles together."""

    def __len__(self) -> int:
        return len(self.labels)

    def class_names(self) -> list[str]:
        """`domain/label` in id order."""
        return [f"{domain}/{label}" for domain, label in zip(self.domains, self.labels, strict=True)]

    def counts(self, split: str) -> np.ndarray:
        """int64 images by class id in this split; 0 for the classes of other splits."""
        if split not in SPLITS:
            raise ShardError(f"no split {split!r}; there are: {', '.join(SPLITS)}")
        row: np.ndarray = self.table[SPLITS.index(split)]
        return row

    @cached_property
    def ids(self) -> dict[tuple[str, str], int]:
        """Class id by (domain, label)."""
        return {name: at for at, name in enumerate(zip(self.domains, self.labels, strict=True))}

    @classmethod
    def count(cls, samples: Iterable[tuple[str, str | None, str | None, str]]) -> Classes:
        """From (domain, label, group, split) of every sample; samples without a label belong to no class."""
        images: Counter[tuple[str, str, str]] = Counter()
        groups: dict[tuple[str, str], set[str]] = {}
        for domain, label, group, split in samples:
            if label is not None:
                images[domain, label, split] += 1
                groups.setdefault((domain, label), set()).add(group or "")
        names = sorted(groups)
        table = np.array([[images[domain, label, split] for domain, label in names] for split in SPLITS], np.int64)
        return cls(
            domains=tuple(domain for domain, _ in names),
            labels=tuple(label for _, label in names),
            groups=tuple("".join(groups[name]) if len(groups[name]) == 1 else "" for name in names),
            table=table,
        )

    def to_text(self) -> str:
        """classes.tsv."""
        rows = zip(self.domains, self.labels, self.groups, *self.table.tolist(), strict=True)
        return write_rows(CLASS_COLUMNS, ((at, *row) for at, row in enumerate(rows)))

    @classmethod
    def from_text(cls, text: str) -> Classes:
        """Reads what to_text wrote."""
        rows = read_rows(CLASS_COLUMNS, text)
        domains, labels, groups = (tuple(row[at] for row in rows) for at in (1, 2, 3))
        table = np.array([[int(row[at]) for row in rows] for at in (4, 5, 6)], np.int64)
        return cls(domains, labels, groups, table)


def write_groups(groups: Sequence[tuple[str, str]]) -> str:
    """groups.tsv from (domain, group) by id; the first is ("", "")."""
    return write_rows(GROUP_COLUMNS, ((at, *group) for at, group in enumerate(groups)))


def read_groups(text: str) -> list[tuple[str, str]]:
    """(domain, group) by group id."""
    return [(domain, group) for _, domain, group in read_rows(GROUP_COLUMNS, text)]


def write_rows(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A header and one line a row."""
    lines = ["\t".join(columns), *("\t".join(escape(str(value)) for value in row) for row in rows)]
    return "\n".join(lines) + "\n"


def read_rows(columns: Sequence[str], text: str) -> list[list[str]]:
    """The rows below the header; ids must be 0, 1, 2, …"""
    header, *lines = text.removesuffix("\n").split("\n")
    if header.split("\t") != list(columns):
        raise ShardError(f"the columns are {header.split(chr(9))}, not {list(columns)}")
    rows = [[unescape(value) for value in line.split("\t")] for line in lines]
    for at, row in enumerate(rows):
        if len(row) != len(columns) or row[0] != str(at):
            raise ShardError(f"line {at + 2} is not row {at} of {len(columns)} columns")
    return rows


def escape(value: str) -> str:
    """A value as it stands in a cell."""
    return "".join(ESCAPES.get(character, character) for character in value)


def unescape(cell: str) -> str:
    """The value of a cell."""
    if "\\" not in cell:
        return cell
    pieces, at = [], 0
    while at < len(cell):
        width = 2 if cell[at] == "\\" else 1
        pieces.append(UNESCAPES.get(cell[at : at + width], cell[at : at + width]))
        at += width
    return "".join(pieces)
