"""One label space over several sets: a class is `domain/label`, wherever it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.manifest import Manifest


@dataclass(frozen=True)
class Labels:
    """The classes that have training images, by name, and how each set's own ids map to them."""

    names: tuple[str, ...]
    """Name of each class id, sorted: the same for the same sets in any order."""
    counts_C: NDArray[np.int64] | None
    """Training images of each class in all sets, whatever their weights; one with several labels counts for each of them.
    None: nobody knows (foreign tars)."""
    joint_of: tuple[NDArray[np.int64], ...]
    """For each set: its class id -> the joint id, -1 for a class without training images."""
    domains: tuple[str, ...] = ()
    """The domains of all sets, sorted."""
    joint_domain_of: tuple[NDArray[np.int64], ...] = ()
    """For each set: position in its domains -> position in `domains`."""
    has_several: bool = False
    """Whether the images of any of the sets have several labels each."""

    def joint(self, number: int, label_N: Any) -> Any:
        """Joint class ids of samples of set `number`, -1 for those without a label; of one sample or of many."""
        return self._joint_or_none[number][label_N]

    def joint_each(self, number: int, ids: Sequence[int]) -> tuple[int, ...]:
        """Joint class ids of one sample of set `number`, ascending: joint ids need not follow the set's own."""
        joint = self.joint_of[number]
        return (int(joint[ids[0]]),) if len(ids) == 1 else tuple(sorted(joint[list(ids)].tolist()))

    @cached_property
    def _joint_or_none(self) -> list[NDArray[np.int64]]:
        """`joint_of` with one entry more, which -1 finds."""
        return [np.append(joint, -1) for joint in self.joint_of]


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
    domains = tuple(sorted({domain for manifest in manifests for domain in manifest.domains}))
    domain_maps = tuple(np.array([domains.index(name) for name in m.domains], np.int64) for m in manifests)
    counts_C = np.array([counts[name] for name in names], np.int64)
    has_several = any(manifest.is_multi_label for manifest in manifests)
    return Labels(names, counts_C, tuple(maps), domains, domain_maps, has_several)
