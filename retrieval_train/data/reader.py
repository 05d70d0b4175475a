"""Any sample of a shard set by its number, straight from its tar: one read through the set's store."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_train.data.store.local import LocalStore
from retrieval_train.data.store.store import Store
from shards.manifest import Manifest, Sample, Shard, ShardError, key_hash, parse_sample, span_of

_MOST_OPEN = 4096  # sidecars


class Reader:
    """The samples of some shards of one set, numbered through in shard and tar order.

    Safe to hand to worker processes, forked or spawned.
    """

    def __init__(self, manifest: Manifest, shards: Sequence[Shard], store: Store | None = None) -> None:
        self.manifest = manifest
        self.shards = tuple(shards)
        self.store: Store = store or LocalStore(manifest.folder)
        self._opened: OrderedDict[int, NDArray[np.void]] = OrderedDict()
        self._starts = np.cumsum([0, *(shard.samples for shard in shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": OrderedDict()}

    @property
    def split(self) -> str:
        return self.shards[0].split if self.shards else "train"

    def labels(self) -> NDArray[np.int64]:
        """The set's own class id of every sample, -1 for none."""
        return self._column("label")

    def domains(self) -> NDArray[np.int64]:
        """Position of every sample's domain in the manifest's domains."""
        return self._column("domain")

    def groups(self) -> NDArray[np.int64]:
        """Position of every sample's group in the manifest's groups, 0 for none."""
        return self._column("group")

    def read(self, number: int) -> Sample:
        """Raises ShardError that names the tar when its bytes are not what the sidecar says."""
        which, at = self._where(number)
        shard, row = self.shards[which], self._rows(which)[at]
        start, num_bytes = span_of(row)
        if not 0 < num_bytes <= shard.bytes - start:
            raise ShardError(
                f"{shard.file}: row {at} of its sidecar points to {num_bytes} bytes from byte {start} on, but the tar "
                f"has {shard.bytes}; run `shards check` on the set"
            )
        return parse_sample(self.store.read(shard.file, start, num_bytes), row, shard.file)

    def ahead(self, first: int, count: int) -> None:
        """Samples [first, first + count) are needed soon: one request a shard, since neighbours lie side by side."""
        last = min(first + count, len(self)) - 1
        while first <= last:
            which, at = self._where(first)
            end = min(int(self._starts[which + 1]) - 1, last)
            rows = self._rows(which)
            start = span_of(rows[at])[0]
            stop = sum(span_of(rows[end - int(self._starts[which])]))
            if stop > start:  # not where a row is damaged; `read` will say so
                self.store.ahead(self.shards[which].file, start, stop - start)
            first = end + 1

    def place(self, number: int) -> tuple[Shard, int]:
        """Which tar holds a sample, and its row there."""
        which, at = self._where(number)
        return self.shards[which], at

    def label(self, number: int) -> int:
        """The set's own class id, -1 for none."""
        which, at = self._where(number)
        return int(self._rows(which)[at]["label"])

    def domain(self, number: int) -> int:
        """Position of a sample's domain in the manifest's domains."""
        which, at = self._where(number)
        return int(self._rows(which)[at]["domain"])

    def find(self, key: str) -> list[int]:
        """The samples with this key: none or one, or more where a set has a key twice."""
        wanted = np.flatnonzero(self._column("key_hash", np.uint64) == key_hash(key))
        return [number for number in wanted.tolist() if self.read(number).key == key]

    def key_hash(self, number: int) -> int:
        """Names a sample in 8 bytes, without reading its tar."""
        which, at = self._where(number)
        return int(self._rows(which)[at]["key_hash"])

    def _where(self, number: int) -> tuple[int, int]:
        if not 0 <= number < len(self):
            raise IndexError(
                f"{self.manifest.name}: no sample {number}; these {len(self.shards)} shards have {len(self)}"
            )
        which = int(np.searchsorted(self._starts, number, side="right")) - 1
        return which, number - int(self._starts[which])

    def _rows(self, which: int) -> NDArray[np.void]:
        """The sidecar of a shard, memory-mapped; a kernel maps some ten thousand files at most, so the last used stay."""
        if which in self._opened:
            self._opened.move_to_end(which)
            return self._opened[which]
        if len(self._opened) >= _MOST_OPEN:
            self._opened.popitem(last=False)
        self._opened[which] = self.manifest.sidecar(self.shards[which])
        return self._opened[which]

    def _column(self, name: str, dtype: type = np.int64) -> NDArray[Any]:
        parts: list[NDArray[Any]] = [self._rows(which)[name].astype(dtype) for which in range(len(self.shards))]
        return np.concatenate(parts) if parts else np.empty(0, dtype)
