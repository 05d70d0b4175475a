"""Everything that a source said, a row a record: what decides where it goes in arrays, the rest in a file on disk.

A million records take about 70 MB of memory and, in the file, about 300 bytes each. The file also is how another
process learns what to read: one JSON line a record, found by its offset. Bytes that came with a record (from a table's
cell) are spilled to a second file.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError, did_you_mean
from shards.key import hash_8, key_hash, key_of
from shards.making.lines import BLOBS, RECORDS, read_records, say, to_json
from shards.place import Inline, Span, pack
from shards.record import Record

PLACES = (
    "train",
    *(f"{split}{role}" for split in ("dev", "test") for role in ("", "_query", "_index", "_distractor")),
)
NOT_SAID = -1
MAX_DOMAIN = 2**16 - 1  # of the sidecar
ClassName = tuple[str, str]  # domain, label


@dataclass(frozen=True, slots=True)
class Skip:
    """A record that did not become a sample, and why."""

    row: int
    reason: str


class Names:
    """Names in the order in which they first came, and their numbers."""

    def __init__(self, *first: Any) -> None:
        self.listed: list[Any] = list(first)
        self._numbers: dict[Any, int] = {name: at for at, name in enumerate(first)}

    def number(self, name: Any) -> int:
        """The name's number, a new one if it is new."""
        found = self._numbers.get(name)
        if found is None:
            found = self._numbers[name] = len(self.listed)
            self.listed.append(name)
        return found


@dataclass(frozen=True)
class Catalog:
    """All records; rows are numbered in the order in which they came."""

    folder: Path
    seed: int
    columns: Mapping[str, NDArray[Any]]
    pairs: NDArray[np.int64]
    """(n, 2): row and class number of every label, where records have several."""
    classes: list[ClassName]
    """(domain, label) by class number."""
    groups: list[tuple[str, str]]
    """(domain, group) by number; 0 is none."""
    domains: list[str]
    skips: list[Skip]
    """Of records that their source called unusable or that came twice."""
    fingerprint: str
    """Of what the input says and how large its files are, whatever their order."""
    changed_at: float
    """When the newest image file changed."""

    def __len__(self) -> int:
        return len(self.columns["at"])

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A column."""
        return self.columns[name]

    @property
    def is_multi_label(self) -> bool:
        """Whether images have several labels."""
        return len(self.pairs) > 0

    def record(self, row: int) -> Record:
        """The record of a row, read back."""
        return next(self.records([row]))

    def records(self, rows: Sequence[int] | NDArray[np.int64]) -> Iterator[Record]:
        """The records of these rows, one at a time."""
        rows = np.asarray(rows, np.int64)
        return read_records(self.folder, self["at"][rows].tolist(), self["length"][rows].tolist())

    def keys(self, rows: NDArray[np.int64]) -> Iterator[str]:
        """The samples' keys."""
        shared = self["is_shared"][rows].tolist()
        return (key_of(record, is_shared=flag) for record, flag in zip(self.records(rows), shared, strict=True))


class Filling:
    """A catalog while records come."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self._classes = Names()
        self._groups = Names(("", ""))
        self._domains = Names()
        self._skips: list[Skip] = []
        self._sum = 0
        self._changed_at = 0.0
        self._file: BinaryIO = (folder / RECORDS).open("wb")
        self._file_at = 0
        self._blobs: BinaryIO | None = None
        self._blob_at = 0
        self._columns = {name: array(code) for name, code in COLUMNS.items()}
        self._pairs = array("q")  # row, class, row, class, …

    def add(self, record: Record) -> None:
        """Writes the record down."""
        if "/" in record.domain or not record.domain:
            raise ShardError(f"{record.source}: the domain {record.domain!r} is empty or has a slash; rename it")
        row = len(self._columns["at"])
        if isinstance(record.place, Inline):
            record = replace(record, place=self._spill(record.place.data), num_bytes=len(record.place.data))
        if record.problem:
            self._skips.append(Skip(row, record.problem))
        for label in record.labels:
            self._pairs.extend((row, self._classes.number((record.domain, label))))
        said = say(record).encode()
        line = b"[%b,%b]\n" % (said, to_json((pack(record.place), record.key)).encode())
        self._sum += int.from_bytes(hashlib.sha256(said).digest(), "big")
        self._changed_at = max(self._changed_at, record.changed_at)
        values = {
            "at": self._file_at,
            "length": len(line),
            "said": len(said),
            "num_bytes": record.num_bytes,
            "label": self._classes.number((record.domain, record.label)) if record.label is not None else -1,
            "domain": self._domain(record),
            "group": self._groups.number((record.domain, record.group)) if record.group else 0,
            "place": place_number(record),
            "is_out": bool(record.problem),
            "source_hash": hash_8(f"{record.domain}\0{record.source}"),
            **key_columns(key_of(record, is_shared=False), self.seed),
        }
        for name, value in values.items():
            self._columns[name].append(value)
        self._file.write(line)
        self._file_at += len(line)

    def finish(self) -> Catalog:
        """Closes the files and finds what came twice and which keys are shared."""
        self._file.close()
        if self._blobs:
            self._blobs.close()
        if not self._file_at:
            raise ShardError("the input has no images")
        columns = {name: np.frombuffer(values, TYPES[name]) for name, values in self._columns.items()}
        columns["is_shared"] = np.zeros(len(columns["at"]), bool)
        catalog = Catalog(
            folder=self.folder,
            seed=self.seed,
            columns=columns,
            pairs=np.array(self._pairs, np.int64).reshape(-1, 2),
            classes=self._classes.listed,
            groups=self._groups.listed,
            domains=self._domains.listed,
            skips=self._skips,
            fingerprint=f"{self._sum % 2**256:064x}",
            changed_at=self._changed_at,
        )
        refuse_both(catalog)
        skip_repeated(catalog)
        part_shared(catalog)
        return catalog

    def _domain(self, record: Record) -> int:
        number = self._domains.number(record.domain)
        if number > MAX_DOMAIN:
            raise ShardError(
                f"{record.name}: more than {MAX_DOMAIN + 1} domains; a domain is a kind of object, like cars: is another "
                "column meant?"
            )
        return number

    def _spill(self, data: bytes) -> Span:
        if self._blobs is None:
            self._blobs = (self.folder / BLOBS).open("wb")
        self._blobs.write(data)
        self._blob_at += len(data)
        return Span(str(self.folder.absolute() / BLOBS), self._blob_at - len(data), len(data))


def refuse_both(catalog: Catalog) -> None:
    """One label or several: a set has one kind."""
    single = np.flatnonzero(catalog["label"] >= 0)
    if catalog.is_multi_label and len(single):
        name = catalog.record(int(single[0])).name
        raise ShardError(f"{name} has one label and others have several; give all of them a list of labels")


def skip_repeated(catalog: Catalog) -> None:
    """Of the same image of a domain, only the first is taken."""
    is_out = catalog["is_out"]
    rows = np.flatnonzero(~is_out)
    order = rows[np.argsort(catalog["source_hash"][rows], kind="stable")]
    hashes = catalog["source_hash"][order]
    labels = catalog["label"]
    is_twice = hashes[1:] == hashes[:-1]
    for before, row in zip(order[:-1][is_twice].tolist(), order[1:][is_twice].tolist(), strict=True):
        reason = "listed more than once"
        if labels[row] != labels[before]:
            other = catalog.classes[labels[before]][1] if labels[before] >= 0 else ""
            reason += f", before with the label {other!r}" if other else ", before without a label"
        catalog.skips.append(Skip(row, reason))
        is_out[row] = True


def part_shared(catalog: Catalog) -> None:
    """`a.jpg` and `a.png` would get one key; both get longer ones."""
    order = np.flatnonzero(~catalog["is_out"])
    order = order[np.argsort(catalog["key_hash"][order], kind="stable")]
    hashes = catalog["key_hash"][order]
    same = hashes[1:] == hashes[:-1]
    rows = np.union1d(order[1:][same], order[:-1][same])
    catalog["is_shared"][rows] = True
    for row, key in zip(rows.tolist(), catalog.keys(rows), strict=True):
        for name, value in key_columns(key, catalog.seed).items():
            catalog[name][row] = value


COLUMNS = {
    "at": "Q",
    "length": "I",
    "said": "I",
    "num_bytes": "Q",
    "label": "i",
    "domain": "H",
    "group": "I",
    "place": "b",
    "is_out": "b",
    "source_hash": "Q",
    "key_hash": "Q",
    "draw": "Q",
    "rank": "Q",
}
TYPES = {name: np.dtype(bool if name == "is_out" else array(code).typecode) for name, code in COLUMNS.items()}


def place_number(record: Record) -> int:
    """Number in PLACES of where the release puts the record; NOT_SAID where it says nothing."""
    if not record.split:
        return NOT_SAID
    if record.split not in PLACES:
        hint = did_you_mean(record.split, PLACES)
        raise ShardError(f"{record.name}: split {record.split!r} is not one of {', '.join(PLACES)}{hint}")
    has_label = record.label is not None or record.labels
    split, _, role = record.split.partition("_")
    if not has_label and not record.problem and (split == "train" or role in ("query", "index")):
        raise ShardError(
            f"{record.name}: no label, but split {record.split}; only distractors go without, as dev_distractor"
        )
    if has_label and role == "distractor":
        label = record.label or ", ".join(record.labels)
        raise ShardError(f"{record.name}: a {record.split} with the label {label!r}; distractors have none")
    return PLACES.index(record.split)


def key_columns(key: str, seed: int) -> dict[str, int]:
    """What is computed from a sample's key: its hash in the sidecar, a draw, and its place in the shuffle by `seed`."""
    rank = hashlib.blake2b(key.encode(), digest_size=16, salt=seed.to_bytes(8, "little")).digest()[:8]
    return {"key_hash": key_hash(key), "draw": hash_8(key), "rank": int.from_bytes(rank, "big")}


def fill(folder: Path, records: Iterable[Record], *, seed: int = 0) -> Catalog:
    """The catalog of these records."""
    filling = Filling(folder, seed=seed)
    for record in records:
        filling.add(record)
    return filling.finish()
