"""The classes of a set, as columns: position = class id = rank of (domain, label) over all splits.

`classes.tsv` has one row a class (id, domain, label, group, train, dev, test), `groups.tsv` one row a group
(id, domain, group; id 0 is no group). A set with folds has more columns in classes.tsv, fold0, fold1, …: the images of
train that are in each. UTF-8, tab-separated, with \\t, \\n, \\r and \\\\ written as two characters.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from shards.errors import ShardError
from shards.record import SPLITS, part_of

CLASS_COLUMNS = ("id", "domain", "label", "group", *SPLITS)
GROUP_COLUMNS = ("id", "domain", "group")
WRITTEN = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
ESCAPES = str.maketrans(WRITTEN)
UNESCAPES = {written: character for character, written in WRITTEN.items()}


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
    folds: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int64))
    """(K, C) int64: the images of train by fold and class id; (0, 0) for a set without folds."""

    def __len__(self) -> int:
        return len(self.labels)

    def class_names(self) -> list[str]:
        """`domain/label` in id order."""
        return [f"{domain}/{label}" for domain, label in zip(self.domains, self.labels, strict=True)]

    def counts(self, split: str) -> np.ndarray:
        """int64 images by class id in this split, or in `fold2`; 0 for the classes of others."""
        if split not in self.parts:
            raise ShardError(f"no split {split!r}; there are: {', '.join(self.parts)}")
        at = self.parts.index(split)
        row: np.ndarray = self.table[at] if at < len(SPLITS) else self.folds[at - len(SPLITS)]
        return row

    @property
    def parts(self) -> tuple[str, ...]:
        """train, dev, test, and fold0, fold1, … where there are folds."""
        return (*SPLITS, *fold_columns(len(self.folds)))

    def with_fold(self, fold: int | None) -> Classes:
        """The images of this fold counted as dev, and no folds any more. None: the same."""
        if fold is None:
            return self
        table = self.table.copy()
        table[SPLITS.index("train")] -= self.folds[fold]
        table[SPLITS.index("dev")] += self.folds[fold]
        return Classes(self.domains, self.labels, self.groups, table)

    def with_counts(self, labelled: Iterable[tuple[str, np.ndarray]]) -> Classes:
        """The same classes with the images that there are: (split or `fold2`, class id of every label) of each shard."""
        counts = np.zeros((len(self.parts), len(self)), np.int64)
        for part, labels in labelled:
            counts[self.parts.index(part)] += np.bincount(labels, minlength=len(self))
        table, folds = by_split(counts)
        return replace(self, table=table, folds=folds)

    @cached_property
    def ids(self) -> dict[tuple[str, str], int]:
        """Class id by (domain, label)."""
        return {name: at for at, name in enumerate(zip(self.domains, self.labels, strict=True))}

    @classmethod
    def count(cls, samples: Iterable[tuple[str, str | None, str | None, str]], *, num_folds: int = 0) -> Classes:
        """From (domain, label, group, split or `fold2`) of every sample; samples without a label belong to no class."""
        images: Counter[tuple[str, str, str]] = Counter()
        groups: dict[tuple[str, str], set[str]] = {}
        for domain, label, group, split in samples:
            if label is not None:
                images[domain, label, split] += 1
                groups.setdefault((domain, label), set()).add(group or "")
        names = sorted(groups)
        parts = (*SPLITS, *fold_columns(num_folds))
        counts = np.array([[images[domain, label, part] for domain, label in names] for part in parts], np.int64)
        table, folds = by_split(counts)
        return cls(
            domains=tuple(domain for domain, _ in names),
            labels=tuple(label for _, label in names),
            groups=tuple("".join(groups[name]) if len(groups[name]) == 1 else "" for name in names),
            table=table,
            folds=folds,
        )

    def to_text(self) -> str:
        """classes.tsv."""
        counts = [map(str, row) for row in (*self.table.tolist(), *self.folds.tolist())]
        columns = (*CLASS_COLUMNS, *self.parts[len(SPLITS) :])
        return write_rows(columns, (*map(escape, (self.domains, self.labels, self.groups)), *counts))

    @classmethod
    def from_text(cls, text: str) -> Classes:
        """Reads what to_text wrote."""
        num_folds = max(text.partition("\n")[0].count("\t") + 1 - len(CLASS_COLUMNS), 0)
        domains, labels, groups, *columns = read_columns((*CLASS_COLUMNS, *fold_columns(num_folds)), text)
        table, folds = np.split(np.array([list(map(int, column)) for column in columns], np.int64), [len(SPLITS)])
        return cls(tuple(map(sys.intern, domains)), tuple(labels), tuple(map(sys.intern, groups)), table, folds)


def fold_columns(num_folds: int) -> tuple[str, ...]:
    """fold0, fold1, …"""
    return tuple(part_of("train", fold) for fold in range(num_folds))


def by_split(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(table, folds) of Classes, from images by split without those in folds, the folds behind them, and class id."""
    table, folds = np.split(counts, [len(SPLITS)])
    table[SPLITS.index("train")] += folds.sum(0)
    return table, folds


def write_groups(groups: Sequence[tuple[str, str]]) -> str:
    """groups.tsv from (domain, group) by id; the first is ("", "")."""
    columns = zip(*groups, strict=True) if groups else ((), ())
    return write_rows(GROUP_COLUMNS, [escape(column) for column in columns])


def read_groups(text: str) -> list[tuple[str, str]]:
    """(domain, group) by group id."""
    domains, groups = read_columns(GROUP_COLUMNS, text)
    return list(zip(map(sys.intern, domains), groups, strict=True))


def write_rows(names: Sequence[str], columns: Sequence[Iterable[str]]) -> str:
    """A header and one line a row; the columns are those after the id."""
    lines = (f"{at}\t" + "\t".join(row) for at, row in enumerate(zip(*columns, strict=True)))
    return "\n".join(("\t".join(names), *lines)) + "\n"


def read_columns(names: Sequence[str], text: str) -> list[list[str]]:
    """The columns after the id, which must be 0, 1, 2, …

    A million rows are split at once, with the ends of the lines as cells of their own: a line at a time takes four times
    as long.
    """
    header, _, body = (text.removesuffix("\n") + "\n").partition("\n")
    if header.split("\t") != list(names):
        raise ShardError(f"the columns are {header.split(chr(9))}, not {list(names)}")
    num_rows, width = body.count("\n"), len(names) + 1
    cells = body.replace("\n", "\t\n\t").split("\t")
    ids, *columns, ends = (cells[at:-1:width] for at in range(width))
    is_whole = len(cells) == num_rows * width + 1 and ends.count("\n") == num_rows
    if not is_whole or ids != list(map(str, range(num_rows))):
        raise ShardError(describe_damage(body, len(names)))
    return [list(map(unescape, column)) for column in columns] if "\\" in body else columns


def describe_damage(body: str, width: int) -> str:
    """Which line is the first that is not as it should be."""
    for at, line in enumerate(body.split("\n")):
        cells = line.split("\t")
        if len(cells) != width or cells[0] != str(at):
            break
    return f"line {at + 2} is not row {at} of {width} columns"


def escape(values: Iterable[str]) -> Iterator[str]:
    """The values as they stand in cells."""
    return (value.translate(ESCAPES) for value in values)


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
