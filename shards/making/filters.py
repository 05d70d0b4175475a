"""Which classes and which of their images are kept. What a rule drops is no mistake: it is counted, not listed."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError, first_few
from shards.key import draw
from shards.making.base import Base
from shards.making.catalog import Catalog, ClassName
from shards.making.rules import Rules

Bools = NDArray[np.bool_]


def usable(catalog: Catalog, dropped: frozenset[int], base: Base | None) -> Bools:
    """Rows that no rule has judged yet: not broken, not in the list of samples to leave out, not in the set already."""
    kept: Bools = ~catalog["is_out"]
    if dropped:
        kept &= ~np.isin(catalog["key_hash"], np.fromiter(dropped, np.uint64, len(dropped)))
    return kept & ~base.has(catalog) if base else kept


def keep(catalog: Catalog, kept: Bools, rules: Rules, base: Base | None) -> Bools:
    """Those of the rows that become samples if their images can be read; classes of the base are never dropped."""
    if catalog.is_multi_label:
        refuse_for_several(rules)
        return kept
    kept = kept & in_kept_class(catalog, rules, count_classes(catalog, kept), base)
    if rules.cap_images:
        kept &= in_cap(catalog, kept, rules.cap_images)
    return kept


def in_kept_class(catalog: Catalog, rules: Rules, counts_C: NDArray[np.int64], base: Base | None) -> Bools:
    """Rows without a label, or of a class that no rule drops."""
    names: list[ClassName] = catalog.classes
    is_kept_C = (counts_C >= (rules.min_images or 1)) & (counts_C <= (rules.max_images or np.inf))
    if rules.num_classes:
        by_domain: dict[str, list[int]] = defaultdict(list)
        for number in np.flatnonzero(is_kept_C).tolist():
            by_domain[names[number][0]].append(number)
        for numbers in by_domain.values():
            numbers.sort(key=lambda number: draw(names[number]))
            is_kept_C[numbers[rules.num_classes :]] = False
    if base:
        is_kept_C |= np.array([name in base.splits for name in names], bool)
    labels = catalog["label"]
    kept: Bools = (labels < 0) | np.append(is_kept_C, False)[labels]
    return kept


def in_cap(catalog: Catalog, kept: Bools, cap: int) -> Bools:
    """The first `cap` rows of each class by their draw, and all rows without a label."""
    rows = np.flatnonzero(kept & (catalog["label"] >= 0))
    order = rows[np.lexsort((catalog["draw"][rows], catalog["label"][rows]))]
    position = position_in_run(catalog["label"][order])
    inside = np.ones(len(catalog), bool)
    inside[order[position >= cap]] = False
    return inside


def position_in_run(values: NDArray[Any]) -> NDArray[np.int64]:
    """0, 1, 2, … within each run of equal values."""
    at = np.arange(len(values))
    is_first = np.append(True, values[1:] != values[:-1])[: len(values)]
    return at - np.maximum.accumulate(np.where(is_first, at, 0))


def count_classes(catalog: Catalog, kept: Bools) -> NDArray[np.int64]:
    """Images by the catalog's class number."""
    labels = catalog["label"][kept]
    return np.bincount(labels[labels >= 0], minlength=len(catalog.classes))


def refuse_single(catalog: Catalog, kept: Bools, rules: Rules, base: Base | None) -> None:
    """A class with one image is a decision for the user."""
    names = catalog.classes
    single = sorted(
        "/".join(names[number])
        for number in np.flatnonzero(count_classes(catalog, kept) == 1)
        if not base or names[number] not in base.splits
    )
    if single and rules.min_images is None:
        verb = "class has" if len(single) == 1 else "classes have"
        raise ShardError(
            f"{len(single)} {verb} one image only ({first_few(single)}): they cannot be found again; "
            "--min-images 2 drops them, --min-images 1 keeps them for training"
        )


def refuse_for_several(rules: Rules) -> None:
    """Rules that speak of *the* class of an image."""
    for option in ("min_images", "max_images", "cap_images", "num_classes"):
        if getattr(rules, option):
            name = option.replace("_", "-")
            raise ShardError(
                f"--{name} counts the images of a class, but here images have several labels; leave it out"
            )
