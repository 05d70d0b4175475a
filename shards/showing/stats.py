"""What is in a set, as numbers: read from the sidecars, then asked by the tables, the page and `shards show --json`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from shards.errors import ShardError
from shards.manifest import Manifest
from shards.record import ROLES, SPLITS
from shards.showing.sizes import Sizes, measure_images
from shards.skipped import SKIPPED
from shards.ustar import BLOCK

NAMED = 5
"""Examples kept of what may be many: skipped images of one reason, classes in two splits."""
ROWS = np.dtype([("shard", "<u4"), ("row", "<u4"), ("label", "<i4"), ("domain", "<u2"), ("image_bytes", "<u4")])


@dataclass(frozen=True, slots=True)
class Named:
    """How many, and the first few of them."""

    count: int
    names: Sequence[str]


class Stats:
    """A set's numbers. A million samples take 18 MB; no image is touched before `sizes`."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        found = {(shard.part, shard.role) for shard in manifest.shards}
        self.places = sorted(found, key=rank_place)
        """(split or fold, role): train before dev, queries before what they search."""
        pieces = [read_rows(manifest, at) for at in range(len(manifest.shards))]
        self.rows = np.concatenate([np.empty(0, ROWS), *pieces])
        """Of all samples, shard after shard. A sample's position here is its place in the set."""

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def place_ids(self) -> np.ndarray:
        """Position in `places` of every sample."""
        by_shard = [self.places.index((shard.part, shard.role)) for shard in self.manifest.shards]
        ids: np.ndarray = np.array(by_shard, np.int64)[self.rows["shard"]]
        return ids

    def have_role(self, role: str, split: str | None = None) -> np.ndarray:
        """Whether each sample has this role, in one split or in any."""
        wanted = np.array([place[1] == role and split in (None, place[0]) for place in self.places], bool)
        have: np.ndarray = wanted[self.place_ids]
        return have

    @cached_property
    def counts(self) -> np.ndarray:
        """Images by domain and place."""
        shape = len(self.manifest.domains), len(self.places)
        cells = self.rows["domain"].astype(np.int64) * shape[1] + self.place_ids
        return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)

    @cached_property
    def sizes(self) -> Sizes:
        """Of the images in pixels; measuring them takes seconds."""
        return measure_images(self.manifest)

    @cached_property
    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """(place in the set, class id) of every label of every sample, by place; distractors do not occur."""
        if not self.manifest.is_multi_label:
            at = np.flatnonzero(self.rows["label"] >= 0)
            return at, self.rows["label"][at]
        starts = np.cumsum([0, *(shard.samples for shard in self.manifest.shards)])
        pairs = [self.manifest.labels(shard) for shard in self.manifest.shards]
        ids = np.concatenate([np.empty(0, np.int32), *(pair["label"] for pair in pairs)])
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self.manifest.classes):
            raise ShardError(f"{self.manifest.folder}: labels that the set does not know; run `shards check` on it")
        ats = [pair["row"].astype(np.int64) + start for pair, start in zip(pairs, starts, strict=False)]
        return np.concatenate([np.empty(0, np.int64), *ats]), ids

    def labels_of(self, place: int) -> np.ndarray:
        """Class ids of one sample."""
        at, ids = self.labels
        found: np.ndarray = ids[slice(*np.searchsorted(at, [place, place + 1]))]
        return found

    def class_sizes(self, domain: str, split: str | None = None) -> np.ndarray:
        """Images of each class of the domain that has any, in one split or in all."""
        classes = self.manifest.classes
        counts = classes.counts(split) if split else classes.table.sum(0)
        sizes: np.ndarray = counts[(self.class_domains == domain) & (counts > 0)]
        return sizes

    @cached_property
    def class_domains(self) -> np.ndarray:
        """Domain by class id."""
        return np.array(self.manifest.classes.domains, object)

    @cached_property
    def shared_classes(self) -> dict[tuple[str, str], Named]:
        """The classes that have images in both of two splits; pairs that share none are left out."""
        classes, names = self.manifest.classes, self.manifest.classes.class_names()
        shared = {}
        for pair in combinations(SPLITS, 2):
            both = np.flatnonzero(np.all([classes.counts(split) > 0 for split in pair], axis=0))
            if len(both):
                shared[pair] = Named(len(both), [names[at] for at in both[:NAMED]])
        return shared

    @cached_property
    def skipped(self) -> dict[str, Named]:
        """Images that did not make it into the set, by reason, the most frequent first."""
        found: dict[str, list[str]] = {}
        for row in read_skipped(self.manifest):
            found.setdefault(row["reason"], []).append(f"{row['domain']}/{row['source']}")
        named = {reason: Named(len(names), names[:NAMED]) for reason, names in found.items()}
        return dict(sorted(named.items(), key=lambda item: (-item[1].count, item[0])))

    def labels_together(self, *, most: int) -> list[tuple[int, int, int]]:
        """(class id, class id, images that have both) of the most frequent pairs; none where images have one label."""
        at, ids = self.labels
        order = np.lexsort((ids, at))
        at, ids = at[order], ids[order].astype(np.int64)
        codes = [np.empty(0, np.int64)]
        for distance in range(1, int(np.bincount(at).max()) if len(at) else 0):
            same = at[distance:] == at[:-distance]
            codes.append((ids[:-distance] * len(self.manifest.classes) + ids[distance:])[same])
        pairs, counts = np.unique(np.concatenate(codes), return_counts=True)
        first = np.lexsort((pairs, -counts))[:most]
        found = zip(pairs[first].tolist(), counts[first].tolist(), strict=True)
        return [(*divmod(code, len(self.manifest.classes)), count) for code, count in found]


def rank_place(place: tuple[str, str]) -> tuple[int, int, str, int]:
    """Sorts (split or fold, role) as people list them: folds come last, by their number."""
    part, role = place
    return (*SPLITS, part).index(part), len(part), part, (*ROLES, role).index(role)


def read_rows(manifest: Manifest, shard_id: int) -> np.ndarray:
    """ROWS of one shard; ShardError where its numbers mean nothing in this set."""
    shard = manifest.shards[shard_id]
    sidecar = manifest.sidecar(shard)
    for name, known in (("domain", len(manifest.domains)), ("label", len(manifest.classes))):
        if len(sidecar) and sidecar[name].max() >= known:
            raise ShardError(
                f"{shard.sidecar}: {name} {sidecar[name].max()}, but the set has {known}; "
                f"run `shards check {manifest.folder}`"
            )
    for part in ("image", "json"):
        at, num_bytes = sidecar[f"{part}_at"], sidecar[f"{part}_bytes"]
        if np.any((at < BLOCK) | (at > shard.bytes) | (at + num_bytes > shard.bytes)):
            raise ShardError(f"{shard.sidecar}: places outside of {shard.file}; run `shards check {manifest.folder}`")
    rows = np.empty(len(sidecar), ROWS)
    rows["shard"], rows["row"] = shard_id, np.arange(len(sidecar))
    for name in ("label", "domain", "image_bytes"):
        rows[name] = sidecar[name]
    return rows


def read_skipped(manifest: Manifest) -> Iterator[Mapping[str, str]]:
    """The rows of skipped.csv (domain, label, source, reason); none where the set has no such file."""
    path = manifest.folder / SKIPPED
    if not path.exists():
        return
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            for row in csv.DictReader(file):
                if not all(isinstance(row.get(name), str) for name in ("domain", "source", "reason")):
                    raise ShardError(f"{path}: a row without domain, source or reason; make the set again")
                yield row
    except (OSError, csv.Error) as error:
        raise ShardError(f"{path}: cannot be read ({error})") from error
