"""Where every record goes: train, or an evaluation split as query, index or distractor.

A split that the release brings wins. Without one, each class draws a number from a hash of `domain/label`: below
`dev_fraction` it is a dev class, then come `test_fraction` and train. So a class keeps its place when others are added.
The one exception keeps tiny sets usable: where a domain has at least 4 classes, the 2 with the smallest numbers are dev
whatever the numbers are (and the next 2 test, from 6 classes on, if test is asked for), and the 2 with the largest stay
in train. With `folds`, one fold of a stratified group k-fold (folds.py) is dev, or the set has all of them: then every
image is for training, and has the role in its fold that it has where this is dev. Within an evaluation class one image is
the query, two from 6 images on (smallest hashes of their keys), the rest is the index. An image without a label is a
distractor. Where images have several labels there are no classes to keep apart: each image (or its group) draws for
itself, and a fifth of the evaluation images are queries where the index has what they look for, but at least one of each
split.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError, first_few
from shards.key import draw
from shards.making.base import Base, NothingNew
from shards.making.catalog import NOT_SAID, PLACES, Catalog, ClassName
from shards.making.filters import (
    Bools,
    count_classes,
    has_labels,
    keep,
    num_classes,
    position_in_run,
    refuse_mixed,
    refuse_single,
)
from shards.making.folds import fold_splits, refuse_useless_folds
from shards.making.plan import DEV, DISTRACTOR, INDEX, NO_FOLD, OUT, QUERY, TEST, TRAIN, Numbers, Plan
from shards.making.rules import Rules
from shards.record import ROLES, SPLITS

DEV_FRACTION = 0.2
IMAGES_FOR_TWO_QUERIES = 6
QUERY_SHARE = 0.2  # of images with several labels


def make_plan(catalog: Catalog, kept: Bools, rules: Rules, base: Base | None = None) -> Plan:
    """Places the `kept` records; ShardError where the rules cannot be met. Classes of the base go where they are there.

    NothingNew where the rules leave nothing to add to the base.
    """
    kept = keep(catalog, kept, rules, base)
    if base and not kept.any():
        raise NothingNew
    said = catalog["place"]
    is_explicit = bool((said[kept] != NOT_SAID).any())
    fold = np.full(len(catalog), NO_FOLD, np.int8)
    if is_explicit:
        refuse_mixed(catalog, kept, rules, base)
        split, role = read_places(catalog, kept)
    else:
        role = np.full(len(catalog), OUT, np.int8)
        if rules.folds:
            split, fold = fold_splits(catalog, kept, rules, base)
        else:
            split = draw_splits(catalog, kept, rules, base).astype(np.int8)
    split[~kept] = OUT
    if base:
        is_known = np.array([name in base.splits for name in catalog.classes] + [False])
        role[(role == OUT) & (split > TRAIN) & is_known[catalog["label"]]] = INDEX
    plan = Plan(split, role, fold, rules.folds_in_set)
    give_roles(catalog, plan, rules, base)
    lonely = lonely_queries(catalog, plan, base)
    if len(lonely):
        names = [record.name for record in catalog.records(lonely[:4])]
        raise ShardError(
            f"{len(lonely)} queries have no index image of their class ({first_few(names)}): nothing could be found"
        )
    refuse_useless(catalog, plan, rules, is_explicit=is_explicit, is_addition=bool(base))
    return plan


def read_places(catalog: Catalog, kept: Bools) -> tuple[Numbers, Numbers]:
    """(split, role) as the release says them; a row without label and place is a distractor of what is evaluated."""
    parts = [(*place.split("_"), "")[:2] for place in PLACES]
    split_of = np.array([SPLITS.index(split) for split, _ in parts] + [OUT], np.int8)
    role_of = np.array([ROLES.index(role) if role else OUT for _, role in parts] + [OUT], np.int8)
    split, role = split_of[catalog["place"]], role_of[catalog["place"]]
    evaluated = DEV if (split[kept] == DEV).any() else TEST
    split[kept & (catalog["place"] == NOT_SAID)] = evaluated
    return split, role


def draw_splits(catalog: Catalog, kept: Bools, rules: Rules, base: Base | None) -> NDArray[Any]:
    """Position in SPLITS for every row, where neither the release nor folds say it."""
    if catalog.is_multi_label:
        return image_splits(catalog, rules)
    refuse_single(catalog, kept, rules, base)
    counts = count_classes(catalog, kept)
    names: list[ClassName] = catalog.classes
    splits = split_classes({name: int(n) for name, n in zip(names, counts, strict=True) if n}, rules)
    splits |= base.splits if base else {}
    of_class = np.array([SPLITS.index(splits.get(name, "train")) for name in names] + [TRAIN])
    dev, test = fractions(rules)
    is_test = test > 0 and catalog["source_hash"] / 2**64 * (dev + test) >= dev
    return np.where(catalog["label"] < 0, np.where(is_test, TEST, DEV), of_class[catalog["label"]])


def fractions(rules: Rules) -> tuple[float, float]:
    """dev, test"""
    return DEV_FRACTION if rules.dev_fraction is None else rules.dev_fraction, rules.test_fraction or 0.0


def split_classes(counts: Mapping[ClassName, int], rules: Rules) -> dict[ClassName, str]:
    """train, dev or test for every class, by domain."""
    splits = dict.fromkeys(counts, "train")
    if rules.train_only:
        return splits
    dev_below, test = fractions(rules)
    test_below = dev_below + test
    by_domain: dict[str, list[ClassName]] = defaultdict(list)
    for name in sorted(counts, key=draw):
        if counts[name] >= 2:  # a lone image cannot be both query and index
            by_domain[name[0]].append(name)
    for names in by_domain.values():
        num_dev = sum(draw(name) < dev_below for name in names)
        num_test = sum(dev_below <= draw(name) < test_below for name in names)
        if dev_below and len(names) >= 4:
            num_dev = max(num_dev, 2)
        if test_below > dev_below and len(names) >= 6:
            num_test = max(num_test, 2)
        evaluated = names[: -2 if len(names) >= 4 else None]
        splits |= dict.fromkeys(evaluated[:num_dev], "dev")
        splits |= dict.fromkeys(evaluated[num_dev : num_dev + num_test], "test")
    return splits


def image_splits(catalog: Catalog, rules: Rules) -> NDArray[Any]:
    """Every image for itself, or with its group; those without labels are never trained on."""
    dev, test = fractions(rules)
    if rules.train_only:
        dev = 0.0
    of_group = np.array([draw(group) for group in catalog.groups])
    drawn = np.where(catalog["group"] > 0, of_group[catalog["group"]], catalog["draw"] / 2**64)
    split = np.where(drawn < dev, DEV, np.where(drawn < dev + test, TEST, TRAIN))
    return np.where((split == TRAIN) & ~has_labels(catalog), DEV, split)


def give_roles(catalog: Catalog, plan: Plan, rules: Rules, base: Base | None) -> None:
    """Fills in, in place, the roles that nobody said."""
    role, part = plan.role, plan.part
    labelled = has_labels(catalog)
    is_open = plan.kept & (role == OUT)
    role[part == TRAIN] = 0
    role[is_open & (part != TRAIN) & ~labelled] = DISTRACTOR
    rows = np.flatnonzero(is_open & (part != TRAIN) & labelled)
    if catalog.is_multi_label:
        draw_queries(catalog, plan, rows, base)
        return
    order = rows[np.lexsort((catalog["key_hash"][rows], catalog["draw"][rows], catalog["label"][rows], part[rows]))]
    unit = catalog["label"][order].astype(np.int64) * plan.num_parts + part[order]
    position = position_in_run(unit)
    _, inverse, counts = np.unique(unit, return_inverse=True, return_counts=True)
    images = counts[inverse]
    wanted = rules.queries or np.where(images < IMAGES_FOR_TWO_QUERIES, 1, 2)
    role[order] = np.where(position < np.minimum(wanted, images - 1), QUERY, INDEX)


def draw_queries(catalog: Catalog, plan: Plan, rows: NDArray[np.int64], base: Base | None) -> None:
    """Makes these rows, of images with several labels, queries and index; none is a query that nothing would be found for.

    A split or fold that drew no query gets one if any image of it has a match. The base has its own.
    """
    role, part = plan.role, plan.part
    hashes = catalog["key_hash"][rows]
    role[rows] = np.where(hashes / 2**64 < QUERY_SHARE, QUERY, INDEX)
    role[np.intersect1d(rows, lonely_queries(catalog, plan, base))] = INDEX
    if base:
        return
    pairs = catalog.pairs[plan.kept[catalog.pairs[:, 0]]]
    _, inverse, counts = np.unique(
        pairs[:, 1] * plan.num_parts + part[pairs[:, 0]], return_inverse=True, return_counts=True
    )
    has_match = np.isin(rows, pairs[counts[inverse] > 1, 0])
    for number in np.unique(part[rows]).tolist():
        able = np.flatnonzero(has_match & (part[rows] == number))
        if len(able) and not (role[plan.kept & (part == number)] == QUERY).any():
            role[rows[able[hashes[able].argmin()]]] = QUERY


def lonely_queries(catalog: Catalog, plan: Plan, base: Base | None = None) -> NDArray[np.int64]:
    """Rows of queries for which the index of their split or fold, with the base's, has nothing to find."""
    part, num_parts = plan.part, plan.num_parts
    queries = np.flatnonzero(plan.role * plan.kept == QUERY)
    is_index = plan.kept & (plan.role == INDEX)
    in_base = base.indexed(catalog) if base else np.zeros((len(catalog.classes) + 1, num_parts), bool)
    if catalog.is_multi_label:
        at, labels = catalog.pairs[:, 0], catalog.pairs[:, 1]
        there = np.unique(labels[is_index[at]] * num_parts + part[at][is_index[at]])
        is_met = np.isin(labels * num_parts + part[at], there) | in_base[labels, part[at]]
        return np.setdiff1d(queries, at[is_met])
    unit = catalog["label"].astype(np.int64) * num_parts + part
    is_met = np.isin(unit[queries], unit[is_index]) | in_base[catalog["label"][queries], part[queries]]
    lonely: NDArray[np.int64] = queries[~is_met]
    return lonely


def without(
    catalog: Catalog, plan: Plan, lost: NDArray[np.int64], rules: Rules, base: Base | None = None
) -> tuple[Plan, NDArray[np.int64]]:
    """(the plan without images that proved unreadable, rows of queries that have nothing to find any more).

    Nothing moves: a lost image leaves a hole. What cannot stand without it goes too: the rest of a class that fell below
    `min_images`, and queries that lost their last match.
    """
    split = plan.split.copy()
    split[lost] = OUT
    if rules.min_images and not catalog.is_multi_label:
        small = count_classes(catalog, split != OUT) < rules.min_images
        if base:  # its classes are never dropped
            small &= base.counts(catalog) == 0
        split[np.append(small, False)[catalog["label"]]] = OUT
    rest = replace(plan, split=split)
    lonely = lonely_queries(catalog, rest, base)
    split[lonely] = OUT
    return rest, lonely


def refuse_useless(catalog: Catalog, plan: Plan, rules: Rules, *, is_explicit: bool, is_addition: bool) -> None:
    """A set must be good for training and, unless told otherwise, for evaluation; one with its own split for either."""
    is_trained = plan.split == TRAIN
    num_trained = num_classes(catalog, is_trained)
    num_images = int(plan.kept.sum())
    is_evaluation = is_explicit and not is_trained.any()
    if not num_images:
        raise ShardError("no image is left: every class was dropped; lower --min-images or raise --max-images")
    if num_trained < 2 and not is_evaluation and not is_addition:
        raise ShardError(
            f"{num_trained} training classes among {num_images} images; training needs at least 2: "
            "add classes, or lower --dev-fraction or --min-images"
        )
    evaluated = plan.kept & ~is_trained
    if rules.train_only and evaluated.any():
        raise ShardError(
            f"{int(evaluated.sum())} images have no label, and --train-only leaves no evaluation split for them"
        )
    if plan.num_folds:
        refuse_useless_folds(catalog, plan)
    elif not (rules.train_only or is_explicit or is_addition) and not (plan.role[evaluated] == QUERY).any():
        raise ShardError(
            f"none of the {num_trained} classes ended in an evaluation split, so nothing could be measured; "
            "raise --dev-fraction, or pass --train-only to accept it"
        )
