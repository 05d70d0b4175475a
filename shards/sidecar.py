"""The files beside a shard's tar, read by somebody who trusts neither them nor the lists that they count by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.checking.problem import Part, Report
from shards.checking.walk import Broken, Found
from shards.classes import Classes
from shards.errors import ShardError
from shards.manifest import LABELS, SIDECAR, Manifest
from shards.npy import find_flaw, read_rows
from shards.ustar import BLOCK, END

OFFSETS = (SIDECAR.names or ())[:5]


@dataclass(frozen=True, slots=True)
class Lists:
    """What samples are numbered by."""

    manifest: Manifest
    classes: Classes | None
    """None where damaged, which check.py says once for all shards."""
    groups: tuple[tuple[str, str], ...] | None


@lru_cache(maxsize=1)
def open_lists(folder: Path, run: int) -> Lists:
    """Of the set in this folder; `run` tells one reading of it from the next."""
    manifest = Manifest.load(folder)
    try:
        classes = manifest.classes
    except ShardError:
        classes = None
    try:
        groups = manifest.groups
    except ShardError:
        groups = None
    return Lists(manifest, classes, groups)


class Sidecar:
    """Rows and labels of one shard; what is wrong with them goes into its report."""

    def __init__(self, lists: Lists, report: Report) -> None:
        self.lists, self.report, self.folder = lists, report, lists.manifest.folder
        self.rows = self._read(report.shard.sidecar, SIDECAR, Part.SIDECAR)
        """None where they cannot be read."""
        self.pairs: NDArray[np.void] | None = np.empty(0, LABELS)
        self.is_usable = False
        """Whether every number is one of the lists."""
        if self.rows is None:
            return
        if lists.manifest.is_multi_label:
            self.pairs = self._read(report.shard.labels, LABELS, Part.LABELS)
        self.is_usable = self._are_numbers_known() and self._are_pairs_known()
        if self.pairs is not None and self.is_usable:
            labels = self.pairs["label"] if lists.manifest.is_multi_label else self.rows["label"]
            report.labels = labels[labels >= 0].astype(np.int64)
            self._starts = np.searchsorted(self.pairs["row"], np.arange(len(self.rows) + 1))

    def __len__(self) -> int:
        return 0 if self.rows is None else len(self.rows)

    def _read(self, name: str, dtype: np.dtype, part: Part) -> NDArray[np.void] | None:
        path = self.folder / name
        if not path.is_file():
            self.report.say(part, "is no file" if path.exists() else "is missing")
            return None
        try:
            rows = np.asarray(read_rows(path))
            if rows.dtype != dtype or rows.ndim != 1:
                raise ValueError(f"it holds {rows.shape} of {rows.dtype.names or rows.dtype}")
            flaw = find_flaw(path, dtype, len(rows))
        except (OSError, ValueError) as error:
            self.report.say(part, f"cannot be read ({error})")
            return None
        if flaw:
            self.report.say(part, flaw)
        return rows

    def _are_numbers_known(self) -> bool:
        assert self.rows is not None, "read before"
        lists, say = self.lists, self.report.say
        unknown = []
        for name, known in (("label", lists.classes), ("domain", lists.manifest.domains), ("group", lists.groups)):
            values = self.rows[name].astype(np.int64)
            is_wrong = (values < -1) | (values >= (len(known) if known is not None else 2**63 - 1))
            if is_wrong.any():
                unknown.append(name)
                at = int(is_wrong.argmax())
                say(Part.SIDECAR, f"{name} {values[at]}, and the set has no such number", at)
        is_single = self.rows["label"] != -1
        if lists.manifest.is_multi_label and is_single.any():
            say(Part.SIDECAR, "a label, in a set whose samples have several", int(is_single.argmax()))
        return not unknown

    def _are_pairs_known(self) -> bool:
        assert self.rows is not None, "read before"
        if self.pairs is None:
            return False
        at, labels = self.pairs["row"].astype(np.int64), self.pairs["label"].astype(np.int64)
        num_classes = len(self.lists.classes) if self.lists.classes is not None else 2**31
        is_known = bool(((at < len(self.rows)) & (labels >= 0) & (labels < num_classes)).all())
        if not is_known:
            self.report.say(Part.LABELS, "rows or classes that are none of this shard and set")
        elif (np.diff(at << 32 | labels) <= 0).any():
            self.report.say(Part.LABELS, "rows and classes are not in order")
        return is_known

    def check_layout(self, num_bytes: int) -> None:
        """What can be said without reading the tar of this size: whether the samples fill it, one behind the other."""
        shard, rows, say = self.report.shard, self.rows, self.report.say
        if num_bytes != shard.bytes:
            say(Part.TAR, f"{num_bytes} bytes, but the manifest says {shard.bytes}")
        if rows is None:
            return
        if len(rows) != shard.samples:
            say(Part.SIDECAR, f"{len(rows)} rows, but the manifest says {shard.samples} samples")
        image_at, image_bytes, json_at, json_bytes = (rows[name].astype(np.uint64) for name in OFFSETS[:4])
        ends = json_at + fill_blocks(json_bytes)
        follows = json_at == image_at + fill_blocks(image_bytes) + np.uint64(BLOCK)
        follows &= image_at == np.append(np.uint64(0), ends)[: len(rows)] + np.uint64(BLOCK)
        if not follows.all():
            say(Part.SIDECAR, "its bytes do not begin where those before end", int((~follows).argmax()))
        elif len(rows) and int(ends[-1]) + len(END) != shard.bytes:
            say(Part.SIDECAR, f"ends at byte {ends[-1]} of {shard.bytes}", len(rows) - 1)

    def find_row(self, piece: Found | Broken, hashed: int | None, expected: int) -> int | None:
        """The row of this piece of the tar, whose key has this hash."""
        is_left = expected < len(self)
        if self.rows is None or piece.key is None:
            return expected if is_left else None
        if is_left and self.rows["key_hash"][expected] == hashed:
            return expected
        is_same = self.rows["key_hash"] == (0 if hashed is None else np.uint64(hashed))
        if is_same.any():
            return int(is_same.argmax())
        is_here = isinstance(piece, Found) and is_left and self.rows["image_at"][expected] == piece.image.offset_data
        return expected if is_here else None

    def offsets(self, at: int) -> tuple[int, ...]:
        """OFFSETS of a row."""
        assert self.rows is not None, "there is such a row"
        row = self.rows[at].item()
        return tuple(row[: len(OFFSETS)])

    def names(self, at: int) -> tuple[str, list[str] | None, str | None]:
        """(domain, labels, group or "") by the numbers of a row; None for what the set's lists cannot tell."""
        assert self.rows is not None and self.pairs is not None, "asked only where usable"
        row, classes, groups = self.rows[at], self.lists.classes, self.lists.groups
        ids = self.pairs["label"][self._starts[at] : self._starts[at + 1]].tolist()
        if not self.lists.manifest.is_multi_label and row["label"] >= 0:
            ids = [int(row["label"])]
        labels = None if classes is None else [f"{classes.domains[number]}/{classes.labels[number]}" for number in ids]
        group = None if groups is None else "/".join(groups[row["group"]]) if row["group"] else ""
        return self.lists.manifest.domains[row["domain"]], labels, group


def fill_blocks(num_bytes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """What members of these sizes take in a tar, without their headers."""
    block = np.uint64(BLOCK)
    filled: NDArray[np.uint64] = (num_bytes + block - np.uint64(1)) // block * block
    return filled
