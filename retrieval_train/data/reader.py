"""Any sample of a shard set by its number, straight from its tar: one read through the set's store.

Legend: R some samples; N all samples of the reader.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from retrieval_train.data.several import LabelError, LabelLists, read_lists, refuse_foreign
from retrieval_train.data.store.local import LocalStore
from retrieval_train.data.store.store import Store, StoreError
from shards.manifest import SIDECAR, Manifest, Sample, Shard, ShardError, key_hash, parse_sample, span_of, spans_of

log = logging.getLogger(__name__)

Kept = TypeVar("Kept", NDArray[np.void], LabelLists)
Made = TypeVar("Made")

MOST_BYTES = 64 * 2**20  # of sidecars and labels, kept in memory: 1.6 million samples with a label each


class Row(NamedTuple):
    """What the sidecar says of one sample."""

    shard: Shard
    at: int
    """Row of the shard."""
    entry: np.void
    """SIDECAR."""
    label: int
    """The set's own class id, -1 for none or where images have several: `Reader.labels_of` knows those."""
    domain: int
    """Position in the manifest's domains."""


class Reader:
    """The samples of some shards of one set, numbered through in shard and tar order.

    Safe to hand to worker processes, forked or spawned. Keeps no file open but what its store does: the sidecars that were
    used last are in memory.
    """

    def __init__(self, manifest: Manifest, shards: Sequence[Shard], store: Store | None = None) -> None:
        self.manifest = manifest
        self.shards = tuple(shards)
        self.store: Store = store or LocalStore(manifest.folder)
        self._kept: OrderedDict[int | str, NDArray[np.void] | LabelLists] = OrderedDict()
        self._kept_bytes = 0
        self._starts = np.cumsum([0, *(shard.samples for shard in shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": OrderedDict(), "_kept_bytes": 0}

    @property
    def split(self) -> str:
        return self.shards[0].split if self.shards else "train"

    def labels(self) -> NDArray[Any]:
        """int32 (N,): the set's own class id of every sample, the least where it has several, -1 for none."""
        if not self.manifest.is_multi_label:
            return self._column("label")
        return np.concatenate([np.empty(0, np.int32), *(self._open_lists(shard).first_N for shard in self.shards)])

    def label_pairs(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """(sample, the set's own class id) of every label of every sample, int64 and int32 (K,), by sample."""
        if not self.manifest.is_multi_label:
            label_N = self.labels()
            here = np.flatnonzero(label_N >= 0)
            return here, label_N[here]
        samples, labels = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        for shard, start in zip(self.shards, self._starts.tolist(), strict=False):
            lists = self._open_lists(shard)
            samples.append(lists.sample_K + start)
            labels.append(lists.label_K)
        return np.concatenate(samples), np.concatenate(labels)

    def domains(self) -> NDArray[Any]:
        """uint16 (N,): position of every sample's domain in the manifest's domains."""
        return self._column("domain")

    def groups(self) -> NDArray[Any]:
        """uint32 (N,): position of every sample's group in the manifest's groups, 0 for none."""
        return self._column("group")

    def row(self, number: int) -> Row:
        """What is known of a sample without its tar. Raises ShardError where the sidecar is damaged, StoreError where it
        cannot be had now."""
        which, at = self._where(number)
        entry = self._rows(which)[at]
        return Row(self.shards[which], at, entry, int(entry["label"]), int(entry["domain"]))

    def label(self, number: int) -> int:
        """The set's own class id, the least where it has several, -1 for none."""
        return next(iter(self.labels_of(self.row(number))), -1)

    def labels_of(self, row: Row) -> tuple[int, ...]:
        """The set's own class ids of a sample, ascending. Raises as `row` does, and LabelError."""
        if not self.manifest.is_multi_label:
            return (row.label,) if row.label >= 0 else ()
        lists = self._kept.get(row.shard.labels)
        if lists is None:
            lists = self._keep(row.shard.labels, self._open_lists(row.shard))
        self._kept.move_to_end(row.shard.labels)
        assert isinstance(lists, LabelLists)
        return lists.of(row.at)

    def read(self, number: int) -> Sample:
        """Raises ShardError that names the tar when its bytes are not what the sidecar says, and StoreError when they
        cannot be had now."""
        return self.read_row(self.row(number))

    def read_row(self, row: Row) -> Sample:
        """See `read`."""
        file, (start, num_bytes) = row.shard.file, span_of(row.entry)
        if not 0 < num_bytes <= row.shard.bytes - start:
            raise ShardError(
                f"{file}: row {row.at} of its sidecar points to {num_bytes} bytes from byte {start} on, but the tar "
                f"has {row.shard.bytes}; run `shards check` on the set"
            )
        return parse_sample(self.store.read(file, start, num_bytes), row.entry, file)

    def check(self, row: Row, meta: Mapping[str, Any], *, is_labelled: bool) -> None:
        """Raises ShardError where a sample's json is of another domain or, for labelled ones, another class than the
        sidecar says."""
        domain, said = self.manifest.domains[row.domain], meta.get("domain")
        stated: list[tuple[Any, ...]] = [(domain,)]
        found = stated
        if ids := self.labels_of(row) if is_labelled else ():
            classes = self.manifest.classes
            stated = [(classes.domains[one], classes.labels[one]) for one in ids]
            labels = meta.get("labels", [meta.get("label", stated[0][1])])
            found = [(said, label) for label in labels] if isinstance(labels, list) else []
        if said != domain or sorted(stated, key=repr) != sorted(found, key=repr):
            told = ", ".join("/".join(map(repr, names)) for names in stated)
            raise ShardError(
                f"{row.shard.file}: the json of row {row.at} says domain {said!r} and label "
                f"{meta.get('labels', meta.get('label'))!r}, its sidecar {told}; run `shards check` on the set"
            )

    def ahead(self, first: int, count: int) -> None:
        """Samples [first, first + count) are needed soon: one request a shard, since neighbours lie side by side. What is
        wrong, `read` will say."""
        last = min(first + count, len(self)) - 1
        while first <= last:
            which, at = self._where(first)
            end = min(int(self._starts[which + 1]) - 1, last)
            self._ahead(which, np.array([at, end - int(self._starts[which])]), is_stretch=True)
            first = end + 1

    def ahead_each(self, number_R: NDArray[np.int64]) -> None:
        """These samples are needed soon: one request each. What is wrong, `read` will say."""
        which_R = np.searchsorted(self._starts, number_R, side="right") - 1
        for which in np.unique(which_R).tolist():
            self._ahead(which, number_R[which_R == which] - self._starts[which], is_stretch=False)

    def place(self, number: int) -> tuple[Shard, int]:
        """Which tar holds a sample, and its row there."""
        which, at = self._where(number)
        return self.shards[which], at

    def find(self, key: str) -> list[int]:
        """The samples with this key: none or one, or more where a set has a key twice."""
        wanted, found = key_hash(key), []
        for which, start in enumerate(self._starts[:-1].tolist()):
            found += (np.flatnonzero(self._open(which)["key_hash"] == wanted) + start).tolist()
        return [number for number in found if self.read(number).key == key]

    def _where(self, number: int) -> tuple[int, int]:
        if not 0 <= number < len(self):
            raise IndexError(
                f"{self.manifest.name}: no sample {number}; these {len(self.shards)} shards have {len(self)}"
            )
        which = int(self._starts.searchsorted(number, side="right")) - 1
        return which, number - int(self._starts[which])

    def _ahead(self, which: int, at_R: NDArray[np.int64], *, is_stretch: bool) -> None:
        """Has these rows of a shard ready, each by itself or all from the first to the last."""
        file = self.shards[which].file
        try:
            rows_R = self._rows(which)[at_R]
        except ShardError as error:
            log.debug("%s: cannot be read ahead: %s", file, error)
            return
        start_R, stop_R = spans_of(rows_R)
        spans = zip(start_R.tolist(), stop_R.tolist(), strict=True)
        for start, stop in [(int(start_R[0]), int(stop_R[-1]))] if is_stretch else spans:
            if start < stop <= self.shards[which].bytes:  # not where a row is damaged
                self.store.ahead(file, start, stop - start)

    def _rows(self, which: int) -> NDArray[np.void]:
        """The sidecar of a shard, in memory: mapped files would take a file descriptor each."""
        rows = self._kept.get(which)
        if rows is None:
            rows = self._keep(which, np.frombuffer(self._open(which).tobytes(), SIDECAR))  # numpy would copy by field
        self._kept.move_to_end(which)
        return cast("NDArray[np.void]", rows)

    def _keep(self, name: int | str, made: Kept) -> Kept:
        """Makes room by what was used longest ago."""
        self._kept[name] = made
        self._kept_bytes += made.nbytes
        while self._kept_bytes > MOST_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return made

    def _open(self, which: int) -> NDArray[np.void]:
        """The sidecar of a shard, mapped while it is looked at."""
        shard = self.shards[which]
        rows: NDArray[np.void] = _told(self.manifest.sidecar, shard)
        if (domain := rows["domain"].max(initial=0)) >= len(self.manifest.domains):
            raise ShardError(
                f"{shard.sidecar}: domains up to {domain}, but the set has {len(self.manifest.domains)} domains; the set is "
                "damaged, make it again"
            )
        refuse_foreign(self.manifest, shard, shard.sidecar, rows["label"])
        if self.manifest.is_multi_label and (rows["label"] >= 0).any():
            raise LabelError(
                f"{self.manifest.name}/{shard.sidecar}: row {int((rows['label'] >= 0).argmax())} has a label, but the "
                f"images of this set have several, all in {shard.labels}; run `shards check` on the set"
            )
        return rows

    def _open_lists(self, shard: Shard) -> LabelLists:
        return _told(partial(read_lists, self.manifest), shard)

    def _column(self, name: str) -> NDArray[Any]:
        column_N = np.empty(len(self), SIDECAR[name])
        for which, start in enumerate(self._starts[:-1].tolist()):
            column_N[start : start + self.shards[which].samples] = self._open(which)[name]
        return column_N


def _told(read: Callable[[Shard], Made], shard: Shard) -> Made:
    """What `read` gives; StoreError where a file is not there, or may not be read, or not now."""
    try:
        return read(shard)
    except ShardError as error:
        if isinstance(error.__cause__, OSError):
            raise StoreError(str(error)) from error
        raise
