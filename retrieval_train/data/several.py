"""The labels of a shard's samples: several each, in a file beside the sidecar; and whether class ids are those of the set.

Legend: N samples of a shard, K labels of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.manifest import Manifest, Shard, ShardError


class LabelError(ShardError):
    """A shard's labels are not those of its set. No sample of its own is damaged, and any class id might mean another class:
    so it ends the run, where a damaged sample would be replaced."""


@dataclass(frozen=True, eq=False)
class LabelLists:
    """The set's own class ids of every sample of one shard, each sample's ascending and once."""

    start_N1: NDArray[np.uint32]
    """Sample n has labels [start[n], start[n + 1])."""
    label_K: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        return self.start_N1.nbytes + self.label_K.nbytes

    @property
    def first_N(self) -> NDArray[np.int32]:
        """Of each sample, -1 for none."""
        first_N = np.full(len(self.start_N1) - 1, -1, np.int32)
        has_some = self.start_N1[:-1] < self.start_N1[1:]
        first_N[has_some] = self.label_K[self.start_N1[:-1][has_some]]
        return first_N

    @property
    def sample_K(self) -> NDArray[np.int64]:
        """The sample of each label."""
        num_N = (self.start_N1[1:] - self.start_N1[:-1]).astype(np.int64)
        return np.repeat(np.arange(len(num_N)), num_N)

    def of(self, at: int) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.label_K[self.start_N1[at] : self.start_N1[at + 1]].tolist())


def read_lists(manifest: Manifest, shard: Shard) -> LabelLists:
    """Of a shard whose images have several labels. Raises ShardError where there are none to be read, and LabelError."""
    pairs = manifest.labels(shard)
    row_K, label_K = pairs["row"].astype(np.int64), pairs["label"].astype(np.int64)
    refuse_foreign(manifest, shard, shard.labels, label_K, row_K, least=0)
    word_K = np.unique(row_K << 32 | label_K)  # by row, then by class
    starts = np.searchsorted(word_K >> 32, np.arange(shard.samples + 1))
    return LabelLists(starts.astype(np.uint32), (word_K & 0xFFFFFFFF).astype(np.int32))


def refuse_foreign(
    manifest: Manifest,
    shard: Shard,
    file: str,
    label_K: NDArray[np.integer],
    row_K: NDArray[np.integer] | None = None,
    *,
    least: int = -1,
) -> None:
    """Raises LabelError for a class id that the set has not, or of which it counts no image in the shard's split.

    `row_K`: the row of each label, None: one label a row. `least` is -1 where a row may have no label. Classes are looked
    at where they have been read already, which whoever trains does first.
    """
    if not len(label_K):
        return
    classes = manifest.__dict__.get("classes")
    is_wrong_K = label_K < least
    if classes is not None:
        is_wrong_K |= label_K >= len(classes)
        named = np.flatnonzero(~is_wrong_K & (label_K >= 0))
        is_wrong_K[named] = classes.counts(shard.split)[label_K[named]] == 0
    if not is_wrong_K.any():
        return
    at = int(is_wrong_K.argmax())
    row, label = at if row_K is None else int(row_K[at]), int(label_K[at])
    num_classes = len(manifest.classes)
    why = f"the set has {num_classes} classes, 0 to {num_classes - 1}"
    if 0 <= label < num_classes:
        why = f"the set counts no {shard.split} image of '{manifest.classes.class_names()[label]}'"
    raise LabelError(
        f"{manifest.name}/{file}: row {row} of {shard.file} has class id {label}, but {why} ({is_wrong_K.sum()} of "
        f"{len(label_K)} labels are such); the file is damaged or another set's: run `shards check` on the set, or copy it "
        "again"
    )
