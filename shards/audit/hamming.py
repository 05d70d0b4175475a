"""All pairs of 64-bit hashes that differ in few bits, exactly, without comparing every pair.

Cut each hash into four bands of 16 bits. Two hashes that differ in at most 4 q + a bits (a < 4) are either within q bits
in one of the first a + 1 bands or within q - 1 in one of the others: else they would differ in more. So it is enough to
look, band by band, at the hashes whose band differs in that few bits: Norouzi, Punjani and Fleet, "Fast Search in
Hamming Space with Multi-Index Hashing" (CVPR 2012).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from shards.audit.phash import NUM_BANDS

BAND_BITS = 16
MOST_BITS = 16
"""Beyond this most pairs of any set are alike, and a band would have thousands of neighbours."""
BLOCK = 1 << 22
"""Pairs compared at a time: 100 MB."""


def near_pairs(hashes: np.ndarray, most_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """((P, 2) positions with the smaller first, in order, and P distances) of all pairs within `most_bits`."""
    assert 0 <= most_bits <= MOST_BITS, "a threshold that was checked before"
    found = [np.empty(0, np.int64)]
    for band in range(NUM_BANDS):
        radius = (most_bits - band + NUM_BANDS) // NUM_BANDS - 1  # q or q - 1
        if radius >= 0:
            found += band_pairs(hashes, band, radius, most_bits)
    codes = np.unique(np.concatenate(found))
    pairs = np.stack(np.divmod(codes, max(len(hashes), 1)), axis=1)
    return pairs, np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])


def band_pairs(hashes: np.ndarray, band: int, radius: int, most_bits: int) -> Iterator[np.ndarray]:
    """Codes (first * N + second) of the pairs within `most_bits` whose band differs in at most `radius` bits."""
    key = (hashes >> np.uint64(BAND_BITS * band)).astype(np.uint16)
    order = np.argsort(key, kind="stable")
    counts = np.bincount(key, minlength=1 << BAND_BITS)
    starts = np.cumsum(counts) - counts
    for left, right in colliding(key[order], counts, starts, radius):
        left, right = order[left], order[right]
        is_near = np.bitwise_count(hashes[left] ^ hashes[right]) <= most_bits
        low, high = np.minimum(left, right)[is_near], np.maximum(left, right)[is_near]
        yield low * len(hashes) + high


def colliding(
    key: np.ndarray, counts: np.ndarray, starts: np.ndarray, radius: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of places in the sorted keys whose keys differ in at most `radius` bits, each once, in blocks."""
    place = np.arange(len(key))
    for mask in masks(radius):
        other = key ^ mask
        first = np.where(other > key, starts[other], starts[key] + counts[key])  # each unordered pair of keys once
        if mask == 0:
            first = place + 1
        length = np.maximum(starts[other] + counts[other] - first, 0)
        for block in blocks(length):
            lengths = length[block]
            left = np.repeat(place[block], lengths)
            within = np.arange(len(left)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            yield left, np.repeat(first[block], lengths) + within


def masks(radius: int) -> Iterator[np.uint16]:
    """Every 16-bit number with at most `radius` bits set."""
    for num_bits in range(radius + 1):
        for bits in combinations(range(BAND_BITS), num_bits):
            yield np.uint16(sum(1 << bit for bit in bits))


def blocks(lengths: np.ndarray) -> Iterator[slice]:
    """Consecutive places whose lengths sum to about BLOCK."""
    ends = np.cumsum(lengths)
    total, start = int(ends[-1]) if len(ends) else 0, 0
    for goal in range(BLOCK, total + BLOCK, BLOCK):
        stop = int(np.searchsorted(ends, goal)) + 1
        if stop > start:
            yield slice(start, min(stop, len(lengths)))
            start = stop
