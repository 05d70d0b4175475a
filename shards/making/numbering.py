"""Ids of classes, domains and groups in a set: their ranks by name among those that have samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.classes import Classes, by_split
from shards.making.catalog import Catalog
from shards.making.plan import Plan
from shards.manifest import LABELS, Shard

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Numbering:
    """Ids by the numbers that the catalog gave; -1 for what has no sample."""

    classes: Ids
    domains: Ids
    groups: Ids

    def of(self, catalog: Catalog, rows: NDArray[np.int64]) -> Ids:
        """(n, 3): label, domain, group of sidecar rows."""
        labels = np.append(self.classes, -1)[catalog["label"][rows]]
        return np.stack((labels, self.domains[catalog["domain"][rows]], self.groups[catalog["group"][rows]]), 1)

    def labels_of(self, catalog: Catalog, rows: NDArray[np.int64]) -> dict[int, tuple[int, ...]]:
        """Class ids, sorted, by row: of images with several labels."""
        pairs = catalog.pairs
        if not len(pairs):
            return {}
        first, last = (np.searchsorted(pairs[:, 0], rows, side).tolist() for side in ("left", "right"))  # by row
        ids = {row: self.classes[pairs[a:b, 1]] for row, a, b in zip(rows.tolist(), first, last, strict=True) if b > a}
        return {row: tuple(sorted(labels.tolist())) for row, labels in ids.items()}

    def domain_names(self, catalog: Catalog) -> list[str]:
        """By id."""
        return by_id(catalog.domains, self.domains)

    def group_names(self, catalog: Catalog) -> list[tuple[str, str]]:
        """(domain, group) by id."""
        return by_id(catalog.groups, self.groups)

    def class_table(self, catalog: Catalog, plan: Plan) -> Classes:
        """classes.tsv, counted from the plan."""
        rows, labels = labelled_rows(catalog, plan)
        names = by_id(catalog.classes, self.classes)
        ids = self.classes[labels]
        flat = plan.part[rows] * len(names) + ids
        counts = np.bincount(flat, minlength=plan.num_parts * len(names)).reshape(plan.num_parts, -1)
        table, folds = by_split(counts.astype(np.int64))
        groups = common_group(ids, catalog["group"][rows], len(names))
        return Classes(
            domains=tuple(domain for domain, _ in names),
            labels=tuple(label for _, label in names),
            groups=tuple(catalog.groups[group][1] for group in groups.tolist()),
            table=table,
            folds=folds,
        )


def number(catalog: Catalog, plan: Plan) -> Numbering:
    """The ids of everything that the plan keeps."""
    _, labels = labelled_rows(catalog, plan)
    return Numbering(
        classes=rank(catalog.classes, labels),
        domains=rank(catalog.domains, catalog["domain"][plan.kept]),
        groups=rank(catalog.groups, np.append(catalog["group"][plan.kept], 0)),
    )


def labelled_rows(catalog: Catalog, plan: Plan) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row, class number) of every label of every sample."""
    if catalog.is_multi_label:
        pairs = catalog.pairs[plan.kept[catalog.pairs[:, 0]]]
        return pairs[:, 0], pairs[:, 1]
    rows = np.flatnonzero(plan.kept & (catalog["label"] >= 0))
    return rows, catalog["label"][rows].astype(np.int64)


def rank(names: list[Any], used: NDArray[Any]) -> Ids:
    """Rank by name among the used numbers, -1 for the others."""
    ids = np.full(len(names), -1, np.int64)
    for at, number in enumerate(sorted(np.unique(used).tolist(), key=lambda number: names[number])):
        ids[number] = at
    return ids


def by_id(names: list[Any], ids: Ids) -> list[Any]:
    """The names in the order of their ids."""
    listed: list[Any] = [None] * int(ids.max(initial=-1) + 1)
    for name, at in zip(names, ids.tolist(), strict=True):
        if at >= 0:
            listed[at] = name
    return listed


def common_group(ids: Ids, groups: NDArray[Any], num_classes: int) -> Ids:
    """The group that all images of a class share, else 0."""
    low = np.full(num_classes, np.iinfo(np.int64).max)
    high = np.zeros(num_classes, np.int64)
    np.minimum.at(low, ids, groups)
    np.maximum.at(high, ids, groups)
    return np.where(low == high, high, 0)


def renumber(folder: Path, shard: Shard, numbers: Ids, labels: Mapping[int, tuple[int, ...]], rows: Ids) -> None:
    """Writes these ids into the shard's sidecar, and into its labels where there are several.

    Ids are set, not translated: doing it twice, with a stop in between, does no harm.
    """
    sidecar = np.load(folder / shard.sidecar, allow_pickle=False)
    if (
        (sidecar["label"] != numbers[:, 0]).any()
        or (sidecar["domain"] != numbers[:, 1]).any()
        or (sidecar["group"] != numbers[:, 2]).any()
    ):
        sidecar["label"], sidecar["domain"], sidecar["group"] = numbers.T
        replace_array(folder / shard.sidecar, sidecar)
    if labels:
        pairs = [(at, label) for at, row in enumerate(rows.tolist()) for label in labels.get(row, ())]
        replace_array(folder / shard.labels, np.array(pairs, LABELS))


def replace_array(path: Path, array: NDArray[Any]) -> None:
    """Writes the file aside and renames it."""
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        np.save(file, array)
    temporary.rename(path)
