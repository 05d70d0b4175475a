"""Orders by shares: complete, without repeats, local, and in the shares that were asked for."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_train.config import ConfigError, check
from retrieval_train.data.order import grouped, mixed
from retrieval_train.data.order.dealt import Dealt
from retrieval_train.data.order.loss_driven import LossDriven
from retrieval_train.data.order.order import Order, share
from retrieval_train.data.order.pools import DealtConfig, Pool


class Pools:
    """Stands for the samples of some sets: an order only asks its config for their pools."""

    def __init__(self, pools: list[Pool]) -> None:
        self.pools = pools


def build(config: DealtConfig, pools: list[Pool], *, batch: int, seed: int = 0) -> Any:
    """The order over these pools, without any file."""

    class Given(type(config)):  # type: ignore[misc]
        def pools(self, samples: Any) -> list[Pool]:
            return pools

    return Given(**config.model_dump()).build(None, batch=batch, seed=seed)


def sets(*sizes: int, weights: tuple[float, ...] | None = None) -> list[Pool]:
    return [Pool(n, f"set{n}", size, (weights or (1.0,) * len(sizes))[n]) for n, size in enumerate(sizes)]


def epoch(order: Order, number: int = 0) -> list[tuple[int, int]]:
    first = number * order.epoch_steps
    steps = (order.batch_rows(step) for step in range(first, first + order.epoch_steps))
    return [(int(s), int(n)) for set_B, sample_B in steps for s, n in zip(set_B, sample_B, strict=True)]


MIXED = st.builds(
    lambda streams, block, window: mixed.Config(streams=streams, shuffle={"block": block, "window": window}),  # type: ignore[arg-type]
    st.integers(1, 8),
    st.integers(1, 20),
    st.integers(1, 60),
)


@settings(deadline=None, max_examples=60)
@given(
    MIXED,
    st.lists(st.integers(1, 900), min_size=1, max_size=4),
    st.integers(1, 40),
    st.integers(0, 99),
    st.integers(0, 3),
)
def test_an_epoch_takes_every_sample_at_most_once_and_all_but_a_partial_batch(
    config: mixed.Config, sizes: list[int], batch: int, seed: int, number: int
) -> None:
    batch = min(batch, sum(sizes))
    order = build(config, sets(*sizes), batch=batch, seed=seed)
    drawn = epoch(order, number)
    assert len(set(drawn)) == len(drawn) > sum(sizes) - batch
    assert all(0 <= sample < sizes[which] for which, sample in drawn)


@settings(deadline=None, max_examples=60)
@given(MIXED, st.lists(st.integers(1, 300), min_size=1, max_size=3), st.integers(1, 40), st.integers(0, 9))
def test_an_epoch_that_wraps_takes_every_sample_and_few_twice(
    config: mixed.Config, sizes: list[int], batch: int, seed: int
) -> None:
    batch = min(batch, sum(sizes))
    order = build(config.model_copy(update={"last": "wrap"}), sets(*sizes), batch=batch, seed=seed)
    drawn = Counter(epoch(order))
    assert len(drawn) == sum(sizes) and max(drawn.values()) <= 2
    assert sum(drawn.values()) - sum(sizes) < batch


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5), st.integers(1, 7), st.integers(1, 6), st.integers(1, 4), st.integers(0, 200), st.integers(0, 9)
)
def test_a_global_batch_is_the_same_on_any_cluster(
    ranks: int, workers: int, streams: int, accumulate: int, step: int, seed: int
) -> None:
    order = build(mixed.Config(streams=streams), sets(700, 90, 400), batch=48, seed=seed)
    whole = list(zip(*order.batch_rows(step), strict=True))
    seen: dict[int, tuple[int, int]] = {}
    for part in range(accumulate):
        row_M = order.micro_rows(part, accumulate)
        for rank in range(ranks):
            mine = row_M[share(len(row_M), rank, ranks)]
            for chunk in np.array_split(mine, workers):
                pairs = zip(*order.rows(step, chunk), strict=True)
                seen.update(dict(zip(chunk.tolist(), pairs, strict=True)))
    assert [seen[row] for row in range(48)] == whole


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([1, 2, 4, 8, 16, 64, 640]), min_size=2, max_size=6), st.integers(2, 16))
def test_every_batch_holds_each_set_in_its_share_to_one_row(sizes: list[int], batch: int) -> None:
    batch = min(batch, sum(sizes))
    order = build(mixed.Config(), sets(*sizes), batch=batch)
    quotas = np.array(order.quotas)
    for step in range(order.epoch_steps):
        counts = np.bincount(order.batch_rows(step)[0], minlength=len(sizes))
        off = np.abs(counts - batch * quotas / quotas.sum())
        # sets that are equally small are due at the same time: the largest makes room for all of them at once
        assert (off[quotas < quotas.max()] < 2).all() and off.max() < 1 + len(sizes)
    two = build(mixed.Config(), sets(640, 160), batch=50)
    assert {tuple(np.bincount(two.batch_rows(step)[0])) for step in range(two.epoch_steps)} == {(40, 10)}


def test_weights_say_how_often_an_epoch_takes_each_sample() -> None:
    order = build(mixed.Config(), sets(10, 30, weights=(2.0, 1.0)), batch=10, seed=3)
    drawn = Counter(epoch(order))
    assert len(drawn) == 40 and all(count == (2 if which == 0 else 1) for (which, _), count in drawn.items())
    third = build(mixed.Config(), sets(300, weights=(1 / 3,)), batch=20, seed=3)
    assert third.epoch_steps == 5
    assert len({pair for number in range(3) for pair in epoch(third, number)}) == 300, "three epochs make a pass"


def test_epochs_and_seeds_differ() -> None:
    order = build(mixed.Config(), sets(500), batch=500)
    first, second = order.batch_rows(0)[1], order.batch_rows(1)[1]
    other = build(mixed.Config(), sets(500), batch=500, seed=1).batch_rows(0)[1]
    assert (first != second).mean() > 0.9 and (first != other).mean() > 0.9


@pytest.mark.parametrize("nodes", [1, 2, 4, 8])
def test_a_node_reads_only_its_share_of_the_shards(nodes: int) -> None:
    config = mixed.Config(streams=8, shuffle={"block": 8, "window": 256})  # type: ignore[arg-type]
    order = build(config, sets(8000, 2400), batch=64)
    shards_of: list[set[tuple[int, int]]] = []
    for node in range(nodes):
        rows = np.arange(64)[share(64, node, nodes)]
        read = [order.rows(step, rows) for step in range(2 * order.epoch_steps)]
        shards_of.append(
            {(int(s), int(n) // 100) for set_R, sample_R in read for s, n in zip(set_R, sample_R, strict=True)}
        )
    assert all(len(mine) <= 104 / nodes + 2 * 2 for mine in shards_of), "104 shards; at each border of a set one more"
    assert len(set.union(*shards_of)) == 104


def test_a_billion_samples_on_4096_ranks_cost_no_memory_and_any_step_is_at_hand() -> None:
    import tracemalloc

    tracemalloc.start()
    started = time.process_time()
    order = build(mixed.Config(streams=4096), sets(7 * 10**8, 3 * 10**8), batch=16384, seed=1)
    seen = [order.rows(10**6 * 3 + 11, np.arange(16384)[share(16384, rank, 4096)]) for rank in range(0, 4096, 64)]
    rows = {(int(s), int(n)) for set_R, sample_R in seen for s, n in zip(set_R, sample_R, strict=True)}
    assert len(rows) == 64 * 4
    assert tracemalloc.get_traced_memory()[1] < 20e6, "bytes"
    tracemalloc.stop()
    assert time.process_time() - started < 20, "a rank needs 64 times less"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(24, 400), min_size=1, max_size=5),
    st.sampled_from([1, 2, 3, 4]),
    st.sampled_from(["size", "equal", "temperature"]),
    st.integers(0, 9),
)
def test_a_group_holds_one_domain(sizes: list[int], groups: int, share_by: str, seed: int) -> None:
    temperature = 0.5 if share_by == "temperature" else None
    config = grouped.Config(name="grouped", groups=groups, share=share_by, temperature=temperature)  # type: ignore[arg-type]
    if share_by == "size" and sum(size // (24 // groups) for size in sizes) < groups:
        return
    order = build(config, sets(*sizes), batch=24, seed=seed)
    for step in range(order.epoch_steps):
        for part in np.split(order.batch_rows(step)[0], groups):
            assert len(set(part.tolist())) == 1
    drawn = Counter(epoch(order))
    if share_by == "size":
        assert max(drawn.values()) == 1


def test_equal_shares_take_turns() -> None:
    order = build(grouped.Config(name="grouped", share="equal"), sets(100, 700, 40), batch=10)
    turns = [int(order.batch_rows(step)[0][0]) for step in range(order.epoch_steps)]
    assert turns[:9] == [0, 1, 2] * 3
    assert max(np.bincount(turns)) - min(np.bincount(turns)) <= 1


def test_temperature_and_given_weights_make_the_shares() -> None:
    pools = sets(10_000, 400)
    hot = build(mixed.Config(share="temperature", temperature=0.5), pools, batch=100)
    assert np.bincount(hot.batch_rows(0)[0]).tolist() == pytest.approx([100 * 100 / 120, 100 * 20 / 120], abs=1)
    given_ = build(mixed.Config(share="given", weights={"set0": 1, "set1": 3}), pools, batch=100)
    assert np.bincount(given_.batch_rows(5)[0]).tolist() == [25, 75]
    flat = build(mixed.Config(share="equal"), pools, batch=100)
    drawn = Counter(epoch(flat))
    often = [count for (which, _), count in drawn.items() if which == 1]
    assert min(often) >= 12 and max(often) <= 14, "a small set comes again and again, all of it equally often"


def test_pools_of_a_domain_map_to_the_samples_of_their_set() -> None:
    numbers = np.array([3, 5, 8, 13, 21, 34], np.uint32)
    order = build(mixed.Config(), [Pool(4, "cars", 6, 1.0, numbers), Pool(2, "food", 6)], batch=6)
    drawn = epoch(order)
    assert sorted(n for which, n in drawn if which == 4) == numbers.tolist()
    assert sorted(n for which, n in drawn if which == 2) == list(range(6))


# --- shares that follow the losses


def loss_driven(seed: int = 0) -> LossDriven:
    order = build(mixed.Config(by="domain", share="loss", every=128), sets(3000, 1000), batch=40, seed=seed)
    assert isinstance(order, LossDriven)
    return order


def follow(order: LossDriven, first: int, last: int) -> list[Any]:
    """Steps as a run does them: each is drawn up to 64 steps before it is done."""
    out = []
    for step in range(first, last):
        out.append([part.tolist() for part in order.batch_rows(step)])
        order.observe(step + 1, {"set0": 1.0, "set1": 3.0 if step < 150 else 1.0})
    return out


def test_the_shares_follow_the_losses_from_the_next_period_on() -> None:
    order = loss_driven()
    steps = follow(order, 0, 3 * 128)
    counts = [np.bincount(set_B, minlength=2).tolist() for set_B, _ in steps]
    assert counts[:128] == [[30, 10]] * 128 and counts[128:256] == [[10, 30]] * 128 and counts[256:] == [[20, 20]] * 128
    small = [n for set_B, sample_B in steps for s, n in zip(set_B, sample_B, strict=True) if s == 1]
    passes = [small[at : at + 1000] for at in range(0, len(small) - 999, 1000)]
    assert len(passes) >= 5 and all(len(set(one)) == 1000 for one in passes), (
        "over periods every sample before any twice"
    )


def test_a_loss_driven_order_goes_on_exactly_from_its_state() -> None:
    import json

    whole = follow(loss_driven(), 0, 400)
    order = loss_driven()
    follow(order, 0, 230)
    again = loss_driven()
    again.take_state(json.loads(json.dumps(order.state())))
    assert follow(again, 230, 400) == whole[230:]
    with pytest.raises(ValueError, match=r"of other domains \(\['a'\], here \['set0', 'set1'\]\)"):
        order.take_state({"components": ["a"], "shares": [[1.0]], "last": {}})
    with pytest.raises(ValueError, match="the state of another order"):
        build(mixed.Config(), sets(100), batch=10).take_state(order.state())


def test_a_loss_driven_order_that_goes_back_is_one_that_was_never_further() -> None:
    order, again = loss_driven(), loss_driven()
    follow(order, 0, 50)
    state = order.state()
    follow(order, 50, 330)
    assert len(state["shares"]) == 1 and len(order.state()["shares"]) == 4, "a state stays as it was"
    for one in (order, again):
        one.take_state(state)
    for step in range(50, 520):
        for one in (order, again):
            one.observe(step + 1, {"set0": 2.0, "set1": 1.0})
            one.take_state(one.state())  # as ranks that agree on it
        went_back, never_further = (one.batch_rows(step) for one in (order, again))
        assert all(map(np.array_equal, went_back, never_further)), step


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_loss_driven_groups_take_all_samples_equally_often(groups: int) -> None:
    config = grouped.Config(name="grouped", share="loss", every=128, groups=groups)
    order = build(config, sets(600, 500), batch=16)
    drawn: Counter[tuple[int, int]] = Counter()
    for step in range(4 * 128):
        set_B, sample_B = order.batch_rows(step)
        drawn.update(zip(set_B.tolist(), sample_B.tolist(), strict=True))
        order.observe(step + 1, {"set0": 1.0, "set1": 2.0})
    for which, size in ((0, 600), (1, 500)):
        often = [drawn[which, sample] for sample in range(size)]
        assert max(often) - min(often) <= 1 and min(often) >= 3


def test_a_domain_without_loss_is_still_seen() -> None:
    order = loss_driven()
    for step in range(128):
        order.observe(step + 1, {"set0": 5.0})
    assert np.bincount(order.batch_rows(128)[0], minlength=2).tolist() == [20, 20]
    for step in range(128, 256):
        order.observe(step + 1, {"set0": 5.0, "set1": 0.0})
    assert np.bincount(order.batch_rows(256)[0], minlength=2)[1] >= 1


# --- substitutes and mistakes


def test_a_substitute_is_another_sample_of_the_same_pool_and_the_same_for_everyone() -> None:
    order, twin = (build(mixed.Config(streams=2), sets(900, 50), batch=30, seed=5) for _ in range(2))
    for row in range(30):
        which = int(order.batch_rows(9)[0][row])
        tried = [order.substitute(9, row, attempt) for attempt in range(4)]
        assert tried == [twin.substitute(9, row, attempt) for attempt in range(4)]
        assert {number for number, _ in tried} == {which} and len(
            {*tried, (which, int(order.batch_rows(9)[1][row]))}
        ) == 5


def test_substitutes_are_all_other_samples_and_then_those_of_the_largest_pool() -> None:
    order = build(mixed.Config(), sets(1, 5, 40), batch=46)
    set_B, sample_B = order.batch_rows(0)
    for row, (which, sample) in enumerate(zip(set_B.tolist(), sample_B.tolist(), strict=True)):
        size = (1, 5, 40)[which]
        tried = [order.substitute(0, row, attempt) for attempt in range(size + 3)]
        assert set(tried[: size - 1]) == {(which, other) for other in range(size)} - {(which, sample)}
        assert {number for number, _ in tried[size - 1 :]} == {2} and len(set(tried[size - 1 :])) == 4


@pytest.mark.parametrize("size", [100, 101, 103])
def test_two_epochs_of_half_a_set_have_no_sample_in_common(size: int) -> None:
    order = build(mixed.Config(), sets(size, 37, weights=(0.5, 1.0)), batch=3)
    for number in (0, 2, 4):
        both = [n for e in (number, number + 1) for which, n in epoch(order, e) if which == 0]
        assert len(set(both)) == len(both) >= 94


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"share": "temperature"}, "share: temperature needs temperature"),
        ({"temperature": 0.5}, "temperature has no meaning with share: size"),
        ({"share": "given", "weights": {"a": 0.0}}, "one above 0"),
        ({"share": "loss", "every": 128}, "say by: domain"),
        ({"share": "loss", "every": 10, "by": "domain"}, "every"),
        ({"streams": 0}, "streams"),
        ({"streams": 8, "share": "loss", "every": 128, "by": "domain"}, "streams has no meaning with share: loss"),
        ({"share": "given", "weights": {"a": 1e300}}, "weights of 0 to 1000"),
        ({"share": "given", "weights": {"a": float("nan")}}, "weights"),
    ],
)
def test_a_mistake_in_the_shares_is_told(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check(mixed.Config, values, where="x.yaml")


def test_streams_beside_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match="streams: 4 has no meaning with groups: 2"):
        check(grouped.Config, {"name": "grouped", "groups": 2, "streams": 4}, where="x.yaml")


def test_a_sparse_pool_asks_for_the_stretches_that_its_samples_lie_in() -> None:
    numbers = np.r_[np.arange(0, 40, 2), np.arange(1000, 80_000, 100)].astype(np.uint32)
    pool = Pool(0, "cars", len(numbers), 1.0, numbers)
    runs = pool.runs(10, 30)
    assert runs[0] == (20, 19) and runs[1:] == [(number, 1) for number in range(1000, 3000, 100)]
    assert Pool(0, "cars", 100).runs(10, 30) == [(10, 30)]
    order = build(mixed.Config(streams=2, shuffle={"block": 8, "window": 64}), [pool], batch=20)  # type: ignore[arg-type]
    asked = [piece for step in range(order.epoch_steps) for piece in order.needed_next(step, np.arange(20))]
    assert sum(count for _, _, count in asked) < 2 * len(numbers), "not the whole stretch between them"
    wanted = {n for _, first, count in asked for n in range(first, first + count)}
    assert len(wanted & set(numbers.tolist())) > 0.7 * len(numbers)


def test_what_the_samples_do_not_allow_is_told() -> None:
    with pytest.raises(ValueError, match=r"data\.batch is 64, but an epoch has only 40 samples"):
        build(mixed.Config(), sets(40), batch=64)
    with pytest.raises(ValueError, match=r"names no 'set1'; give every set a weight, 0 leaves it out"):
        build(mixed.Config(share="given", weights={"set0": 1.0}), sets(40, 50), batch=8)
    with pytest.raises(ValueError, match=r"no set 'sat0' with training samples; there are: set0, set1"):
        build(mixed.Config(share="given", weights={"set0": 1, "sat0": 1, "set1": 1}), sets(40, 50), batch=8)
    with pytest.raises(ValueError, match=r"domain 'set1' has 5 samples an epoch, and a group takes 16"):
        build(grouped.Config(name="grouped"), sets(100, 5), batch=16)
    with pytest.raises(ValueError, match=r"5 groups do not cut data\.batch 16 into equal parts"):
        build(grouped.Config(name="grouped", groups=5), sets(100), batch=16)


def test_what_is_read_ahead_lies_in_the_rows_own_range() -> None:
    config = mixed.Config(streams=4, shuffle={"block": 10, "window": 100})  # type: ignore[arg-type]
    order = build(config, sets(8000), batch=40)
    assert isinstance(order, Dealt)
    rows = np.arange(10)  # the first stream's
    mine = {int(n) for step in range(order.epoch_steps) for n in order.rows(step, rows)[1]}
    asked = [
        n for step in range(order.epoch_steps) for _, first, count in order.needed_next(step, rows)
        for n in range(first, first + count)
    ]  # fmt: skip
    assert len(asked) == len(set(asked)) >= 0.9 * len(mine) - 200 and set(asked) <= mine | set(range(2001))
