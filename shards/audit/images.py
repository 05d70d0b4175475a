"""All images of one set, or of two, as one table: where each lies, what it is for, and what its file tells (traits.py).

Every image is read once, in several processes; 66 bytes of it are kept. A position in this table is what the rest of
the package calls an image; keys and pictures are read again for the few that a finding names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from shards import pool
from shards.audit.traits import BROKEN, TRAITS, read_traits
from shards.errors import ShardError
from shards.manifest import Manifest, Sample, Shard, read_sample
from shards.record import ROLES, SPLITS
from shards.ustar import BLOCK, parse_header

OURS, THEIRS = 0, 1
PLACE = np.dtype(
    [
        ("set", "u1"),  # OURS or THEIRS
        ("shard", "<u4"),
        ("row", "<u4"),
        ("split", "u1"),  # position in SPLITS, the set's folds behind them
        ("role", "u1"),  # position in ROLES
        ("label", "<i4"),  # position in Images.labels; -1: none
        ("domain", "<u2"),  # position in Images.domains
        ("group", "<u4"),  # of its own set, 0: none
    ]
)
IMAGE = np.dtype(PLACE.descr + TRAITS.descr)
TRAIN = SPLITS.index("train")
"""Trained on whatever is held out; images of folds are trained on, too (is_trained)."""
PIECE = 512
"""Images of a piece of work."""
BLANK_DEVIATION = 2.0
"""Standard deviation of the grey levels below which a picture shows nothing."""
Watch = Callable[[int, int, int], None]
"""Called with the number of things to do, of things done, and of bytes read."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive images of a shard."""

    at: int
    """Position of the first in the table."""
    folder: str
    shard: int
    start: int
    stop: int


@dataclass(frozen=True)
class Images:
    """The table, and how to get at the files behind it."""

    sets: tuple[Manifest, ...]
    """The set that is audited, and the one that it is compared with."""
    rows: np.ndarray
    """IMAGE, in the order of sets, shards and samples."""
    labels: tuple[str, ...]
    """`domain/label`, or several joined by `, `; those that only the other set has come last."""
    domains: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def is_ours(self) -> np.ndarray:
        """Images of the set that is audited."""
        return np.asarray(self.rows["set"] == OURS)

    @cached_property
    def is_broken(self) -> np.ndarray:
        """Images that cannot be decoded."""
        return np.asarray(self.rows["format"] == BROKEN)

    @cached_property
    def is_blank(self) -> np.ndarray:
        """Images of one colour."""
        return np.asarray(~self.is_broken & (self.rows["deviation"] < BLANK_DEVIATION))

    def label(self, at: int) -> str:
        """Of one image; empty for a distractor."""
        label = int(self.rows["label"][at])
        return self.labels[label] if label >= 0 else ""

    def place(self, at: int) -> str:
        """`dev query`, `train`; with the set's name where there are two."""
        row = self.rows[at]
        split, role = self.sets[row["set"]].classes.parts[row["split"]], ROLES[row["role"]]
        name = split if split == role else f"{split} {role}"
        return f"{self.sets[row['set']].name}: {name}" if len(self.sets) > 1 else name

    def samples(self, ats: Sequence[int]) -> Iterator[tuple[int, Sample]]:
        """(position, sample) of these images, in the order of the table; each shard is opened once."""
        for manifest, shard, chosen in self._by_shard(ats):
            rows = manifest.sidecar(shard)
            with open_shard(manifest, shard) as file:
                for at in chosen:
                    yield at, read_sample(file, rows[self.rows["row"][at]])

    def keys(self, ats: Sequence[int]) -> dict[int, str]:
        """Keys of these images, from the header in front of each."""
        found = {}
        for manifest, shard, chosen in self._by_shard(ats):
            starts = manifest.sidecar(shard)["image_at"][self.rows["row"][chosen]].astype(np.int64) - BLOCK
            with open_shard(manifest, shard) as file:
                for at, start in zip(chosen, starts.tolist(), strict=True):
                    file.seek(start)
                    header = parse_header(file.read(BLOCK))
                    if not header:
                        raise ShardError(
                            f"{shard.file}: no sample at byte {start}; run `shards check {manifest.folder}`"
                        )
                    found[at] = header[0].rpartition(".")[0]
        return found

    def _by_shard(self, ats: Sequence[int]) -> Iterator[tuple[Manifest, Shard, list[int]]]:
        ordered = np.unique(np.asarray(ats, np.int64))
        codes = self.rows["set"][ordered].astype(np.int64) << 32 | self.rows["shard"][ordered]
        for code in np.unique(codes):
            manifest = self.sets[code >> 32]
            yield manifest, manifest.shards[code & 0xFFFFFFFF], ordered[codes == code].tolist()


def is_trained(rows: np.ndarray) -> np.ndarray:
    """Images that are trained on; those of a fold where another one is held out."""
    return np.asarray((rows["split"] == TRAIN) | is_in_fold(rows))


def is_in_fold(rows: np.ndarray) -> np.ndarray:
    """Images that are trained on or evaluated with, by which fold is held out."""
    return np.asarray(rows["split"] >= len(SPLITS))


def open_shard(manifest: Manifest, shard: Shard) -> BinaryIO:
    """The tar, unbuffered: we read whole samples."""
    return (manifest.folder / shard.file).open("rb", buffering=0)


def read_images(sets: Sequence[Manifest], *, workers: int, watch: Watch) -> Images:
    """Reads every image of the sets."""
    names = Names(sets)
    places = [
        place_rows(sets, which, shard, names) for which, one in enumerate(sets) for shard in range(len(one.shards))
    ]
    rows = np.zeros(sum(map(len, places)), IMAGE)
    pieces, start = [], 0
    for place in places:
        for name in PLACE.names or ():
            rows[name][start : start + len(place)] = place[name]
        if len(place):
            folder = str(sets[place["set"][0]].folder)
            bounds = [(at, min(at + PIECE, len(place))) for at in range(0, len(place), PIECE)]
            pieces += [Piece(start + at, folder, int(place["shard"][0]), at, stop) for at, stop in bounds]
        start += len(place)

    def count(done: int, num_bytes: int) -> None:
        watch(len(rows), done, num_bytes)

    with closing(pool.run(read_piece, pieces, workers=workers, watch=count)) as found:
        for at, traits in found:
            for name in TRAITS.names or ():
                rows[name][at : at + len(traits)] = traits[name]
    return Images(tuple(sets), rows, tuple(names.labels), tuple(names.domains))


def read_piece(piece: Piece, count: Callable[[int], None]) -> tuple[int, np.ndarray]:
    """(position of the first, TRAITS) of a piece."""
    manifest = load(piece.folder)
    shard = manifest.shards[piece.shard]
    rows = manifest.sidecar(shard)
    with open_shard(manifest, shard) as file:

        def read() -> Iterator[bytes]:
            for row in rows[piece.start : piece.stop]:
                image = read_sample(file, row).image
                count(len(image))
                yield image

        return piece.at, read_traits(read())


@lru_cache(maxsize=2)
def load(folder: str) -> Manifest:
    """The set, once a process."""
    return Manifest.load(Path(folder))


class Names:
    """The labels and domains of both sets under common numbers: equal names are the same class."""

    def __init__(self, sets: Sequence[Manifest]) -> None:
        self._labels: dict[str, int] = {}
        self._domains: dict[str, int] = {}
        self.label_maps = [numbers(one.classes.class_names(), self._labels) for one in sets]
        self.domain_maps = [numbers(one.domains, self._domains) for one in sets]

    @property
    def labels(self) -> list[str]:
        """By common number."""
        return list(self._labels)

    @property
    def domains(self) -> list[str]:
        """By common number."""
        return list(self._domains)

    def several(self, names: Sequence[str]) -> int:
        """The number of a picture's several labels together."""
        return self._labels.setdefault(", ".join(sorted(names)), len(self._labels))


def numbers(names: Sequence[str], known: dict[str, int]) -> np.ndarray:
    """The number of each name; new names get the next ones."""
    return np.array([known.setdefault(name, len(known)) for name in names], np.int64)


def place_rows(sets: Sequence[Manifest], which: int, number: int, names: Names) -> np.ndarray:
    """PLACE of every sample of a shard."""
    manifest = sets[which]
    shard = manifest.shards[number]
    sidecar = manifest.sidecar(shard)
    known = {"label": len(manifest.classes), "domain": len(manifest.domains), "group": len(manifest.groups)}
    for name, count in known.items():
        if len(sidecar) and int(sidecar[name].max()) >= count:
            raise ShardError(
                f"{shard.sidecar}: {name} {sidecar[name].max()}, but the set has {count}; "
                f"run `shards check {manifest.folder}`"
            )
    rows = np.zeros(len(sidecar), PLACE)
    rows["set"], rows["shard"], rows["row"] = which, number, np.arange(len(sidecar))
    rows["split"], rows["role"] = manifest.classes.parts.index(shard.part), ROLES.index(shard.role)
    rows["group"] = sidecar["group"]
    rows["domain"] = names.domain_maps[which][sidecar["domain"]] if len(sidecar) else 0
    rows["label"] = np.append(names.label_maps[which], -1)[sidecar["label"]]
    add_several(manifest, shard, rows, names)
    return rows


def add_several(manifest: Manifest, shard: Shard, rows: np.ndarray, names: Names) -> None:
    """Where samples have several labels, all of them together count as one."""
    class_names = manifest.classes.class_names() if manifest.is_multi_label else []
    by_row: dict[int, list[str]] = {}
    for row, label in manifest.labels(shard).tolist():
        by_row.setdefault(row, []).append(class_names[label])
    for row, listed in by_row.items():
        rows["label"][row] = names.several(listed)
