"""A finished shard set as files: the one reader and writer of everything in its folder but the images.

    manifest.json                shards, sums, domains, totals, how it was made; written last: no set without it
    classes.tsv groups.tsv       see classes.py
    train-000000.tar             samples: <key>.<ext> and <key>.json, plain ustar; one split and role a shard
    fold0-query-000000.tar       of a set with folds: train, and queries of dev where that fold is held out
    train-000000.tar.index.npy   its sidecar: one SIDECAR row a sample, in tar order
    train-000000.labels.npy      only where samples have several labels: one LABELS row a label, in tar order
    sizes.json wids.json         counts for open_clip and for wids (which gets the training shards only)
    skipped.csv                  images that did not make it, with the reason; absent when there are none

Needs numpy and nothing else: trainers read sets through this file and import no image library for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shards import __version__
from shards.classes import Classes, read_groups, write_groups
from shards.errors import ShardError, did_you_mean
from shards.key import key_hash
from shards.npy import read_rows
from shards.record import ROLES, SPLITS, part_of
from shards.sample import Sample, last_byte, parse_sample, read_sample, span_of, spans_of
from shards.stated import refuse_malformed

__all__ = [
    "LABELS",
    "MANIFEST",
    "SIDECAR",
    "Classes",
    "Manifest",
    "Sample",
    "Shard",
    "ShardError",
    "key_hash",
    "parse_sample",
    "read_sample",
    "span_of",
    "spans_of",
]

SCHEMA = 1
MANIFEST, CLASSES, GROUPS = "manifest.json", "classes.tsv", "groups.tsv"
SIDECAR = np.dtype(
    [
        ("image_at", "<u8"),
        ("image_bytes", "<u4"),
        ("json_at", "<u8"),
        ("json_bytes", "<u4"),
        ("key_hash", "<u8"),
        ("label", "<i4"),  # class id; -1: none, or several (LABELS)
        ("domain", "<u2"),  # position in Manifest.domains
        ("group", "<u4"),  # position in Manifest.groups, 0: none
    ]
)
LABELS = np.dtype([("row", "<u4"), ("label", "<i4")])


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar."""

    file: str
    split: str
    role: str
    samples: int
    bytes: int
    sha256: str
    fold: int | None = None
    """Of a set with folds: the one that it belongs to; its role is then that in the evaluation of this fold."""

    def as_dict(self) -> dict[str, Any]:
        """As it stands in manifest.json: without a fold where it has none."""
        stated = asdict(self)
        if self.fold is None:
            del stated["fold"]
        return stated

    @property
    def part(self) -> str:
        """`fold2`, or the split."""
        return part_of(self.split, self.fold)

    @property
    def sidecar(self) -> str:
        """Name of the file with its offsets."""
        return f"{self.file}.index.npy"

    @property
    def labels(self) -> str:
        """Name of the file with the labels of samples that have several."""
        return f"{self.file.removesuffix('.tar')}.labels.npy"


@dataclass(frozen=True)
class Manifest:
    """A set, opened for reading."""

    folder: Path
    name: str
    shards: tuple[Shard, ...]
    domains: tuple[str, ...]
    digest: str
    """sha256 of the shards' sums and the classes: equal for equal content, whatever the folder is called."""
    about: Mapping[str, Any] = field(repr=False, compare=False)
    """All of manifest.json: tool, config, totals, skipped."""
    has_tars: bool = True
    """Whether the tars lie in the folder too; else it holds a copy of everything but them."""
    fold: int | None = None
    """The fold that is held out, in what with_fold gives."""

    @classmethod
    def load(cls, folder: Path | str) -> Manifest:
        """Opens the set in this folder; reads manifest.json only."""
        folder = Path(folder)
        return cls.of(folder, read_manifest(folder), where=folder / MANIFEST)

    @classmethod
    def parse(cls, raw: bytes, folder: Path, *, name: str, where: object) -> Manifest:
        """The set whose manifest.json holds these bytes and came from `where`, with its tables to be in this folder
        and its tars elsewhere."""
        manifest = cls.of(folder, parse_manifest(raw, where), where=where)
        return replace(manifest, name=name, has_tars=False)

    @classmethod
    def of(cls, folder: Path, about: Mapping[str, Any], *, where: object) -> Manifest:
        """The set that a manifest.json states."""
        refuse_malformed(where, about)
        try:
            shards = tuple(Shard(**shard) for shard in about["shards"])
            domains = tuple(about["domains"])
            digest = content_digest(shards, domains, about["classes"])
        except (KeyError, TypeError) as error:
            raise ShardError(f"{where}: damaged ({error!r}); make the set again") from error
        return cls(folder, folder.resolve().name, shards, domains, digest, about)

    @property
    def num_folds(self) -> int:
        """0 for a set without folds."""
        return int(self.about.get("folds", 0))

    def with_fold(self, fold: int | None) -> Manifest:
        """The same set with this fold as its dev split, and the others as its training; ShardError where it has no such
        fold. None: the set as it is, which trains on all of them."""
        if fold is None:
            return self
        if not self.num_folds:
            raise ShardError(
                f"set '{self.name}' has no folds; make it again with `shards make ... --folds 5`, or give no fold"
            )
        if not 0 <= fold < self.num_folds:
            raise ShardError(f"set '{self.name}' has no fold {fold}; give 0 to {self.num_folds - 1}")
        assert self.fold is None, "of the set as it is"
        shards = tuple(hold_out(shard, fold) for shard in self.shards)
        digest = content_digest(shards, self.domains, self.about["classes"])
        return replace(self, shards=shards, digest=digest, fold=fold)

    def select(self, split: str, role: str | None = None) -> tuple[Shard, ...]:
        """The shards of one split, and of one role if given, in file order; may be empty."""
        for word, known in ((split, SPLITS), (role, (*ROLES, None))):
            if word not in known:
                words = [name for name in known if name]
                raise ShardError(
                    f"no split or role {word!r}; there are: {', '.join(words)}{did_you_mean(str(word), words)}"
                )
        return tuple(shard for shard in self.shards if shard.split == split and role in (None, shard.role))

    def sidecar(self, shard: Shard) -> np.ndarray:
        """The shard's rows as a read-only memmap of SIDECAR; checked against the manifest's count and size, and
        against the tar's size where the tar lies beside."""
        tar, path = self.folder / shard.file, self.folder / shard.sidecar
        try:
            num_bytes = tar.stat().st_size if self.has_tars else shard.bytes
        except OSError as error:
            raise ShardError(f"{tar.name}: cannot be read ({error}); run `shards check {self.folder}`") from error
        try:
            rows = read_rows(path)
        except (OSError, ValueError) as error:
            raise ShardError(f"{path.name}: cannot be read ({error}); run `shards check {self.folder}`") from error
        if rows.dtype != SIDECAR or rows.shape != (shard.samples,):
            raise ShardError(
                f"{path.name}: {rows.shape} rows of {rows.dtype.names or rows.dtype}, but the manifest says "
                f"{shard.samples} samples; the set is damaged, make it again"
            )
        if num_bytes != shard.bytes or last_byte(rows) > num_bytes:
            raise ShardError(
                f"{shard.file}: {num_bytes} bytes, but the manifest says {shard.bytes} and the last sample ends at "
                f"{last_byte(rows)}; copy the file again"
            )
        return rows

    @property
    def is_multi_label(self) -> bool:
        """Whether samples have several labels each."""
        return bool(self.about.get("multi_label"))

    def labels(self, shard: Shard) -> np.ndarray:
        """The shard's LABELS rows (row of the sidecar, class id), by row; empty where samples have one label."""
        if not self.is_multi_label:
            return np.empty(0, LABELS)
        path = self.folder / shard.labels
        try:
            pairs = read_rows(path)
        except (OSError, ValueError) as error:
            raise ShardError(f"{path.name}: cannot be read ({error}); run `shards check {self.folder}`") from error
        if pairs.dtype != LABELS or pairs.ndim != 1 or (len(pairs) and pairs["row"].max() >= shard.samples):
            raise ShardError(f"{path.name}: not the labels of {shard.file}; the set is damaged, make it again")
        return pairs

    @cached_property
    def classes(self) -> Classes:
        """Read on first use."""
        text = self._text(CLASSES)
        try:
            classes = Classes.from_text(text)
            if len(classes.folds) != self.num_folds:
                raise ValueError(f"counts of {len(classes.folds)} folds, and {MANIFEST} says {self.num_folds}")
            return classes.with_fold(self.fold)
        except (ValueError, OverflowError) as error:
            raise ShardError(f"{self.folder / CLASSES}: {error}; make the set again") from error

    @cached_property
    def groups(self) -> tuple[tuple[str, str], ...]:
        """(domain, group) by the sidecar's group id; 0 is ("", "")."""
        return tuple(read_groups(self._text(GROUPS)))

    def read(self, shard: Shard, row: int) -> Sample:
        """The sample at this place of the shard; opens the tar, so for more than a few keep it open: read_sample."""
        rows = self.sidecar(shard)
        if not 0 <= row < len(rows):
            raise ShardError(f"{shard.file}: no row {row}; it has {len(rows)} samples")
        try:
            with (self.folder / shard.file).open("rb") as file:
                return read_sample(file, rows[row])
        except ShardError as error:
            raise ShardError(f"row {row} of {error}") from error

    def _text(self, name: str) -> str:
        path = self.folder / name
        try:
            raw = path.read_bytes() if path.is_file() or not path.exists() else b""  # a queue would be waited for
        except OSError as error:
            raise ShardError(f"{path}: {error.strerror}; the set is incomplete, copy or make it again") from error
        if hashlib.sha256(raw).hexdigest() != self.about["classes"][name]:
            raise ShardError(f"{path}: changed after the set was made; class ids would be wrong, make the set again")
        return raw.decode("utf-8", "surrogateescape")


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json as it stands, or the reason why this folder is no set."""
    if not folder.is_dir():
        raise ShardError(f"no shard set {folder}{sets_beside(folder)}")
    path = folder / MANIFEST
    if not path.is_file():
        raise ShardError(f"{folder}: no {MANIFEST}, so it is half-written or not a shard set{sets_beside(folder)}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ShardError(f"{path}: damaged ({error!r}); copy or make the set again") from error
    return parse_manifest(raw, path)


def parse_manifest(raw: bytes, where: object) -> dict[str, Any]:
    """The object that a manifest.json of this version holds."""
    try:
        about: dict[str, Any] = json.loads(raw)
        schema = about["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ShardError(f"{where}: damaged ({error!r}); copy or make the set again") from error
    if schema != SCHEMA:
        raise ShardError(
            f"{where}: schema {schema}, and this version ({__version__}) reads {SCHEMA}; "
            "update the package or make the set again"
        )
    return about


def sets_beside(folder: Path) -> str:
    """`; there are: food, landmarks` for the sets in the same parent folder."""
    parent = folder.parent
    names = sorted(path.parent.name for path in parent.glob(f"*/{MANIFEST}")) if parent.is_dir() else []
    return f"; there are in {parent}: {', '.join(names)}{did_you_mean(folder.name, names)}" if names else ""


def hold_out(shard: Shard, fold: int) -> Shard:
    """What the shard is where this fold is held out."""
    if shard.fold is None:
        return shard
    return replace(shard, split="dev") if shard.fold == fold else replace(shard, role="train")


def content_digest(shards: Sequence[Shard], domains: Sequence[str], classes: Mapping[str, str]) -> str:
    """What Manifest.digest is."""
    content = [[shard.as_dict() for shard in shards], list(domains), dict(classes)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_sidecar(folder: Path, shard: Shard, rows: Iterable[tuple[int, ...]] | np.ndarray) -> None:
    """The offsets of one finished tar; rows as tuples or as a SIDECAR array."""
    np.save(folder / shard.sidecar, rows if isinstance(rows, np.ndarray) else np.array(list(rows), SIDECAR))


def write_labels(folder: Path, shard: Shard, pairs: Iterable[tuple[int, int]] | np.ndarray) -> None:
    """(row, class id) of one finished tar whose samples have several labels; tuples or a LABELS array."""
    np.save(folder / shard.labels, pairs if isinstance(pairs, np.ndarray) else np.array(list(pairs), LABELS))


def write_manifest(
    folder: Path,
    *,
    name: str,
    shards: Sequence[Shard],
    domains: Sequence[str],
    classes: Classes,
    groups: Sequence[tuple[str, str]],
    about: Mapping[str, Any],
) -> None:
    """Every file of the set but tars and sidecars; manifest.json comes last."""
    sums = {}
    for file, text in ((CLASSES, classes.to_text()), (GROUPS, write_groups(groups))):
        raw = text.encode("utf-8", "surrogateescape")
        (folder / file).write_bytes(raw)
        sums[file] = hashlib.sha256(raw).hexdigest()
    write_json(folder / "sizes.json", {shard.file: shard.samples for shard in shards})
    trained = [{"url": s.file, "nsamples": s.samples, "filesize": s.bytes} for s in shards if s.split == "train"]
    wids = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": trained}
    write_json(folder / "wids.json", wids)
    content = {
        "schema": SCHEMA,
        "tool": f"shards {__version__}",
        "name": name,
        **about,
        "domains": list(domains),
        "classes": sums,
        "totals": totals(shards),
        "shards": [shard.as_dict() for shard in shards],
    }
    write_json(folder / MANIFEST, content)


def totals(shards: Sequence[Shard]) -> dict[str, dict[str, dict[str, int]]]:
    """Shards, samples and bytes by split (or fold) and role."""
    table: dict[str, dict[str, dict[str, int]]] = {}
    for shard in shards:
        cell = table.setdefault(shard.part, {}).setdefault(shard.role, {"shards": 0, "samples": 0, "bytes": 0})
        cell["shards"] += 1
        cell["samples"] += shard.samples
        cell["bytes"] += shard.bytes
    return table


def write_json(path: Path, content: object) -> None:
    """Readable, sorted as given, newline at the end."""
    path.write_text(json.dumps(content, indent=1) + "\n")
