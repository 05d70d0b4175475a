"""Any sample of a shard set by its number, straight from the tar: one seek and one read."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from shards.manifest import Manifest, Sample, Shard, read_sample

_MOST_OPEN = 128  # tars that one process keeps open


class Reader:
    """The samples of some shards of one set, numbered through in shard and tar order.

    Safe to hand to worker processes: each opens the tars for itself.
    """

    def __init__(self, manifest: Manifest, shards: Sequence[Shard]) -> None:
        self.manifest = manifest
        self.shards = tuple(shards)
        self._starts = np.cumsum([0, *(shard.samples for shard in shards)])
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()
        self._pid = os.getpid()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, object]:
        kept = {name: value for name, value in self.__dict__.items() if name != "rows"}
        return {**kept, "_open": OrderedDict()}

    @cached_property
    def rows(self) -> list[NDArray[np.void]]:
        """The sidecar of each shard, memory-mapped."""
        return [self.manifest.sidecar(shard) for shard in self.shards]

    def labels(self) -> NDArray[np.int64]:
        """The set's own class id of every sample, -1 for none."""
        parts = [rows["label"].astype(np.int64) for rows in self.rows]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def domains(self) -> NDArray[np.int64]:
        """Position of every sample's domain in the manifest's domains."""
        parts = [rows["domain"].astype(np.int64) for rows in self.rows]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def read(self, number: int) -> Sample:
        """Raises ShardError that names the tar when its bytes are not what the sidecar says."""
        which = int(np.searchsorted(self._starts, number, side="right")) - 1
        row = self.rows[which][number - int(self._starts[which])]
        return read_sample(self._file(self.shards[which].file), row)

    def label(self, number: int) -> int:
        which = int(np.searchsorted(self._starts, number, side="right")) - 1
        return int(self.rows[which][number - int(self._starts[which])]["label"])

    def _file(self, name: str) -> BinaryIO:
        if self._pid != os.getpid():  # a forked worker must not share file positions with its parent
            self._open, self._pid = OrderedDict(), os.getpid()
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        if len(self._open) >= _MOST_OPEN:
            self._open.popitem(last=False)[1].close()
        file = Path(self.manifest.folder / name).open("rb")
        self._open[name] = file
        return file
