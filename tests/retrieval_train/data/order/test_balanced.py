"""Every class equally often: what an epoch has of each class, and which images."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_train.data.order.balanced import Config
from retrieval_train.data.order.order import Order, Samples
from tests.retrieval_train.data.order.made import made, of_counts

COUNTS = st.lists(st.integers(1, 13), min_size=1, max_size=7)


def epoch_samples(order: Order, epoch: int) -> list[int]:
    steps = range(epoch * order.epoch_steps, (epoch + 1) * order.epoch_steps)
    return [int(sample) for step in steps for sample in order.batch_rows(step)[1]]


def built(samples: Samples, batch: int, *, seed: int = 0, **given: Any) -> Order:
    return Config(**given).build(samples, batch=batch, seed=seed)


@settings(deadline=None, max_examples=30)
@given(COUNTS, st.integers(1, 15), st.integers(1, 3), st.integers(0, 2**60))
def test_epochs_have_so_many_of_every_class_and_every_image_once_before_any_again(
    counts: list[int], per_class: int, most_repeats: int, seed: int
) -> None:
    samples = of_counts(counts)
    order = built(samples, 1, per_class=per_class, most_repeats=most_repeats, seed=seed)  # no slot is left out
    so_far: Counter[int] = Counter()
    for epoch in range(5):
        dealt = Counter(epoch_samples(order, epoch))
        assert max(dealt.values()) <= most_repeats
        of_class = Counter(samples.label_N[0][list(dealt.elements())].tolist())
        assert of_class == {one: min(per_class, most_repeats * count) for one, count in enumerate(counts)}
        so_far += dealt
        for one in range(len(counts)):
            times = [so_far[int(sample)] for sample in np.flatnonzero(samples.label_N[0] == one)]
            assert max(times) - min(times) <= 1


@settings(deadline=None, max_examples=25)
@given(COUNTS, st.integers(1, 9), st.integers(2, 9))
def test_what_fills_no_whole_batch_is_left_out_and_other_slots_every_epoch(
    counts: list[int], per_class: int, batch: int
) -> None:
    quotas = [min(per_class, 2 * count) for count in counts]
    samples = of_counts(counts)
    if sum(quotas) < batch:
        said = f"make an epoch of {sum(quotas)}, and data.batch is {batch}; take more of each class or a smaller batch"
        with pytest.raises(ValueError, match=said):
            built(samples, batch, per_class=per_class, most_repeats=2)
        return
    order = built(samples, batch, per_class=per_class, most_repeats=2)
    assert order.epoch_steps == sum(quotas) // batch
    for epoch in range(3):
        of_class = Counter(samples.label_N[0][epoch_samples(order, epoch)].tolist())
        assert sum(of_class.values()) == sum(quotas) // batch * batch
        assert all(of_class[one] <= quota for one, quota in enumerate(quotas))


@settings(deadline=None, max_examples=25)
@given(st.data(), st.integers(0, 10**9), st.integers(0, 2**60))
def test_any_rows_at_any_step_are_those_of_the_whole_batch_and_of_a_run_begun_anew(
    data: st.DataObject, step: int, seed: int
) -> None:
    samples = of_counts([7, 3, 50, 9, 1, 3, 6])
    whole = np.stack(built(samples, 12, per_class=8, most_repeats=4, seed=seed).batch_rows(step))
    row_R = np.array(data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=20)))
    again = built(samples, 12, per_class=8, most_repeats=4, seed=seed).rows(step, row_R)
    assert np.array_equal(np.stack(again), whole[:, row_R])


def test_classes_are_mixed_over_the_epoch() -> None:
    samples = of_counts([100] * 10)
    order = built(samples, 100, per_class=100)
    for step in range(10):
        of_class = Counter(samples.label_N[0][order.batch_rows(step)[1]].tolist())
        assert len(of_class) == 10 and max(of_class.values()) <= 25
    assert epoch_samples(order, 0) != epoch_samples(order, 1)


@pytest.mark.parametrize(
    ("power", "expected"), [(0.0, [50, 50, 50, 1]), (0.5, [84, 84, 27, 1]), (1.0, [99, 99, 10, 1])]
)
def test_power_goes_from_all_classes_alike_to_by_size(power: float, expected: list[int]) -> None:
    quotas = Config(per_class=50, power=power).quotas(np.array([1000, 1000, 100, 1]))
    share = np.array([1000, 1000, 100, 1]) ** power
    exact = np.maximum(np.round(50 * share / share.mean()), 1)
    assert quotas.tolist() == np.minimum(exact, [1000, 1000, 100, 1]).tolist()
    assert all(abs(quota - near) <= max(4, near * 0.06) for quota, near in zip(quotas, expected, strict=True))


def test_classes_of_sets_without_a_weight_get_nothing() -> None:
    order = built(made([[0, 0, 1], [2, 2]], weights=[1.0, 0.0]), 2, per_class=1)
    assert order.epoch_steps == 1 and not any(order.batch_rows(step)[0].any() for step in range(20))
    with pytest.raises(ValueError, match="no sample with a label is left"):
        built(made([[-1], [0]], weights=[1.0, 0.0]), 1, per_class=1)


def test_a_substitute_is_of_the_same_class_and_of_any_when_that_has_no_other() -> None:
    samples = of_counts([1, 6, 9])
    order = built(samples, 4, per_class=4, most_repeats=4)
    seen = set()
    for step in range(order.epoch_steps):
        sample_B = order.batch_rows(step)[1]
        for row, sample in enumerate(sample_B.tolist()):
            one = int(samples.label_N[0][sample])
            others = int(np.count_nonzero(samples.label_N[0] == one)) - 1
            found = [order.substitute(step, row, attempt)[1] for attempt in range(others + 16)]
            same = found[:others]
            assert len(set(same)) == others and sample not in same
            assert (samples.label_N[0][same] == one).all()
            assert (samples.label_N[0][found] >= 0).all() and len(set(samples.label_N[0][found].tolist())) > 1
            seen.add(one)
    assert seen == {0, 1, 2}
