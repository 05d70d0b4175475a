"""Samples that were never in a tar: what an order by classes looks at, from plain lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_train.data.labels import Labels
from retrieval_train.data.order.order import Samples
from retrieval_train.data.order.permutation import Int


def made(
    label_N: Sequence[Sequence[int] | NDArray[np.signedinteger]],
    *,
    names: Sequence[str] = (),
    weights: Sequence[float] = (),
    group_N: Sequence[Sequence[int]] = (),
    groups: Sequence[Sequence[tuple[str, str]]] = (),
    pairs: Mapping[int, tuple[Int, Int]] = MappingProxyType({}),
) -> Samples:
    """Sets with these joint labels, -1 for none. `group_N`: for each sample its position in the set's `groups`. `pairs`: of a
    set whose images have several labels, (sample, joint label) of each."""
    label_arrays = [np.array(labels, np.int32) for labels in label_N]
    num_classes = max(len(names), 1 + max(int(labels.max(initial=-1)) for labels in label_arrays))
    names = tuple(names) or tuple(f"shop/{number:03d}" for number in range(num_classes))
    labelled = np.concatenate([labels[labels >= 0] for labels in label_arrays])
    counts_C = np.bincount(labelled, minlength=num_classes).astype(np.int64)
    readers: list[Any] = [_Reader(list(of_set), list(table)) for of_set, table in zip(group_N, groups, strict=True)]
    samples = Samples(readers, Labels(names, counts_C, ()), tuple(weights) or (1.0,) * len(label_arrays))
    samples.__dict__.update(label_N=label_arrays, pairs=dict(pairs))  # what cached properties would read from sidecars
    return samples


def of_counts(counts: Sequence[int], *, names: Sequence[str] = ()) -> Samples:
    """One set, the classes mixed up, with some samples that have no label."""
    labels = np.concatenate([np.repeat(np.arange(len(counts)), counts), np.full(3, -1)])
    return made([np.random.default_rng(len(labels)).permutation(labels)], names=names)


class _Reader:
    def __init__(self, group_N: list[int], groups: list[tuple[str, str]]) -> None:
        self.manifest = SimpleNamespace(groups=groups)
        self._group_N = np.array(group_N, np.int64)

    def groups(self) -> Int:
        return self._group_N
