"""The order of samples is arithmetic: complete, without repeats, and the same for everyone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_train.data.order import Order, permuted, row_seed, share


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_a_keyed_permutation_is_a_permutation(size: int, key: int) -> None:
    assert sorted(permuted(np.arange(size), size, key)) == list(range(size))


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 120), min_size=1, max_size=5),
    batch=st.integers(1, 40),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
)
def test_an_epoch_takes_every_sample_at_most_once(sizes: list[int], batch: int, seed: int, epoch: int) -> None:
    batch = min(batch, sum(sizes))
    order = Order(tuple(sizes), (1.0,) * len(sizes), batch, seed)
    first = epoch * order.epoch_steps
    drawn = [row for step in range(first, first + order.epoch_steps) for row in zip(*order.rows(step), strict=True)]
    assert len(drawn) == order.epoch_steps * batch > sum(sizes) - batch
    assert max(Counter(drawn).values()) == 1
    assert all(0 <= sample < sizes[number] for number, sample in drawn)


def slow_apportionment(quotas: tuple[int, ...]) -> list[int]:
    """Slot by slot: whichever set's next slot is due first, the first set on a tie."""
    taken, out = [0] * len(quotas), []
    for _ in range(sum(quotas)):
        due = [(taken[s] + 0.5) / quotas[s] if taken[s] < quotas[s] else float("inf") for s in range(len(quotas))]
        out.append(int(np.argmin(due)))
        taken[out[-1]] += 1
    return out


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([1, 2, 4, 8, 16, 64]), min_size=1, max_size=6), st.integers(1, 9))
def test_sets_take_turns_as_in_a_loop_anyone_believes(sizes: list[int], batch: int) -> None:
    batch = min(batch, sum(sizes))
    order = Order(tuple(sizes), (1.0,) * len(sizes), batch, 0)
    drawn = np.concatenate([order.rows(step)[0] for step in range(order.epoch_steps)])
    assert drawn.tolist() == slow_apportionment(order.quotas)[: len(drawn)]


def test_a_weight_of_two_takes_every_sample_twice_an_epoch() -> None:
    order = Order((10, 30), (2.0, 1.0), 10, seed=3)
    drawn = Counter(row for step in range(order.epoch_steps) for row in zip(*order.rows(step), strict=True))
    assert {number for (_, number) in drawn.items()} == {1, 2}
    assert all(count == (2 if number == 0 else 1) for (number, _), count in drawn.items())


def test_epochs_and_seeds_differ() -> None:
    order = Order((500,), (1.0,), 500, seed=0)
    first, second = order.rows(0)[1], order.rows(1)[1]
    other = Order((500,), (1.0,), 500, seed=1).rows(0)[1]
    assert (first != second).mean() > 0.9
    assert (first != other).mean() > 0.9


@pytest.mark.parametrize(("batch", "size"), [(7, 1), (7, 3), (64, 5), (8192, 4096)])
def test_ranks_share_a_batch_without_gap_or_overlap(batch: int, size: int) -> None:
    rows = [row for rank in range(size) for row in range(batch)[share(batch, rank, size)]]
    assert rows == list(range(batch))


def test_a_billion_samples_cost_no_memory_and_any_step_is_at_hand() -> None:
    order = Order((10**9, 3 * 10**8), (1.0, 0.5), 8192, seed=1)
    number, sample = order.rows(140_000)
    assert len(np.unique(number * 10**9 + sample)) == 8192


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.batch is 64, but an epoch has only 40 samples"):
        Order((40,), (1.0,), 64, seed=0)


def test_every_row_of_every_step_has_its_own_seed() -> None:
    seeds = {row_seed(0, step, row) for step in range(50) for row in range(50)}
    assert len(seeds) == 2500 and min(seeds) >= 0
