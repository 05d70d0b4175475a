"""Through a few items again and again, some at a time: every item once in each pass, none twice in one window.

A walk is an endless row of passes, each a keyed permutation of range(size), cut into windows of `width`. Where a pass
ends within a window, the next pass begins in it: those of its first `width` items that the window already has are moved
behind the others. So window t is found without the windows before it, and its pass says how often its items came before.

With fewer than 2 * width items that would reach into the pass's own end. There passes keep their order until one ends
with a window: in a row of equal passes, any window holds each item equally often, to one.

Legend: R walks, W the width of a window.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval_train.data.order.permutation import Int, mixed_each, permuted_each


def walk(turn_R: Int, size_R: Int, width: int, key_R: Int) -> tuple[Int, Int]:
    """Item and pass of the entries of window `turn` of each walk, both (R, W); `width` may be above `size`."""
    at_RW = turn_R[:, None] * width + np.arange(width)
    pass_RW, place_RW = np.divmod(at_RW, size_R[:, None])
    is_short_R = size_R < 2 * width
    same_R = np.where(is_short_R, passes_alike(size_R, width), 1)
    item_RW = _items(place_RW, size_R, key_R, pass_RW // same_R[:, None])
    last_R = pass_RW[:, -1]
    begin_R = last_R * size_R
    near = np.flatnonzero(~is_short_R & (begin_R % width > 0) & (at_RW[:, 0] < begin_R + width))
    if len(near):
        head_MW = _heads(last_R[near], size_R[near], width, key_R[near])
        row_K, column_K = np.nonzero((pass_RW[near] == last_R[near, None]) & (place_RW[near] < width))
        item_RW[near[row_K], column_K] = head_MW[row_K, place_RW[near[row_K], column_K]]
    return item_RW, pass_RW


def passes_alike(size_R: Int, width_R: Int | int) -> Int:
    """After so many passes one ends with a window."""
    alike: Int = width_R // np.gcd(width_R, size_R)
    return alike


def _heads(pass_R: Int, size_R: Int, width: int, key_R: Int) -> Int:
    """The first `width` items of a pass that begins within a window: first those that the window does not have yet.

    Of `width` items at most as many are in the window as it has places before the pass, so enough are left for the rest.
    """
    place_W = np.arange(width)
    head_RW = _items(np.broadcast_to(place_W, (len(size_R), width)), size_R, key_R, pass_R[:, None])
    tail_RW = _items(size_R[:, None] - width + place_W, size_R, key_R, pass_R[:, None] - 1)
    is_here_RW = place_W >= width - (pass_R * size_R % width)[:, None]
    offset_R1 = np.arange(len(size_R))[:, None] * size_R.max()
    is_taken_RW = np.isin(head_RW + offset_R1, (tail_RW + offset_R1)[is_here_RW])
    return np.take_along_axis(head_RW, np.argsort(is_taken_RW, axis=1, kind="stable"), axis=1)


def _items(place_RW: NDArray[np.int64], size_R: Int, key_R: Int, order_RW: Int) -> Int:
    """What lies at these places of the permutations `order`, (R, W); order is (R, W) or (R, 1)."""
    shape = place_RW.shape
    size = np.repeat(size_R, shape[1])
    key = mixed_each(np.repeat(key_R, shape[1]), np.broadcast_to(order_RW, shape).ravel())
    return permuted_each(place_RW.ravel(), size, key).reshape(shape)
