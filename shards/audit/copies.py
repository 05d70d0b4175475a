"""Which images show the same: files with equal bytes, and pictures that a hash and a closer look take for one.

The result is a list of bundles, not of pairs: a placeholder that occurs 5,000 times is one bundle, not 12 million pairs.
Blank and broken images have no picture to compare; they are found by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shards import pool
from shards.audit.confirm import SIDE_PX, are_alike, read_picture
from shards.audit.hamming import near_pairs
from shards.audit.images import Images, Watch, load, open_shard
from shards.manifest import read_sample
from shards.record import Unreadable

EXACT, NEAR = "exact duplicate", "near duplicate"
MOST_ALIKE = 64
"""Different files with the same hash that are all compared with each other; of more, each with its NEIGHBOURS."""
NEIGHBOURS = 16
MOST_CANDIDATES = 5_000_000
"""Pairs that are looked at; a millisecond each. Beyond this, those with the nearest hashes."""
PIECE = 200
"""Pairs of a piece of work: at most 400 pictures, 5 MB."""
NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Bundle:
    """Images that show the same: each of `left` with each of `right`, or, without `right`, all of `left`."""

    kind: str
    """EXACT or NEAR."""
    left: np.ndarray
    right: np.ndarray
    bits: int = 0
    """In which their hashes differ."""


@dataclass(frozen=True)
class Copies:
    """What was found, and what the search had to leave out."""

    bundles: tuple[Bundle, ...]
    num_candidates: int
    """Pairs of different files with similar hashes that were looked at."""
    num_left_out: int = 0
    """Such pairs that were not looked at."""


class Piece(NamedTuple):
    """Pairs to look at, as plain data for another process."""

    start: int
    """Number of the first pair."""
    folders: tuple[str, ...]
    """Of the sets."""
    files: np.ndarray
    """(F, 3): set, shard and row of every file, in this order."""
    pairs: np.ndarray
    """(P, 2) positions in `files`."""


def find_copies(images: Images, *, most_bits: int, workers: int, watch: Watch) -> Copies:
    """Bundles with at least one image of ours: exact ones, then near ones."""
    exact, different = find_exact(images)
    pairs, bits, num_left_out = find_candidates(images.rows["phash"][different], most_bits)
    pairs = different[pairs]
    is_about_us = images.is_ours[pairs].any(1)
    pairs, bits = pairs[is_about_us], bits[is_about_us]
    alike = confirm(images, pairs, workers=workers, watch=watch)
    near = list(near_bundles(pairs[alike], bits[alike], in_crowd(images.rows["phash"], different, pairs[alike]), exact))
    ours = [bundle for bundle in exact if images.is_ours[bundle.left].any()]
    return Copies((*ours, *near), len(pairs), num_left_out)


def find_exact(images: Images) -> tuple[list[Bundle], np.ndarray]:
    """(bundles of files with equal bytes, the first image of every different file)."""
    shown = np.flatnonzero(~(images.is_blank | images.is_broken))
    content = images.rows["content"]
    order = shown[np.lexsort((content[shown, 1], content[shown, 0]))]
    is_first = np.append(True, (content[order][1:] != content[order][:-1]).any(1))[: len(order)]
    starts = np.flatnonzero(is_first)
    groups = np.split(order, starts[1:]) if len(order) else []
    bundles = [Bundle(EXACT, group, NONE) for group in groups if len(group) > 1]  # lexsort is stable: by position
    return bundles, np.sort(order[starts])


def find_candidates(hashes: np.ndarray, most_bits: int) -> tuple[np.ndarray, np.ndarray, int]:
    """((P, 2) positions, distances, number of pairs left out) of the pairs to look at."""
    values, group_of, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    order = np.argsort(group_of, kind="stable")
    starts = np.cumsum(sizes) - sizes
    across, distances = near_pairs(values, most_bits)
    shown = np.minimum(sizes, np.where(sizes > MOST_ALIKE, NEIGHBOURS, sizes))
    counts = shown[across[:, 0]] * shown[across[:, 1]]
    nearest = np.argsort(distances, kind="stable")
    fits = np.cumsum(counts[nearest]) <= MOST_CANDIDATES
    kept = np.sort(nearest[fits])
    pairs = [np.empty((0, 2), np.int64), *within_groups(order, starts, sizes)]
    num_within = sum(map(len, pairs))
    first, second = (np.repeat(across[kept, side], counts[kept]) for side in (0, 1))
    at = np.arange(len(first)) - np.repeat(np.cumsum(counts[kept]) - counts[kept], counts[kept])
    pairs.append(
        np.stack((order[starts[first] + at // shown[second]], order[starts[second] + at % shown[second]]), axis=1)
    )
    bits = np.concatenate((np.zeros(num_within, np.int64), np.repeat(distances[kept], counts[kept])))
    return np.concatenate(pairs), bits, int(counts.sum() - counts[kept].sum())


def within_groups(order: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of files with the same hash."""
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        group = order[start : start + size]
        reach = size if size <= MOST_ALIKE else NEIGHBOURS + 1
        for step in range(1, min(reach, size)):
            yield np.stack((group[:-step], group[step:]), axis=1)


def confirm(images: Images, pairs: np.ndarray, *, workers: int, watch: Watch) -> np.ndarray:
    """Which pairs are the same picture."""
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    folders = tuple(str(one.folder) for one in images.sets)
    pieces = []
    for start in range(0, len(order), PIECE):
        ats, inverse = np.unique(pairs[order[start : start + PIECE]], return_inverse=True)
        rows = images.rows[ats]
        files = np.stack([rows[name].astype(np.int64) for name in ("set", "shard", "row")], axis=1)
        pieces.append(Piece(start, folders, files, inverse.reshape(-1, 2)))
    alike = np.zeros(len(order), bool)

    def count(done: int, num_bytes: int) -> None:
        watch(len(order), done, num_bytes)

    with closing(pool.run(confirm_piece, pieces, workers=workers, watch=count)) as confirmed:
        for start, found in confirmed:
            alike[order[start : start + len(found)]] = found
    return alike


def confirm_piece(piece: Piece, count: Callable[[int], None]) -> tuple[int, np.ndarray]:
    """(number of the first pair, which pairs are the same picture)."""
    pictures = np.zeros((len(piece.files), SIDE_PX, SIDE_PX, 3), np.uint8)
    is_read = np.zeros(len(piece.files), bool)
    for at, data in enumerate(read_files(piece)):
        with suppress(Unreadable):  # its grey levels could be read, its colours cannot: it is like no other
            pictures[at], is_read[at] = read_picture(data), True
    found = np.zeros(len(piece.pairs), bool)
    for number, (one, other) in enumerate(piece.pairs.tolist()):
        found[number] = is_read[one] and is_read[other] and are_alike(pictures[one], pictures[other])
        count(0)
    return piece.start, found


def read_files(piece: Piece) -> Iterator[bytes]:
    """The images of a piece; each shard is opened once."""
    for which, number in np.unique(piece.files[:, :2], axis=0).tolist():
        manifest = load(piece.folders[which])
        shard = manifest.shards[number]
        rows = manifest.sidecar(shard)
        chosen = piece.files[(piece.files[:, :2] == (which, number)).all(1), 2]
        with open_shard(manifest, shard) as file:
            for row in chosen.tolist():
                yield read_sample(file, rows[row]).image


def in_crowd(hashes: np.ndarray, different: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Which pairs have one hash that more than MOST_ALIKE files share."""
    values, counts = np.unique(hashes[different], return_counts=True)
    one, other = hashes[pairs].T
    return np.asarray((one == other) & np.isin(one, values[counts > MOST_ALIKE]))


def near_bundles(
    pairs: np.ndarray, bits: np.ndarray, is_crowd: np.ndarray, exact: Sequence[Bundle]
) -> Iterator[Bundle]:
    """One bundle a pair of different files, with all copies of each; one for all that a crowd's pairs connect."""
    members = {int(bundle.left[0]): bundle.left for bundle in exact}
    for group in components(pairs[is_crowd]):
        yield Bundle(NEAR, np.concatenate([members.get(at, np.array([at])) for at in group]), NONE)
    for (one, other), distance in zip(pairs[~is_crowd].tolist(), bits[~is_crowd].tolist(), strict=True):
        yield Bundle(NEAR, members.get(one, np.array([one])), members.get(other, np.array([other])), distance)


def components(pairs: np.ndarray) -> list[list[int]]:
    """The images that pairs connect, directly or by others."""
    parent: dict[int, int] = {}

    def root(at: int) -> int:
        while parent.setdefault(at, at) != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    for one, other in pairs.tolist():
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for at in sorted(parent):
        groups.setdefault(root(at), []).append(at)
    return list(groups.values())
