"""A set that grows: what is in it already, so that only new images are added and classes keep their splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shards.key import key_hash, key_of
from shards.making.catalog import Catalog, ClassName
from shards.manifest import Manifest
from shards.record import SPLITS


@dataclass(frozen=True)
class Base:
    """The set as it was before."""

    manifest: Manifest

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """Key hashes of its samples, sorted."""
        parts = [self.manifest.sidecar(shard)["key_hash"] for shard in self.manifest.shards]
        return np.sort(np.concatenate(parts))

    @cached_property
    def splits(self) -> Mapping[ClassName, str]:
        """Where each of its classes is: train if any of its images is."""
        classes = self.manifest.classes
        first = (classes.table > 0).argmax(0)
        return {name: SPLITS[at] for name, at in zip(classes.ids, first.tolist(), strict=True)}

    def has(self, catalog: Catalog) -> NDArray[np.bool_]:
        """Rows whose images it has already.

        Where a new `a.png` gives an `a.jpg` of the set another key, the sample's json tells which of the two is there.
        """
        found: NDArray[np.bool_] = np.isin(catalog["key_hash"], self.hashes)
        shared = np.flatnonzero(catalog["is_shared"])
        for row, record in zip(shared.tolist(), catalog.records(shared), strict=True):
            found[row] |= self.source_of(key_hash(key_of(record, is_shared=False))) == record.source
        return found

    def source_of(self, sought: int) -> str | None:
        """The `source` of the sample with this key hash."""
        for shard in self.manifest.shards:
            at = np.flatnonzero(self.manifest.sidecar(shard)["key_hash"] == sought)
            if len(at):
                return str(self.manifest.read(shard, int(at[0])).meta["source"])
        return None
