"""Walks through a few items: every item once in each pass, none twice in a window."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_train.data.order.permutation import mixed_each
from retrieval_train.data.order.walk import walk


def windows(size: int, width: int, count: int, key: int) -> tuple[list[list[int]], list[list[int]]]:
    """Items and passes of the first windows of one walk."""
    item, number = walk(np.arange(count), np.full(count, size), width, np.full(count, key))
    return item.tolist(), number.tolist()


@settings(deadline=None, max_examples=120)
@given(st.integers(1, 40), st.integers(1, 14), st.integers(0, 2**40))
def test_every_pass_has_every_item_once_and_no_window_has_one_twice(size: int, width: int, key: int) -> None:
    items, passes = windows(size, width, 3 * size, key)  # so many end with a pass, and that three times
    stream = [item for window in items for item in window]
    assert [number for window in passes for number in window] == [at // size for at in range(len(stream))]
    for start in range(0, len(stream) - size + 1, size):
        assert sorted(stream[start : start + size]) == list(range(size)), "a pass"
    for window in items:
        times = [window.count(item) for item in range(size)]
        assert max(times) - min(times) <= 1, "so none twice where there are enough"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 50)), min_size=1, max_size=8), st.integers(1, 9))
def test_many_walks_at_once_are_the_same_as_each_alone(walks: list[tuple[int, int]], width: int) -> None:
    sizes, turns = np.array([size for size, _ in walks]), np.array([turn for _, turn in walks])
    keys = mixed_each(5, np.arange(len(walks))).astype(np.int64)
    together = walk(turns, sizes, width, keys)
    for at in range(len(walks)):
        alone = walk(turns[at : at + 1], sizes[at : at + 1], width, keys[at : at + 1])
        assert together[0][at].tolist() == alone[0][0].tolist() and together[1][at].tolist() == alone[1][0].tolist()


def test_passes_are_in_other_orders() -> None:
    items, _ = windows(50, 10, 50, 3)
    orders = {tuple(item for window in items[at : at + 5] for item in window) for at in range(0, 50, 5)}
    assert len(orders) == 10


def test_items_meet_all_others_in_the_long_run() -> None:
    items, _ = windows(21, 4, 4000, 8)
    met = {(one, other) for window in items for one in window for other in window if one != other}
    assert len(met) == 21 * 20


@pytest.mark.parametrize(("size", "width"), [(2, 1), (3, 2), (4, 2), (5, 2), (7, 3), (8, 2), (16, 2), (60, 1)])
def test_all_ways_to_fill_a_first_window_are_about_equally_likely(size: int, width: int) -> None:
    count = 40_000
    keys = mixed_each(1, np.arange(count)).astype(np.int64)
    items, _ = walk(np.zeros(count, np.int64), np.full(count, size), width, keys)
    times = Counter(map(tuple, items.tolist()))
    ways = int(np.prod(np.arange(size - width + 1, size + 1)))
    expected = count / ways
    chi2 = sum((seen - expected) ** 2 / expected for seen in times.values()) + (ways - len(times)) * expected
    assert (chi2 - (ways - 1)) / count < 0.07**2, "ways are off by less than 7 percent, in the root of the mean square"
