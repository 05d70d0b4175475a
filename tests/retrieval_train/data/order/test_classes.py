"""The samples of a mixture by class: the index, the groups of classes, what takes the place of a bad image."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_train.data.order.classes import (
    ClassIndex,
    domain_groups,
    image_groups,
    odd_weights,
    some_of,
)
from tests.retrieval_train.data.order.made import made, of_counts

LABELS = st.lists(st.lists(st.integers(-1, 6), max_size=30), min_size=1, max_size=4)


@settings(deadline=None, max_examples=100)
@given(LABELS, st.data())
def test_the_index_lists_the_samples_of_each_class_in_the_order_of_the_sets(
    label_N: list[list[int]], data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(label_N), max_size=len(label_N)))
    index = ClassIndex.of(made(label_N, names=[f"shop/{number}" for number in range(7)], weights=weights))
    for one in range(7):
        expected = [
            (number, sample)
            for number, labels in enumerate(label_N)
            for sample, label in enumerate(labels)
            if weights[number] and label == one
        ]
        assert index.counts_C[one] == len(expected)
        images = np.arange(len(expected))
        sets, samples = index.samples(np.full(len(expected), one), images)
        assert list(zip(sets.tolist(), samples.tolist(), strict=True)) == expected


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.sets(st.integers(0, 6), max_size=4), min_size=1, max_size=12), min_size=1, max_size=3),
    st.data(),
)
def test_an_image_with_several_labels_is_in_the_list_of_each_class(
    sets: list[list[set[int]]], data: st.DataObject
) -> None:
    several = data.draw(st.sets(st.integers(0, len(sets) - 1)))
    sets = [labels if at in several else [set(sorted(some)[:1]) for some in labels] for at, labels in enumerate(sets)]
    pairs = {
        at: np.array([(number, one) for number, some in enumerate(sets[at]) for one in some], np.int64).reshape(-1, 2).T
        for at in several
    }
    samples = made(
        [[min(some, default=-1) for some in labels] for labels in sets],
        names=[f"shop/{number}" for number in range(7)],
        pairs={at: (sample_K, label_K) for at, (sample_K, label_K) in pairs.items()},
    )
    index = ClassIndex.of(samples)
    for one in range(7):
        expected = [(at, sample) for at, labels in enumerate(sets) for sample, some in enumerate(labels) if one in some]
        assert index.counts_C[one] == len(expected)
        found = index.samples(np.full(len(expected), one), np.arange(len(expected)))
        assert list(zip(*(part.tolist() for part in found), strict=True)) == expected


def test_five_million_samples_of_a_million_classes_are_indexed_in_a_second_or_so_and_6_bytes_each() -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(-1, 1_000_000, 2_500_000, dtype=np.int32) for _ in range(2)]
    started = time.perf_counter()
    index = ClassIndex.build(labels, num_classes=1_000_000)
    print(f"\nindex of 5 M samples, 1 M classes: {time.perf_counter() - started:.2f} s")
    assert index.entry_N.nbytes + index.starts_C1.nbytes < 6 * 5_000_000
    some = rng.integers(0, 1_000_000, 1000)
    some = some[index.counts_C[some] > 0]
    sets, samples = index.samples(some, index.counts_C[some] - 1)
    assert [int(labels[at][sample]) for at, sample in zip(sets, samples, strict=True)] == some.tolist()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(1, 6), st.data())
def test_a_bad_image_is_replaced_by_each_other_image_of_the_class_once_free_ones_first(
    size: int, parts: int, data: st.DataObject
) -> None:
    index = ClassIndex.of(of_counts([4, size, 2]))
    taken = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=parts))
    part = data.draw(st.integers(0, parts - 1))
    found = []
    for attempt in range(size):
        image = index.other_image(
            1, image=taken[0], taken=np.array(taken), attempt=attempt, part=part, parts=parts, key=7
        )
        found.append(image)
    assert found.pop() == -1, "the last attempt is one too many"
    assert sorted(found) == [image for image in range(size) if image != taken[0]]
    free = size - len(set(taken))
    assert not set(found[:free]) & set(taken)


def test_rows_of_a_class_that_are_all_bad_get_different_images() -> None:
    index = ClassIndex.of(of_counts([12]))
    taken = np.array([3, 5, 7, 9])
    firsts = [
        index.other_image(0, image=int(taken[part]), taken=taken, attempt=0, part=part, parts=4, key=1)
        for part in range(4)
    ]
    assert len(set(firsts)) == 4 and not set(firsts) & set(taken.tolist())


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 3)), min_size=1, max_size=40), st.integers(0, 40))
def test_a_class_is_in_the_group_of_most_of_its_images(drawn: list[tuple[int, int]], cut: int) -> None:
    names = ("shop/0", "shop/1", "town/2", "town/3", "town/4")
    # the same groups have other numbers in the second set
    tables = (
        [("", ""), ("shop", "a"), ("shop", "b"), ("town", "a")],
        [("", ""), ("town", "a"), ("shop", "b"), ("shop", "a")],
    )
    parts = [drawn[:cut], drawn[cut:]]
    samples = made(
        [[label for label, _ in part] for part in parts],
        names=names,
        group_N=[[group for _, group in part] for part in parts],
        groups=tables,
    )
    votes: dict[int, Counter[str]] = {one: Counter() for one in range(5)}
    for part, table in zip(parts, tables, strict=True):
        for label, group in part:
            if label >= 0 and group:
                votes[label]["/".join(table[group])] += 1
    if not any(votes.values()):
        with pytest.raises(
            ValueError, match="no image has a group; make the sets with groups, or say group_by: domain"
        ):
            image_groups(samples, ClassIndex.of(samples))
        return
    groups = image_groups(samples, ClassIndex.of(samples))
    for one, votes_of_one in votes.items():
        best = max(votes_of_one.values(), default=0)
        tied = sorted(name for name, count in votes_of_one.items() if count == best)
        own_domain = names[one].partition("/")[0] + "/"
        assert groups.names[groups.group_C[one]] == (tied[0] if tied else own_domain)


def test_domains_are_groups_by_name() -> None:
    groups = domain_groups(["food/pear", "town/mill/old", "food/plum"])
    assert groups.names == ("food", "town") and groups.group_C.tolist() == [0, 1, 0]


def test_a_weight_that_is_neither_0_nor_1_is_a_problem() -> None:
    assert odd_weights(["food", "town"], [1.0, 0.0]) == []
    [(key, text)] = odd_weights(["food", "town"], [1.0, 2.5])
    assert key == "name" and "town: 2.5; say 1.0, or 0 to leave a set out" in text


def test_messages_name_a_few_classes_and_say_how_many_more() -> None:
    assert some_of(["a", "b"], np.array([1, 2])) == "a (1), b (2)"
    assert some_of(list("abcdefgh"), np.arange(8)) == "a (0), b (1), c (2), d (3), e (4) and 3 more"
