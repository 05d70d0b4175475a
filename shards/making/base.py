"""A set that grows: what is in it already, so that only new images are added and classes keep their splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.key import hash_8
from shards.making.catalog import Catalog, ClassName, key_columns
from shards.manifest import MANIFEST, Manifest, Shard
from shards.record import SPLITS
from shards.stated import is_count

Hashes = NDArray[np.uint64]


class NothingNew(Exception):
    """Every image is in the base already, or is left out by the rules."""


@dataclass(frozen=True)
class Base:
    """The set as it was before."""

    manifest: Manifest

    @property
    def name(self) -> str:
        """The set's name when it was made, which its default domain comes from, whatever its folder is called now."""
        return Path(str(self.manifest.about.get("name", ""))).name or self.manifest.name

    @cached_property
    def hashes(self) -> Hashes:
        """Key hashes of its samples."""
        return np.concatenate([np.empty(0, np.uint64), *(self.manifest.sidecar(s)["key_hash"] for s in self.shards)])

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Of the manifest."""
        return self.manifest.shards

    @cached_property
    def source_hashes(self) -> Hashes:
        """Of its images' domains and paths, as in the catalog; reads every json once, in the order of the tars."""
        from shards.sources.set import read_meta

        hashes = []
        for shard in self.shards:
            rows = self.manifest.sidecar(shard)
            columns = (rows[name].tolist() for name in ("json_at", "json_bytes", "key_hash"))
            with (self.manifest.folder / shard.file).open("rb", buffering=0) as file:
                for about in zip(*columns, strict=True):
                    _, meta = read_meta(file, shard, *about)
                    hashes.append(hash_8(f"{meta['domain']}\0{meta['source']}"))
        return np.array(hashes, np.uint64)

    @cached_property
    def splits(self) -> Mapping[ClassName, str]:
        """Where each of its classes is: train if any of its images is."""
        classes = self.manifest.classes
        first = (classes.table > 0).argmax(0)
        return {name: SPLITS[at] for name, at in zip(classes.ids, first.tolist(), strict=True)}

    @cached_property
    def group_splits(self) -> Mapping[tuple[str, str], str]:
        """Where each of its groups is: train if any of its images is."""
        splits: dict[tuple[str, str], str] = {}
        for shard in sorted(self.shards, key=lambda shard: SPLITS.index(shard.split)):
            for group in np.unique(self.manifest.sidecar(shard)["group"]).tolist():
                splits.setdefault(self.manifest.groups[group], shard.split)
        return splits

    def counts(self, catalog: Catalog) -> NDArray[np.int64]:
        """Images that it has of each of the catalog's classes."""
        classes = self.manifest.classes
        images = dict(zip(classes.ids, classes.table.sum(0).tolist(), strict=True))
        return np.array([images.get(name, 0) for name in catalog.classes], np.int64)

    def classes_by_domain(self) -> Counter[str]:
        """How many it has."""
        return Counter(self.manifest.classes.domains)

    def indexed(self, catalog: Catalog) -> NDArray[np.bool_]:
        """(C + 1, splits): which of the catalog's classes have index images in it; the last row is for no class."""
        numbers = {name: at for at, name in enumerate(catalog.classes)}
        names = list(self.manifest.classes.ids)
        there = np.zeros((len(numbers) + 1, len(SPLITS)), bool)
        for shard in self.shards:
            if shard.role != "index":
                continue
            rows = self.manifest.labels(shard) if self.manifest.is_multi_label else self.manifest.sidecar(shard)
            for label in np.unique(rows["label"]).tolist():
                if label >= 0 and names[label] in numbers:
                    there[numbers[names[label]], SPLITS.index(shard.split)] = True
        return there

    def has(self, catalog: Catalog) -> NDArray[np.bool_]:
        """Rows whose images it has already, by domain and path.

        Changes the keys, in place, of images that it does not have and whose keys another image in it has: the set has
        `a.jpg`, and `a.png` is new.
        """
        found: NDArray[np.bool_] = np.isin(catalog["source_hash"], self.source_hashes)
        rows = np.flatnonzero(~found & ~catalog["is_out"] & np.isin(catalog["key_hash"], self.hashes))
        catalog["is_shared"][rows] = True
        for row, key in zip(rows.tolist(), catalog.keys(rows), strict=True):
            for name, value in key_columns(key, catalog.seed).items():
                catalog[name][row] = value
        return found


def refuse_damaged(manifest: Manifest) -> None:
    """ShardError where the manifest lacks what a set must say of its making to grow, or says what cannot be."""
    about = manifest.about
    kinds = {"config": dict, "given": dict, "fingerprint": str}
    wrong = [name for name, kind in kinds.items() if not isinstance(about.get(name), kind)]
    wrong += [name for name in ("skipped", "small") if not is_count(about.get(name, 0))]
    appended = about.get("appended", [])
    if not (isinstance(appended, list) and all(isinstance(part, dict) for part in appended)):
        wrong.append("appended")
    if wrong:
        raise ShardError(
            f"{manifest.folder / MANIFEST}: damaged: no usable {', '.join(wrong)}; copy or make the set again"
        )
