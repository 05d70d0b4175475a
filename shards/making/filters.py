"""Which classes and which of their images are kept. What a rule drops is no mistake: it is counted, not listed."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError, first_few
from shards.key import draw
from shards.making.base import Base
from shards.making.catalog import NOT_SAID, Catalog, ClassName
from shards.making.rules import Rules

Bools = NDArray[np.bool_]


def usable(catalog: Catalog, dropped: frozenset[int], base: Base | None) -> Bools:
    """Rows that no rule has judged yet: not broken, not in the list of samples to leave out, not in the set already."""
    kept: Bools = ~catalog["is_out"]
    if base:
        kept &= ~base.has(catalog)
    if dropped:
        kept &= ~np.isin(catalog["key_hash"], np.fromiter(dropped, np.uint64, len(dropped)))
    return kept


def keep(catalog: Catalog, kept: Bools, rules: Rules, base: Base | None) -> Bools:
    """Those of the rows that become samples if their images can be read; classes of the base are never dropped."""
    if catalog.is_multi_label:
        refuse_for_several(rules)
        return kept
    kept = kept & in_kept_class(catalog, rules, count_classes(catalog, kept), base)
    if rules.cap_images:
        kept &= in_cap(catalog, kept, rules.cap_images, base)
    return kept


def in_kept_class(catalog: Catalog, rules: Rules, counts_C: NDArray[np.int64], base: Base | None) -> Bools:
    """Rows without a label, or of a class that no rule drops."""
    names: list[ClassName] = catalog.classes
    is_kept_C = (counts_C >= (rules.min_images or 1)) & (counts_C <= (rules.max_images or np.inf))
    if rules.num_classes:
        by_domain: dict[str, list[int]] = defaultdict(list)
        for number in np.flatnonzero(is_kept_C).tolist():
            if not base or names[number] not in base.splits:
                by_domain[names[number][0]].append(number)
        there = base.classes_by_domain() if base else {}
        for domain, numbers in by_domain.items():
            numbers.sort(key=lambda number: draw(("kept", *names[number])))  # not the draw that splits
            is_kept_C[numbers[max(rules.num_classes - there.get(domain, 0), 0) :]] = False
    if base:
        is_kept_C |= np.array([name in base.splits for name in names], bool)
    labels = catalog["label"]
    kept: Bools = (labels < 0) | np.append(is_kept_C, False)[labels]
    return kept


def in_cap(catalog: Catalog, kept: Bools, cap: int, base: Base | None) -> Bools:
    """The first `cap` rows of each class by their draw, less what the base has of it, and all rows without a label."""
    rows = np.flatnonzero(kept & (catalog["label"] >= 0))
    order = rows[np.lexsort((catalog["draw"][rows], catalog["label"][rows]))]
    position = position_in_run(catalog["label"][order])
    inside = np.ones(len(catalog), bool)
    there_C = base.counts(catalog) if base else np.zeros(len(catalog.classes), np.int64)
    inside[order[position + there_C[catalog["label"][order]] >= cap]] = False
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


def num_classes(catalog: Catalog, rows: Bools) -> int:
    """Of these rows."""
    if catalog.is_multi_label:
        return len(np.unique(catalog.pairs[rows[catalog.pairs[:, 0]], 1]))
    return int((count_classes(catalog, rows) > 0).sum())


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


def has_labels(catalog: Catalog) -> Bools:
    """Rows with one label or several."""
    labelled: Bools = catalog["label"] >= 0
    labelled = labelled.copy()
    labelled[catalog.pairs[:, 0]] = True
    return labelled


def refuse_mixed(catalog: Catalog, kept: Bools, rules: Rules, base: Base | None) -> None:
    """A split that the release brings must cover everything with a label, and leaves nothing to choose.

    What is added to a base has the base's options without being told.
    """
    lacking = np.flatnonzero(kept & (catalog["place"] == NOT_SAID) & has_labels(catalog))
    if len(lacking):
        names = [record.name for record in catalog.records(lacking[:4])]
        raise ShardError(
            f"{len(lacking)} of {int(kept.sum())} images have no split ({first_few(names)}); give all or none one"
        )
    for option in ("dev_fraction", "test_fraction", "folds"):
        value = getattr(rules, option)
        if value is not None and not base:
            name = option.replace("_", "-")
            raise ShardError(f"--{name} {value:g} would not be used: the input brings its own split; leave it out")
    evaluated = int((kept & (catalog["place"] != 0) & (catalog["place"] != NOT_SAID)).sum())
    if rules.train_only and evaluated:
        raise ShardError(f"--train-only, but the input puts {evaluated} images into dev or test; leave it out")
