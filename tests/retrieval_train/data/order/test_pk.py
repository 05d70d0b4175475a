"""P classes with K images each: who is in a batch, who comes how often, what is refused."""

from __future__ import annotations

import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_train.data.labels import join
from retrieval_train.data.order.order import Order, Samples
from retrieval_train.data.order.pk import Config
from retrieval_train.data.reader import Reader
from shards.cli import main
from shards.manifest import Manifest
from tests.retrieval_train.data.order.made import made, of_counts
from tests.shards.conftest import picture

COVERAGES = st.sampled_from(["random", "full"])


def built(samples: Samples, *, seed: int = 0, **given: Any) -> Order:
    config = Config(**given)
    return config.build(samples, batch=config.classes * config.images, seed=seed)


def batches(order: Order, samples: Samples, steps: range) -> list[list[tuple[int, int]]]:
    """(class, sample) of every row, of each step; all in set 0."""
    found = []
    for step in steps:
        set_B, sample_B = order.batch_rows(step)
        assert not set_B.any()
        found.append(list(zip(samples.label_N[0][sample_B].tolist(), sample_B.tolist(), strict=True)))
    return found


def cut(stream: list[int], size: int) -> list[list[int]]:
    """Whole pieces."""
    return [stream[at : at + size] for at in range(0, len(stream) - size + 1, size)]


@settings(deadline=None, max_examples=25)
@given(st.data(), COVERAGES, st.integers(1, 5), st.integers(1, 7), st.integers(0, 99))
def test_a_batch_has_each_of_p_classes_once_with_k_different_images_side_by_side(
    data: st.DataObject, coverage: str, images: int, classes: int, seed: int
) -> None:
    counts = data.draw(st.lists(st.integers(images, 12), min_size=classes, max_size=15))
    samples = of_counts(counts)
    order = built(samples, classes=classes, images=images, coverage=coverage, seed=seed)
    for rows in batches(order, samples, range(seed, seed + 15)):
        assert len({sample for _, sample in rows}) == len(rows)
        runs = [{one for one, _ in rows[at : at + images]} for at in range(0, len(rows), images)]
        assert all(len(run) == 1 for run in runs) and len(set.union(*runs)) == classes and {-1} not in runs


@settings(deadline=None, max_examples=25)
@given(st.data(), st.integers(1, 5), st.integers(1, 7), st.integers(0, 99))
def test_full_coverage_has_every_class_once_a_cycle_and_every_image_once_a_pass(
    data: st.DataObject, images: int, classes: int, seed: int
) -> None:
    counts = data.draw(st.lists(st.integers(images, 12), min_size=classes, max_size=15))
    samples = of_counts(counts)
    order = built(samples, classes=classes, images=images, coverage="full", seed=seed)
    assert order.epoch_steps == -(-len(counts) // classes)
    dealt = [row for rows in batches(order, samples, range(8 * order.epoch_steps)) for row in rows]
    for cycle in cut([one for one, _ in dealt[::images]], len(counts)):
        assert sorted(cycle) == list(range(len(counts)))
    for one, count in enumerate(counts):
        own = [sample for number, sample in dealt if number == one]
        assert all(len(set(once)) == count for once in cut(own, count))


@settings(deadline=None, max_examples=25)
@given(st.data(), COVERAGES, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_with_groups_each_part_of_a_batch_is_of_one_group(
    data: st.DataObject, coverage: str, groups: int, each: int, images: int
) -> None:
    sizes = data.draw(st.lists(st.integers(each, 6), min_size=groups, max_size=5))
    names = [f"{domain}/{number}" for domain, size in enumerate(sizes) for number in range(size)]
    counts = data.draw(st.lists(st.integers(images, 6), min_size=len(names), max_size=len(names)))
    samples = of_counts(counts, names=names)
    given: dict[str, Any] = {
        "classes": groups * each,
        "images": images,
        "coverage": coverage,
        "groups": groups,
        "group_by": "domain",
    }
    order = built(samples, **given)
    seen: list[list[int]] = []  # classes of each part of a batch
    for rows in batches(order, samples, range(40)):
        assert len({sample for _, sample in rows}) == len(rows)
        parts = cut([one for one, _ in rows[::images]], each)
        domains = [{names[one].partition("/")[0] for one in part} for part in parts]
        assert all(len(domain) == 1 for domain in domains) and len(set.union(*domains)) == groups
        assert all(len(set(part)) == each for part in parts)
        seen += parts
    if coverage == "full":
        first = np.cumsum([0, *sizes])
        number = [int(np.searchsorted(first, part[0], side="right")) - 1 for part in seen]
        assert all(sorted(cycle) == list(range(len(sizes))) for cycle in cut(number, len(sizes)))
        for group, size in enumerate(sizes):
            own = [one for part, where in zip(seen, number, strict=True) if where == group for one in part]
            assert all(len(set(cycle)) == size for cycle in cut(own, size))


@settings(deadline=None, max_examples=25)
@given(st.data(), COVERAGES, st.integers(2, 6))
def test_repeated_images_of_short_classes_come_equally_often(data: st.DataObject, coverage: str, images: int) -> None:
    counts = data.draw(st.lists(st.integers(1, images + 2), min_size=3, max_size=8))
    samples = of_counts(counts)
    order = built(samples, classes=3, images=images, coverage=coverage, short_class="repeat")
    for rows in batches(order, samples, range(20)):
        for one in {one for one, _ in rows}:
            times = Counter(sample for number, sample in rows if number == one)
            assert sum(times.values()) == images and len(times) == min(images, counts[one])
            assert max(times.values()) - min(times.values()) <= 1


@pytest.mark.parametrize("coverage", ["random", "full"])
def test_a_short_group_repeats_its_classes(coverage: str) -> None:
    names = ["food/pear", "town/mill", "town/well", "town/yard"]
    samples = of_counts([9, 4, 4, 4], names=names)
    given: dict[str, Any] = {"classes": 6, "images": 2, "groups": 2, "group_by": "domain", "coverage": coverage}
    order = built(samples, short_class="repeat", **given)
    for rows in batches(order, samples, range(30)):
        assert Counter(one for one, _ in rows) == {0: 6, 1: 2, 2: 2, 3: 2}
        assert all(len({sample for _, sample in rows[at : at + 2]}) == 2 for at in range(0, 12, 2))
        if coverage == "random":
            assert len({sample for _, sample in rows}) == 12, "9 images are enough for three times two"


@pytest.mark.parametrize("coverage", ["random", "full"])
def test_dropped_classes_never_come_and_the_log_says_which(caplog: pytest.LogCaptureFixture, coverage: str) -> None:
    samples = of_counts([5, 1, 4, 3, 6])
    with caplog.at_level(logging.WARNING):
        order = built(samples, classes=2, images=4, short_class="drop", coverage=coverage)
    assert "2 of 5 classes have fewer than 4 training images: shop/001 (1), shop/003 (3); left out" in caplog.text
    seen = {one for rows in batches(order, samples, range(50)) for one, _ in rows}
    assert seen == {0, 2, 4}
    assert order.epoch_steps == 2, "3 classes by 2, or 15 images by 8"


def test_dropped_groups_never_come_and_the_log_says_which(caplog: pytest.LogCaptureFixture) -> None:
    names = ["food/pear", "town/mill", "town/well", "wood/ash", "wood/elm", "wood/oak"]
    samples = of_counts([4, 4, 4, 4, 1, 4], names=names)
    with caplog.at_level(logging.WARNING):
        given: dict[str, Any] = {"classes": 4, "images": 2, "groups": 2, "group_by": "domain"}
        order = built(samples, short_class="drop", **given)
    assert "1 of 3 groups have fewer than 2 classes: food (1); left out" in caplog.text
    assert {one for rows in batches(order, samples, range(50)) for one, _ in rows} == {1, 2, 3, 5}


@settings(deadline=None, max_examples=25)
@given(st.data(), COVERAGES, st.sampled_from([None, 2]), st.integers(0, 10**12), st.integers(0, 2**60))
def test_any_rows_at_any_step_are_those_of_the_whole_batch_and_of_a_run_begun_anew(
    data: st.DataObject, coverage: str, groups: int | None, step: int, seed: int
) -> None:
    names = [f"{number % 3}/{number}" for number in range(14)]
    samples = of_counts([7, 3, 5, 9, 4, 3, 6, 11, 3, 8, 3, 4, 5, 6], names=names)
    by: dict[str, Any] = {"groups": groups, "group_by": "domain"} if groups else {}
    given: dict[str, Any] = {"classes": 8, "images": 3, "coverage": coverage, "seed": seed, **by}
    whole = np.stack(built(samples, **given).batch_rows(step))
    row_R = np.array(data.draw(st.lists(st.integers(0, 23), min_size=1, max_size=30)))
    assert np.array_equal(np.stack(built(samples, **given).rows(step, row_R)), whole[:, row_R])


def test_steps_and_seeds_differ() -> None:
    samples = of_counts([10] * 40)
    for coverage in ("random", "full"):
        one = built(samples, classes=4, images=3, coverage=coverage)
        other = built(samples, classes=4, images=3, coverage=coverage, seed=1)
        found = [tuple(order.batch_rows(step)[1].tolist()) for order in (one, other) for step in range(50)]
        assert len(set(found)) == 100


def test_random_coverage_takes_classes_alike_however_large_they_are() -> None:
    samples = of_counts([4, 30, 4, 4, 4, 30, 4])
    order = built(samples, classes=3, images=4)
    rows = [row for batch in batches(order, samples, range(700)) for row in batch]
    times = Counter(one for one, _ in rows)
    assert all(abs(times[one] / 1200 - 1) < 0.2 for one in range(7))
    of_large = Counter(sample for one, sample in rows if one == 1)
    assert len(of_large) == 30 and all(abs(count / 40 - 1) < 0.6 for count in of_large.values())


@pytest.mark.parametrize("coverage", ["random", "full"])
def test_a_substitute_is_another_image_of_the_class_that_the_batch_does_not_have(coverage: str) -> None:
    samples = of_counts([9, 12, 10, 8])
    order = built(samples, classes=2, images=4, coverage=coverage)
    for step in range(8):
        _, sample_B = order.batch_rows(step)
        label_B = samples.label_N[0][sample_B]
        for row in range(8):
            count = int(np.count_nonzero(samples.label_N[0] == label_B[row]))
            found = [order.substitute(step, row, attempt)[1] for attempt in range(count - 1)]
            assert {*found, int(sample_B[row])} == set(np.flatnonzero(samples.label_N[0] == label_B[row]).tolist())
            assert not set(found[: count - 4]) & set(sample_B.tolist())
        firsts = [order.substitute(step, row, 0)[1] for row in range(8)]
        assert len(set(firsts)) == 8


def test_a_bad_image_that_is_its_class_is_replaced_by_images_of_other_dealt_classes() -> None:
    samples = of_counts([1, 6, 3, 2])
    order = built(samples, classes=2, images=2, short_class="repeat")
    rows = [
        (step, row) for step in range(9) for row in range(4) if samples.label_N[0][order.batch_rows(step)[1][row]] == 0
    ]
    assert rows
    for step, row in rows:
        found = [order.substitute(step, row, attempt)[1] for attempt in range(16)]
        labels = set(samples.label_N[0][found].tolist())
        assert labels <= {1, 2, 3} and len(labels) > 1


def test_the_only_class_without_a_good_image_is_named() -> None:
    order = built(of_counts([1], names=["food/pear"]), classes=1, images=2, short_class="repeat")
    with pytest.raises(
        ValueError, match=r"class 'food/pear': none of its images can be read \(1 in all\), and hardly another"
    ):
        order.substitute(0, 0, 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"groups": 3, "group_by": "domain"},
            "groups: 3 does not cut classes: 4 into equal parts; take a divisor of 4",
        ),
        ({"groups": 2}, "groups: 2 needs group_by: group or group_by: domain"),
        ({"group_by": "domain"}, "group_by: domain has no meaning without groups"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config(classes=4, images=4, **given)


NAMES = ["food/fig", "food/pear", "food/plum", "town/mill", "town/well"]


@pytest.mark.parametrize(
    ("given", "batch", "said"),
    [
        ({"classes": 4, "images": 2}, 12, "data.order.classes: 4 classes x 2 images are 8 rows, and data.batch is 12; take "
         "classes: 6 or images: 3 or data.batch=8"),
        ({"classes": 2, "images": 4}, 8, "data.order.images: 1 of 5 classes have fewer than 4 training images: food/pear "
         "(1); take images: 1, or say short_class: drop"),
        ({"classes": 6, "images": 1}, 6, "data.order.classes: 6 classes a batch, but there are only 5; take so many or few"),
        ({"classes": 5, "images": 2, "short_class": "drop"}, 10, "data.order.classes: 5 classes a batch, but there are only "
         "4 with 2 images"),
        ({"classes": 6, "images": 1, "groups": 2, "group_by": "domain"}, 6, "data.order.classes: 1 of 2 groups have fewer "
         r"than 3 classes: town \(2\); take fewer classes or more groups, or say short_class: drop"),
        ({"classes": 3, "images": 1, "groups": 3, "group_by": "domain"}, 3, "data.order.groups: 3 groups a batch, but there "
         r"are only 2 \(food \(3\), town \(2\)\); take fewer"),
        ({"classes": 6, "images": 1, "groups": 2, "group_by": "domain", "short_class": "drop"}, 6, "data.order.groups: 2 "
         r"groups a batch, but there are only 1 with 3 classes \(food \(3\)\); take fewer"),
    ],
)  # fmt: skip
def test_what_the_samples_cannot_give_is_refused(given: dict[str, Any], batch: int, said: str) -> None:
    samples = of_counts([4, 1, 4, 4, 4], names=NAMES)
    with pytest.raises(ValueError, match=said.replace("(1)", r"\(1\)")):
        Config(**given).build(samples, batch=batch, seed=0)


def test_a_mixture_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="no sample with a label is left"):
        built(made([[-1, 0], [-1]], weights=[0.0, 1.0]), classes=1, images=1)


# --- real sets


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """`one`: 6 classes of two groups, 3 to 5 images; `two`: 2 classes without groups."""
    root = tmp_path_factory.mktemp("sets")
    wanted = {"one": [("food", f"c{n}", "ab"[n % 2], 3 + n % 3) for n in range(6)]}
    wanted["two"] = [("town", f"c{n}", "", 4) for n in range(2)]
    for name, classes in wanted.items():
        lines, number = ["image,label,domain,group,split"], 0
        for domain, label, group, count in classes:
            for _ in range(count):
                (root / f"{name}{number}.jpg").write_bytes(picture(number + 100 * len(name)))
                lines.append(f"{name}{number}.jpg,{label},{domain},{group},train")
                number += 1
        (root / f"{name}.csv").write_text("\n".join(lines))
        made_it = main(["make", "table", str(root / f"{name}.csv"), "--out", str(root / name), "--shard-samples", "7"])
        assert made_it == 0
    return [Manifest.load(root / name) for name in wanted]


def opened(manifests: list[Manifest]) -> Samples:
    readers = [Reader(manifest, manifest.select("train")) for manifest in manifests]
    return Samples(readers, join(manifests), (1.0,) * len(manifests))


def test_batches_of_real_tars_hold_the_groups_classes_and_images_that_were_asked_for(sets: list[Manifest]) -> None:
    samples = opened(sets)
    config = Config(classes=4, images=3, groups=2, group_by="group", coverage="full")
    assert config.problems(sets, [1.0, 1.0], 12) == []
    order = config.build(samples, batch=12, seed=0)
    group_of = {f"food/c{n}": "ab"[n % 2] for n in range(6)} | {"town/c0": "none", "town/c1": "none"}
    seen = set()
    for step in range(9):
        rows = [samples.readers[at].read(int(sample)) for at, sample in zip(*order.batch_rows(step), strict=True)]
        assert len({row.key for row in rows}) == 12
        names = [f"{row.meta['domain']}/{row.meta['label']}" for row in rows]
        groups = [group_of[name] for name in names]
        assert groups[:6] == groups[:1] * 6 and groups[6:] == groups[6:7] * 6 and groups[0] != groups[6]
        assert [len(set(names[at : at + 3])) for at in range(0, 12, 3)] == [1] * 4
        seen |= {row.key for row in rows}
    assert len(seen) == sum(map(len, samples.readers)), (
        "9 steps are 3 of 6 turns of each group: every class three times"
    )


def test_manifests_alone_tell_what_does_not_fit(sets: list[Manifest], tmp_path: Path) -> None:
    def told(weights: list[float], batch: int, **given: Any) -> list[str]:
        return [f"{key}: {text}" for key, text in Config(**given).problems(sets, weights, batch)]

    assert told([1.0, 1.0], 24, classes=8, images=3) == []
    [text] = told([1.0, 0.0], 24, classes=8, images=3)
    assert text == "classes: 8 classes a batch, but there are only 6; take so many or fewer"
    [text] = told([0.0, 1.0], 4, classes=2, images=2, groups=1, group_by="group")
    assert text == "group_by: no image has a group; make the sets with groups, or say group_by: domain"
    weight, fit, short = told([2.0, 1.0], 9, classes=2, images=4)
    assert "one: 2.0; say 1.0" in weight and "take data.batch=8" in fit
    assert "2 of 8 classes have fewer than 4 training images: food/c0 (3), food/c3 (3)" in short


@pytest.mark.parametrize("coverage", ["random", "full"])
def test_a_million_classes_are_dealt_in_milliseconds(coverage: str) -> None:
    labels = np.random.default_rng(1).integers(0, 1_000_000, 5_000_000, dtype=np.int32)
    samples = made([labels], names=[f"shop/{number}" for number in range(1_000_000)])
    started = time.perf_counter()
    order = built(samples, classes=256, images=4, coverage=coverage, short_class="repeat")
    ready = time.perf_counter()
    for step in range(10**6, 10**6 + 20):
        assert len(order.batch_rows(step)[0]) == 1024
    per_step = (time.perf_counter() - ready) / 20
    print(f"\npk, {coverage}: built in {ready - started:.2f} s, {1e3 * per_step:.2f} ms for a step of 1024 rows")
