"""The pieces of the arithmetic: permutations, apportionment, the shuffle by blocks, one dealing."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_train.data.order.apportion import counted, largest_remainders, slots
from retrieval_train.data.order.deal import Deal
from retrieval_train.data.order.order import sample_seeds, share
from retrieval_train.data.order.permutation import mixed, mixed_each, permuted, permuted_each
from retrieval_train.data.order.shuffle import Shuffle

QUOTAS = st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 16, 64, 97]), min_size=1, max_size=7).filter(any)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_a_keyed_permutation_is_a_permutation(size: int, key: int) -> None:
    assert sorted(permuted(np.arange(size), size, key)) == list(range(size))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=9), st.integers(0, 2**60))
def test_many_keyed_permutations_at_once_are_permutations(sizes: list[int], key: int) -> None:
    size_R, place_R = np.repeat(sizes, sizes), np.concatenate([np.arange(size) for size in sizes])
    which_R = np.repeat(np.arange(len(sizes)), sizes)
    sent_R = permuted_each(place_R, size_R, mixed_each(key, which_R))
    for number, size in enumerate(sizes):
        assert sorted(sent_R[which_R == number]) == list(range(size))


def test_keys_of_arrays_are_the_keys_of_their_entries() -> None:
    numbers = np.array([0, 1, 7, 2**40, -1])
    assert mixed_each(3, numbers, -5).tolist() == [mixed(3, int(number), -5) for number in numbers]


def slow_apportionment(quotas: list[int]) -> list[int]:
    """Slot by slot: whichever party's next slot is due first, the first party on a tie."""
    taken, out = [0] * len(quotas), []
    for _ in range(sum(quotas)):
        due = [(taken[p] + 0.5) / quotas[p] if taken[p] < quotas[p] else float("inf") for p in range(len(quotas))]
        out.append(int(np.argmin(due)))
        taken[out[-1]] += 1
    return out


@settings(deadline=None, max_examples=100)
@given(QUOTAS, st.data())
def test_parties_take_turns_as_in_a_loop_anyone_believes(quotas: list[int], data: st.DataObject) -> None:
    expected = slow_apportionment(quotas)
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    party, own = slots(np.array(quotas), start, stop)
    assert party.tolist() == expected[start:stop]
    assert own.tolist() == [expected[:at].count(expected[at]) for at in range(start, stop)]
    assert counted(np.array(quotas), stop).tolist() == [expected[:stop].count(p) for p in range(len(quotas))]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 500), QUOTAS)
def test_largest_remainders_give_all_seats_and_none_beside_the_exact_share(total: int, weights: list[int]) -> None:
    seats = largest_remainders(total, weights)
    exact = [total * weight / sum(weights) for weight in weights]
    assert seats.sum() == total and all(abs(a - b) < 1 for a, b in zip(seats, exact, strict=True))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 900), st.integers(1, 40), st.integers(1, 200), st.integers(0, 2**60))
def test_the_shuffle_is_a_permutation_at_any_size(size: int, block: int, window: int, key: int) -> None:
    shuffle = Shuffle(block=block, window=window)
    assert sorted(shuffle.samples(np.arange(size), *alike(size, size, key))) == list(range(size))


def alike(count: int, size: int, key: int, parts: int = 1) -> tuple[Any, Any, Any]:
    """The same range for every place."""
    return np.full(count, size), np.full(count, key, np.uint64), np.full(count, parts)


def test_ranges_that_are_shuffled_in_one_call_are_shuffled_as_alone() -> None:
    shuffle, sizes, parts = Shuffle(block=7, window=60), [5, 61, 400, 59], [1, 1, 2, 4]
    alone = [
        shuffle.samples(np.arange(n), *alike(n, n, key, part))
        for key, (n, part) in enumerate(zip(sizes, parts, strict=True))
    ]
    size_R, key_R, part_R = (np.repeat(of, sizes) for of in (sizes, np.arange(4, dtype=np.uint64), parts))
    place_R = np.concatenate([np.arange(n) for n in sizes])
    assert shuffle.samples(place_R, size_R, key_R, part_R).tolist() == np.concatenate(alone).tolist()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=300), st.floats(0, 1))
def test_slots_of_many_large_parties_are_the_next_due(quotas: list[int], where: float) -> None:
    quota_P, total = np.array(quotas), sum(quotas)
    start = min(int(where * total), total - 1)
    before, after = counted(quota_P, start), counted(quota_P, min(start + 40, total))
    assert before.sum() == start and after.sum() == min(start + 40, total)
    party, own = slots(quota_P, start, min(start + 40, total))
    taken = before.tolist()
    for p, number in zip(party.tolist(), own.tolist(), strict=True):
        due = [
            Fraction(2 * taken[q] + 1, quotas[q]) if taken[q] < quotas[q] else Fraction(10) for q in range(len(quotas))
        ]
        assert due[p] == min(due) and number == taken[p]
        taken[p] += 1
    assert taken == after.tolist()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 900), st.integers(1, 40), st.integers(1, 200), st.integers(0, 2**60), st.integers(1, 50))
def test_what_is_read_ahead_is_each_later_window_once_and_before_it_is_used(
    size: int, block: int, window: int, key: int, step: int
) -> None:
    shuffle = Shuffle(block=block, window=window)
    asked: dict[int, int] = {}
    for start in range(0, size, step):
        place = np.arange(start, min(start + step, size))
        _, first_K, count_K = shuffle.needed_next(place, *alike(len(place), size, key))
        for first, count in zip(first_K.tolist(), count_K.tolist(), strict=True):
            assert first >= 0 and first + count <= size and count > 0
            for sample in range(first, first + count):
                assert sample not in asked, "asked for twice"
                asked[sample] = start
    used = {
        int(sample): place for place, sample in enumerate(shuffle.samples(np.arange(size), *alike(size, size, key)))
    }
    blocks = -(-size // block)
    windows = max(1, -(-size // max(window, block)))
    in_first = (blocks // windows + 1) * block if windows > 1 else size
    assert len(asked) >= size - in_first, "only the first window is read as it comes"
    assert all(asked[sample] <= used[sample] for sample in asked)


def test_a_window_holds_samples_of_few_blocks() -> None:
    shuffle = Shuffle(block=50, window=1000)
    sample_R = shuffle.samples(np.arange(100_000), *alike(100_000, 100_000, 5))
    for start in range(0, 100_000, 1000):
        touched = np.unique(np.sort(sample_R[start : start + 1000]) // 50)
        assert len(touched) <= 2 * 22, "a turned block touches two"


@settings(deadline=None, max_examples=120)
@given(
    turns=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any),
    cuts=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    groups=st.integers(1, 4),
    group_rows=st.integers(1, 12),
    streams=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_a_dealing_gives_every_place_of_every_pool_once(
    turns: list[int], cuts: list[int], groups: int, group_rows: int, streams: int, seed: int
) -> None:
    turns[0] += -sum(turns) % groups  # whole batches
    steps, batch = sum(turns) // groups, groups * group_rows
    components, quotas = [], []
    for component, turn in enumerate(turns):
        parts = largest_remainders(turn * group_rows, [1 + n for n in range(cuts[component])]).tolist()
        components += [component] * len(parts)
        quotas += parts
    sizes = [quota * 200 + 64 * 9 for quota in quotas]  # large enough to be cut
    deal = Deal(steps, batch, tuple(sizes), tuple(quotas), tuple(components), groups=groups, streams=streams, seed=seed)
    dealt: Counter[tuple[int, int, int]] = Counter()
    for step in range(steps):
        some = deal.places(step, np.arange(batch))
        assert (some.place >= 0).all() and (some.place < some.quota).all() and (some.quota <= some.size).all()
        assert (some.first >= 0).all() and (some.first + some.size <= np.array(sizes)[some.pool]).all()
        dealt.update(zip(some.pool.tolist(), some.first.tolist(), some.place.tolist(), strict=True))
        for group in range(groups):
            rows = np.arange(group * group_rows, (group + 1) * group_rows)
            assert len({components[pool] for pool in deal.places(step, rows).pool.tolist()}) == 1
    assert max(dealt.values()) == 1
    for pool, quota in enumerate(quotas):
        assert sum(1 for which, _, _ in dealt if which == pool) == quota


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 99))
def test_any_rows_are_dealt_as_within_the_whole_batch(streams: int, count: int, seed: int) -> None:
    deal = Deal(20, 64, (4000, 900), (1000, 280), (0, 0), streams=streams, seed=seed)
    rng = np.random.default_rng(seed)
    row_R = rng.choice(64, size=min(count, 64), replace=False)
    whole, some = deal.places(7, np.arange(64)), deal.places(7, row_R)
    for of_all, of_some in zip(whole, some, strict=True):
        assert of_all[row_R].tolist() == of_some.tolist()


@pytest.mark.parametrize(("batch", "size"), [(7, 1), (7, 3), (64, 5), (8192, 4096)])
def test_ranks_share_a_batch_without_gap_or_overlap(batch: int, size: int) -> None:
    rows = [row for rank in range(size) for row in range(batch)[share(batch, rank, size)]]
    assert rows == list(range(batch))


def test_seeds_follow_seed_step_and_sample_and_tell_copies_apart() -> None:
    row_R, set_R, sample_R = np.arange(5), np.array([0, 0, 1, 0, 0]), np.array([5, 6, 5, 5, 5])
    seeds = sample_seeds(1, 2, row_R, set_R, sample_R)
    assert len(set(seeds.tolist())) == 5 and int(seeds.max()) < 2**63
    assert sample_seeds(1, 2, row_R[2:4], set_R[2:4], sample_R[2:4]).tolist() == seeds[2:4].tolist()
    for other in (sample_seeds(1, 3, row_R, set_R, sample_R), sample_seeds(2, 2, row_R, set_R, sample_R)):
        assert not set(other.tolist()) & set(seeds.tolist())


def test_small_permutations_favour_no_pair() -> None:
    pairs = Counter(tuple(permuted(np.arange(2), 5, key)) for key in range(10_000))
    assert len(pairs) == 20 and max(pairs.values()) < 1.2 * 500 and min(pairs.values()) > 0.8 * 500
