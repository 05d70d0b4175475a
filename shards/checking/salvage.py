"""A broken shard without its source: what is intact in it stays, the rest is listed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from shards.checking.origin import Hashes, Origin
from shards.checking.reindex import Ids
from shards.checking.restore import plan_again, read_array
from shards.checking.schema import Meta, check_image, hash_of, judge
from shards.checking.walk import Broken, Found, walk_samples
from shards.manifest import LABELS, SIDECAR, Manifest, Shard
from shards.tar import Ready, TarWriter

NOTHING_LEFT = "nothing of it is left in the tar"


@dataclass(frozen=True, slots=True)
class Lost:
    """A sample that is gone."""

    row: int | None
    """Of the sidecar; None where that is gone too."""
    key: str | None
    reason: str


@dataclass(frozen=True)
class Wanted:
    """What the shard had."""

    hashes: Hashes
    """Of the keys, in tar order."""
    rows: NDArray[np.void] | None = None
    """The sidecar, where it can be read."""
    pairs: NDArray[np.void] | None = None
    """The labels of samples that have several, where they can be read."""

    @cached_property
    def places(self) -> dict[int, int]:
        """Row by hash."""
        return {hashed: row for row, hashed in enumerate(self.hashes.tolist())}

    def contradicts(self, hashed: int, meta: Meta, ids: Ids) -> bool:
        """Whether the sidecar has other names for this sample than its json: one of them is damaged."""
        row = self.places.get(hashed)
        if self.rows is None or row is None:
            return False
        numbers, labels = ids.numbers(meta)
        if self.pairs is not None and self.pairs["label"][self.pairs["row"] == row].tolist() != labels:
            return True
        return tuple(self.rows[["label", "domain", "group"]][row].item()) != numbers


@dataclass(slots=True)
class Remains:
    """What a broken tar still holds."""

    intact: dict[int, Found] = field(default_factory=dict)
    """By the hash of the key, in tar order."""
    broken: dict[int, Lost] = field(default_factory=dict)
    """Of those whose key can be read."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The shard that is left."""

    shard: Shard
    lost: list[Lost]
    num_again: int
    """Samples that were made again from the source."""

    def describe(self, *, is_same: bool, is_right: bool) -> str:
        """What became of it; whether its bytes are what they were at first, and whether those before it were as written."""
        num_kept = self.shard.samples
        if is_same:
            return "written again from what is intact and the source, same bytes"
        if self.lost:
            return f"{num_kept} of {num_kept + len(self.lost)} samples kept; {len(self.lost)} lost"
        if self.num_again or is_right:
            return f"all {num_kept} samples kept, {self.num_again} of them made again from the source"
        return f"its bytes changed, but none of its {num_kept} samples is seen to be broken; kept as they are"


def find_wanted(manifest: Manifest, shard: Shard, origins: Sequence[Origin]) -> Wanted | None:
    """By the sidecar, or by the plan where that cannot be read; None where nobody knows."""
    rows = read_array(manifest.folder / shard.sidecar, SIDECAR)
    if rows is not None:
        pairs = read_array(manifest.folder / shard.labels, LABELS) if manifest.is_multi_label else None
        return Wanted(rows["key_hash"], rows, pairs)
    planned = plan_again(origins, manifest.folder / "skipped.csv").get(shard.file)
    return Wanted(planned) if planned is not None else None


def find_remains(path: Path, shard: Shard, ids: Ids, wanted: Wanted | None, elsewhere: Collection[int]) -> Remains:
    """Looks at every byte of the tar; samples that are `elsewhere` too, by the hash of their key, count as broken.

    `wanted` has to agree with what is there; None where the tar is known to be right.
    """
    remains = Remains()
    if not path.is_file():
        return remains
    with path.open("rb") as file:
        for piece in walk_samples(file, path.stat().st_size):
            hashed = hash_of(piece.key)
            if hashed is None:
                continue
            reason = None
            if isinstance(piece, Broken):
                reason = piece.text
            elif hashed in elsewhere or hashed in remains.intact:
                reason = "its key occurs before"
            else:
                meta, problems = judge(file, piece, shard, is_multi_label=ids.is_multi_label)
                problems += ids.find_unknown(meta) if meta is not None else []
                if not problems and meta is not None and wanted and wanted.contradicts(hashed, meta, ids):
                    problems.append("its json and the sidecar contradict each other")
                reason = "; ".join(problems)
            if isinstance(piece, Found) and not reason:
                remains.intact[hashed] = piece
            elif hashed not in remains.intact:
                remains.broken[hashed] = Lost(None, piece.key, reason)
    return remains


def rebuild(
    old: Path, new: Path, shard: Shard, wanted: Wanted | None, remains: Remains, origins: Sequence[Origin]
) -> Rebuilt:
    """Writes `new` from what is intact in `old`, and from the source what is certainly the same there."""
    lost: list[Lost] = []
    num_again = 0
    with old.open("rb") if old.is_file() else nullcontext() as tar, new.open("wb") as stream:
        writer = TarWriter(stream)
        for row, hashed, found in arrange(wanted, remains):
            kept = read_ready(tar, found) if tar is not None and found is not None else None
            again, is_certain = make_again(shard, wanted, row, hashed, origins)
            ready = again if is_certain or kept is None else kept
            if ready is not None:
                writer.add(ready)
                num_again += ready != kept
            else:
                before = remains.broken.get(hashed)
                lost.append(Lost(row, before.key if before else None, before.reason if before else NOTHING_LEFT))
        sha256 = writer.end()
    if wanted is None:
        lost += remains.broken.values()
        num_unknown = shard.samples - len(writer.rows) - len(lost)
        lost += [Lost(None, None, NOTHING_LEFT)] * max(num_unknown, 0)
    rebuilt = replace(shard, samples=len(writer.rows), bytes=writer.num_bytes, sha256=sha256)
    return Rebuilt(rebuilt, lost, num_again)


def arrange(wanted: Wanted | None, remains: Remains) -> Iterator[tuple[int | None, int, Found | None]]:
    """(row, hash of the key, what is in the tar) in the order that the shard had; what it did not list comes last."""
    rest = dict(remains.intact)
    if wanted is not None:
        offsets = {found.image.offset_data: hashed for hashed, found in rest.items()}
        listed = set(wanted.hashes.tolist())
        places = wanted.rows["image_at"].tolist() if wanted.rows is not None else [None] * len(wanted.hashes)
        for row, (hashed, place) in enumerate(zip(wanted.hashes.tolist(), places, strict=True)):
            there = offsets.get(place)
            if hashed not in rest and there in rest and there not in listed:
                hashed = there  # the hash in the sidecar is what is damaged
            yield row, hashed, rest.pop(hashed, None)
    for hashed, found in rest.items():
        yield None, hashed, found


def make_again(
    shard: Shard, wanted: Wanted | None, row: int | None, hashed: int, origins: Sequence[Origin]
) -> tuple[Ready | None, bool]:
    """(the sample from the source, whether it is certainly what it was: image and json have the sizes in the sidecar).

    None where it is not there, or may be another image by now.
    """
    for origin in origins:
        ready = origin.sample(shard, hashed)
        if ready is None or list(check_image(ready.image, f".{ready.extension}")):
            continue
        is_certain = False
        if wanted is not None and wanted.rows is not None and row is not None:
            stated = wanted.rows[row]
            is_certain = (len(ready.image), len(ready.meta)) == (stated["image_bytes"], stated["json_bytes"])
        if is_certain or origin.is_unchanged:
            return ready, is_certain
    return None, False


def read_ready(tar: BinaryIO, found: Found) -> Ready:
    """A sample as it lies in the tar; its ids come from the new tar later."""
    tar.seek(found.image.offset_data)
    image = tar.read(found.image.size)
    tar.seek(found.meta.offset_data)
    meta = tar.read(found.meta.size)
    return Ready(found.key, found.image.name.rpartition(".")[2], image, meta, (0, 0, 0))
