"""One label space over several sets: a class is `domain/label`, wherever it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.manifest import Manifest


@dataclass(frozen=True)
class Labels:
    """The classes that have training images, by name, and how each set's own ids map to them."""

    names: tuple[str, ...]
    """Name of each class id, sorted: the same for the same sets in any order."""
    counts_C: NDArray[np.int64]
    """Training images of each class."""
    joint_of: tuple[NDArray[np.int64], ...]
    """For each set: its class id -> the joint id, -1 for a class without training images."""


def join(manifests: Sequence[Manifest]) -> Labels:
    """The joint label space of the sets' training splits."""
    counts: dict[str, int] = {}
    for manifest in manifests:
        for name, count in zip(manifest.classes.class_names(), manifest.classes.counts("train"), strict=True):
            if count:
                counts[name] = counts.get(name, 0) + int(count)
    names = tuple(sorted(counts))
    joint = {name: number for number, name in enumerate(names)}
    maps = [np.array([joint.get(name, -1) for name in m.classes.class_names()], np.int64) for m in manifests]
    return Labels(names, np.array([counts[name] for name in names], np.int64), tuple(maps))
