"""Random numbers without a generator: keyed hashes and keyed permutations, so that any place of any order is at hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]
Word = NDArray[np.uint64]

_ROUNDS = 8  # with 4, some pairs come clearly more often than others
_FEW = 8  # items that are ordered by their hashes: of so few, a network favours some pairs in any number of rounds
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of splitmix64
_MASK = (1 << 64) - 1


def mixed(*parts: int) -> int:
    """One 64-bit key of several integers."""
    key = 0
    for part in parts:
        key = _finalised(((key ^ (part & _MASK)) + _GOLDEN) & _MASK)
    return key


def mixed_each(*parts: int | Int | Word) -> Word:
    """`mixed` for arrays: one key an entry, equal to `mixed` of its parts."""
    size = max(len(part) for part in parts if isinstance(part, np.ndarray))
    key = np.zeros(size, np.uint64)
    for part in parts:
        word = part.astype(np.uint64) if isinstance(part, np.ndarray) else np.uint64(part & _MASK)
        key = scrambled(key ^ word, _GOLDEN)
    return key


def scrambled(x: Word, key: int) -> Word:
    """splitmix64's finaliser: a good hash of 64 bits. Arrays of unsigned numbers wrap around without a warning."""
    x = x + np.uint64(key)
    x ^= x >> np.uint64(30)
    x *= np.uint64(_FIRST)
    x ^= x >> np.uint64(27)
    x *= np.uint64(_SECOND)
    x ^= x >> np.uint64(31)
    return x


def permuted(places: Int, size: int, key: int) -> Int:
    """Where a keyed permutation of range(size) sends `places`.

    A Feistel network permutes the next power of two, its halves taking turns; a value that falls outside goes through it
    again until it is inside (cycle walking), which keeps it a permutation. Under 2 passes on average.
    """
    if size <= _FEW:
        return np.argsort(mixed_each(key, np.arange(size)), kind="stable")[places]
    bits = (size - 1).bit_length()
    right_bits = np.uint64(bits // 2)
    right_mask, left_mask = (np.uint64((1 << count) - 1) for count in (bits // 2, bits - bits // 2))
    keys = [mixed(key, turn) for turn in range(_ROUNDS)]
    out = places.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> right_bits, out[todo] & right_mask
        for first, second in zip(keys[::2], keys[1::2], strict=True):
            left ^= scrambled(right, first) & left_mask
            right ^= scrambled(left, second) & right_mask
        out[todo] = (left << right_bits) | right
        todo = todo[out[todo] >= size]
    return out.astype(np.int64)


def permuted_each(places: Int, size_R: Int, key_R: Word) -> Int:
    """`permuted` where every entry has a permutation of its own: of range(size_R[i]) under key_R[i]."""
    out = np.empty(len(places), np.int64)
    few = size_R <= _FEW
    if few.any():
        item_F = np.arange(_FEW)
        hash_RF = mixed_each(np.repeat(key_R[few].view(np.int64), _FEW), np.tile(item_F, int(few.sum()))).reshape(
            -1, _FEW
        )
        hash_RF[item_F >= size_R[few, None]] = _MASK  # behind all others
        out[few] = np.take_along_axis(np.argsort(hash_RF, axis=1, kind="stable"), places[few, None], axis=1)[:, 0]
    if not few.all():
        out[~few] = _walked_each(places[~few], size_R[~few], key_R[~few])
    return out


def _walked_each(places: Int, size_R: Int, key_R: Word) -> Int:
    """`permuted_each` of more than a few."""
    bits_R = np.frexp((size_R - 1).astype(np.float64))[1]
    right_R = (bits_R // 2).astype(np.uint64)
    right_mask_R = (np.uint64(1) << right_R) - np.uint64(1)
    left_mask_R = (np.uint64(1) << (bits_R - bits_R // 2).astype(np.uint64)) - np.uint64(1)
    out = places.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        key, right_bits = key_R[todo], right_R[todo]
        left_mask, right_mask = left_mask_R[todo], right_mask_R[todo]
        left, right = out[todo] >> right_bits, out[todo] & right_mask
        for turn in range(0, _ROUNDS, 2):
            left ^= scrambled(right ^ scrambled(key ^ np.uint64(turn), _GOLDEN), _GOLDEN) & left_mask
            right ^= scrambled(left ^ scrambled(key ^ np.uint64(turn + 1), _GOLDEN), _GOLDEN) & right_mask
        out[todo] = (left << right_bits) | right
        todo = todo[out[todo] >= size_R[todo].astype(np.uint64)]
    return out.astype(np.int64)


def _finalised(x: int) -> int:
    x = ((x ^ (x >> 30)) * _FIRST) & _MASK
    x = ((x ^ (x >> 27)) * _SECOND) & _MASK
    return x ^ (x >> 31)
