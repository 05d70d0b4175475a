"""One shard, reread: everything in its tar and beside it, held against each other and the manifest.

The tar's sum says whose fault a contradiction is: a tar with the right sum is what was written, so the sidecar is wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from shards.checking.problem import Part, Report
from shards.checking.schema import Meta, hash_of, judge, labels_of
from shards.checking.walk import Broken, Found, walk_samples
from shards.manifest import Shard
from shards.sidecar import Lists, Sidecar, open_lists

Count = Callable[[int], None]
SUM_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Piece:
    """One shard to be inspected, as plain data for another process."""

    folder: Path
    shard: Shard
    is_quick: bool
    """Sizes and sidecars only."""
    run: int
    """Tells one run from the next: a process keeps the set's lists from shard to shard."""


def inspect_shard(piece: Piece, count: Count) -> Report:
    """Everything that can be said of this shard; never raises for what is wrong with it."""
    lists, report = open_lists(piece.folder, piece.run), Report(piece.shard)
    sidecar = Sidecar(lists, report)
    path = piece.folder / piece.shard.file
    try:
        if not path.is_file():
            report.say(Part.TAR, "is no file" if path.exists() else "is missing")
        elif piece.is_quick:
            sidecar.check_layout(path.stat().st_size)
            report.hashes = sidecar.rows["key_hash"].copy() if sidecar.rows is not None else report.hashes
        else:
            reread(path, lists, sidecar, report, count)
    except OSError as error:
        report.say(Part.TAR, f"cannot be read ({error.strerror or error})")
    return report


def reread(path: Path, lists: Lists, sidecar: Sidecar, report: Report, count: Count) -> None:
    """The tar from beginning to end, twice: for its sum, and by tarfile."""
    shard, say = report.shard, report.say
    num_bytes = path.stat().st_size
    report.sha256 = sum_of(path)
    if not report.is_tar_right and num_bytes != shard.bytes:
        say(Part.TAR, f"{num_bytes} bytes, but the manifest says {shard.bytes}")
    elif not report.is_tar_right:
        sums = f"sha256 {report.sha256[:12]}, not {shard.sha256[:12]}"
        say(Part.TAR, f"the bytes changed after it was written ({sums})")
    elif num_bytes != shard.bytes:
        say(Part.ENTRY, f"{shard.file}: {shard.bytes} bytes are stated, it has {num_bytes}")
    with path.open("rb") as file:
        Rereading(file, lists, sidecar, report).run(num_bytes, count)
    if report.is_tar_right and len(report.hashes) != shard.samples:
        say(Part.ENTRY, f"{shard.file}: {shard.samples} samples are stated, it has {len(report.hashes)}")


class Rereading:
    """One pass through a tar."""

    def __init__(self, file: BinaryIO, lists: Lists, sidecar: Sidecar, report: Report) -> None:
        self.file, self.lists, self.sidecar, self.report = file, lists, sidecar, report
        self.wrong = Part.SAMPLE if report.is_tar_right else Part.TAR
        self.beside = Part.SIDECAR if report.is_tar_right else Part.TAR

    def run(self, num_bytes: int, count: Count) -> None:
        """Sample by sample."""
        is_seen = np.zeros(len(self.sidecar), bool)
        hashes: list[int] = []
        expected = 0
        for piece in walk_samples(self.file, num_bytes):
            hashed = hash_of(piece.key)
            at = self.sidecar.find_row(piece, hashed, expected)
            if at is not None:
                is_seen[at], expected = True, at + 1
            if isinstance(piece, Broken):
                self.report.say(self.wrong, piece.text, at, piece.key)
                continue
            self.inspect(piece, hashed, at, len(hashes))
            hashes.append(hashed or 0)
            count(piece.image.size)
        self.report.hashes = np.array(hashes, np.uint64)
        for first, last in find_runs(~is_seen):
            rest = f", and so are all to sample {last}" if last > first else ""
            what = "the tar has no such sample" if self.report.is_tar_right else "is missing"
            self.report.say(self.beside, f"{what}{rest}", first)

    def inspect(self, found: Found, hashed: int | None, at: int | None, position: int) -> None:
        """One sample; `position` is its place in the tar, `at` its row."""
        report, sidecar = self.report, self.sidecar
        is_multi_label = self.lists.manifest.is_multi_label
        meta, problems = judge(self.file, found, report.shard, is_multi_label=is_multi_label)
        for text in problems:
            report.say(self.wrong, text, position if at is None else at, found.key)
        if sidecar.rows is None:
            return
        if at is None:
            report.say(self.beside, "the sidecar has no such sample", position, found.key)
            return
        there = (found.image.offset_data, found.image.size, found.meta.offset_data, found.meta.size, hashed)
        stated = sidecar.offsets(at)
        if there != stated:
            text = f"the sidecar says (offset, size, offset, size, key hash) {stated}, the tar {there}"
            report.say(self.beside, text, at, found.key)
        if meta is not None and sidecar.is_usable:
            self.check_names(meta, at, found.key)

    def check_names(self, meta: Meta, at: int, key: str) -> None:
        """Domain, labels and group in the json against the numbers beside the tar."""
        domain, labels, group = self.sidecar.names(at)
        lists, said = self.lists, meta["domain"]
        if domain != said:
            part = self.blame(said in lists.manifest.domains)
            self.report.say(part, f"its json says domain {said!r}, the sidecar {domain!r}", at, key)
        named = sorted(f"{said}/{label}" for label in labels_of(meta))
        if labels is not None and lists.classes is not None and sorted(labels) != named:
            is_known = all((said, label) in lists.classes.ids for label in labels_of(meta))
            part = self.blame(is_known, Part.LABELS if lists.manifest.is_multi_label else Part.SIDECAR)
            self.report.say(part, f"its json says label {named}, the sidecar {sorted(labels)}", at, key)
        named_group = f"{said}/{meta['group']}" if meta["group"] else ""
        if group is not None and lists.groups is not None and group != named_group:
            part = self.blame(not meta["group"] or (said, meta["group"]) in lists.groups)
            self.report.say(part, f"its json says group {named_group!r}, the sidecar {group!r}", at, key)

    def blame(self, is_known: bool, beside: Part = Part.SIDECAR) -> Part:
        """Whose fault it is that a name in a json is another one beside the tar."""
        if not self.report.is_tar_right:
            return Part.TAR
        return beside if is_known else Part.NAMES


def sum_of(path: Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(SUM_BYTES):
            digest.update(block)
    return digest.hexdigest()


def find_runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(first, last) of every run of true ones."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return [(int(first), int(end) - 1) for first, end in zip(edges[::2], edges[1::2], strict=True)]
