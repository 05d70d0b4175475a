"""How evenly the training images are spread over the classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from shards.audit.findings import Finding
from shards.audit.images import Images
from shards.audit.relations import MILD, NOTABLE

FEW = (2, 3, 4, 5)
HIGH_RATIO, HIGH_GINI = 10.0, 0.5
"""Beyond these a class-balanced sampler is worth thinking of."""


class Balance(NamedTuple):
    """Of one domain."""

    domain: str
    num_classes: int
    smallest: int
    median: float
    largest: int
    ratio: float
    """Largest to median."""
    gini: float
    """0: all classes are equal, towards 1: one has everything."""
    few: Sequence[float]
    """Shares of the classes with fewer images than FEW says."""


def measure(images: Images) -> list[Balance]:
    """By domain, of classes that are trained on."""
    classes = images.sets[0].classes
    counts = classes.counts("train")
    domain_C = np.array(classes.domains)
    found = []
    for domain in images.sets[0].domains:
        sizes = np.sort(counts[(domain_C == domain) & (counts > 0)])
        if len(sizes):
            middle = float(np.median(sizes))
            few = [float((sizes < least).mean()) for least in FEW]
            ratio = float(sizes[-1] / middle)
            found.append(Balance(domain, len(sizes), int(sizes[0]), middle, int(sizes[-1]), ratio, gini(sizes), few))
    return found


def gini(sizes: np.ndarray) -> float:
    """The Gini coefficient of sorted sizes: the mean difference of two classes, over twice the mean."""
    count = len(sizes)
    rank = 2 * np.arange(1, count + 1) - count - 1
    return float((rank * sizes).sum() / (count * sizes.sum()))


def balance_findings(images: Images) -> Iterator[Finding]:
    """One a domain that is far from even, or has classes with a single image."""
    for one in measure(images):
        reasons = []
        if one.ratio >= HIGH_RATIO or one.gini >= HIGH_GINI:
            reasons.append(
                f"the largest class has {one.largest:,} images, {one.ratio:.1f} times the median ({one.median:g}); "
                f"Gini coefficient {one.gini:.2f}"
            )
        if one.few[0]:
            reasons.append(f"{one.few[0]:.1%} of the classes have one image: nothing to pull together")
        if reasons:
            severity = NOTABLE if len(reasons) > 1 or not one.few[0] else MILD
            numbers = {"ratio": one.ratio, "gini": one.gini, "single": one.few[0]}
            yield Finding("imbalance", severity, one.domain, "; ".join(reasons), one.num_classes, numbers=numbers)
