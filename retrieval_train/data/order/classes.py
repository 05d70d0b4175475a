"""The labelled samples of a mixture by class, so that the i-th image of any class is at hand.

An image with several labels is in the list of each of its classes.

Memory: 4 bytes a label and 8 a class, and 20 bytes a label more while it is built. Time on one core: 0.1 s for a million
samples, and 0.3 s more where their groups are counted.

Legend: C classes of the joint label space, N labels of all samples (one each: labelled samples), B rows of a batch, R some of
them, S sets.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retrieval_train.data.labels import join
from retrieval_train.data.order.order import Order, Samples
from retrieval_train.data.order.permutation import Int, mixed, permuted

if TYPE_CHECKING:
    from shards.manifest import Manifest

SHOWN = 5  # classes named in a message
OTHER_DRAWS = 1000  # for a class that is not the same one

NO_GROUPS = "no image has a group; make the sets with groups, or say group_by: domain"
NO_CLASSES = "no sample with a label is left to train on; give the sets of data.mixture weights above 0"


@dataclass(frozen=True, eq=False)
class ClassIndex:
    """Which samples each class has, in the order of the sets and of their samples."""

    starts_C1: Int
    """Class c has entries [starts[c], starts[c + 1])."""
    entry_N: NDArray[np.uint32]
    """By class: number of the sample where all sets are numbered through."""
    set_starts_S1: Int
    """... set s has numbers [set_starts[s], set_starts[s + 1])."""

    @classmethod
    def build(
        cls,
        label_N: Sequence[NDArray[np.signedinteger]],
        *,
        num_classes: int,
        pairs: Mapping[int, tuple[Int, Int]] = MappingProxyType({}),
    ) -> ClassIndex:
        """From the joint class id of every sample of every set, -1 for none; a set that is left out has no samples.

        `pairs` are (sample, joint class id) of every label, for sets whose images have several: such an image is in the list
        of each of its classes.
        """
        set_starts = np.cumsum([0, *(len(labels) for labels in label_N)]).astype(np.int64)
        if set_starts[-1] >= 2**32:
            raise ValueError(
                f"data.mixture: {set_starts[-1]:,} samples; an order by classes holds at most {2**32 - 1:,}, so take fewer "
                "sets or data.order.name: mixed"
            )
        counts_C = np.zeros(num_classes, np.int64)
        sizes = [
            len(pairs[number][0]) if number in pairs else int(np.count_nonzero(labels >= 0))
            for number, labels in enumerate(label_N)
        ]
        words, end = np.empty(sum(sizes), np.int64), 0
        for number, (start, labels) in enumerate(zip(set_starts.tolist(), label_N, strict=False)):
            here = pairs[number][0] if number in pairs else np.flatnonzero(labels >= 0)
            # class and number in one word: sorting words is several times faster than argsort
            some = words[end : end + len(here)]
            some[:] = pairs[number][1] if number in pairs else labels[here]
            counts_C += np.bincount(some, minlength=num_classes)
            some <<= 32
            some |= here + start
            end += len(here)
        words.sort()
        return cls(np.r_[0, np.cumsum(counts_C)], words.astype(np.uint32), set_starts)

    @classmethod
    def of(cls, samples: Samples) -> ClassIndex:
        """Of the sets with a weight."""
        none = np.empty(0, np.int64)
        used = [labels if weight else none for labels, weight in zip(samples.label_N, samples.weights, strict=True)]
        pairs = {number: some for number, some in samples.pairs.items() if samples.weights[number]}
        return cls.build(used, num_classes=len(samples.labels.names), pairs=pairs)

    @cached_property
    def counts_C(self) -> Int:
        """Images of each class; 0 for those that are in no set with a weight."""
        return np.diff(self.starts_C1)

    def samples(self, class_R: Int, image_R: Int) -> tuple[Int, Int]:
        """(set, sample) of image `image` of each class."""
        number_R = self.entry_N[self.starts_C1[class_R] + image_R].astype(np.int64)
        set_R = np.searchsorted(self.set_starts_S1, number_R, side="right") - 1
        return set_R, number_R - self.set_starts_S1[set_R]

    def other_image(self, one: int, *, image: int, taken: Int, attempt: int, part: int, parts: int, key: int) -> int:
        """An image of class `one` in place of `image`; -1 after the last. Attempts count from 0.

        First come the images that are not `taken`, then those that are. Rows with other `part`s of `parts` begin with
        other images, so that they do not all replace what they lost by the same one.
        """
        image_N = permuted(np.arange(self.counts_C[one]), int(self.counts_C[one]), key)
        is_taken_N = np.isin(image_N, taken)
        turn_N = np.empty(len(image_N), np.int64)
        for kind in (False, True):
            turn_N[is_taken_N == kind] = np.arange(np.count_nonzero(is_taken_N == kind))
        order = np.lexsort((turn_N % parts != part, is_taken_N))
        others = image_N[order][image_N[order] != image]
        return int(others[attempt]) if attempt < len(others) else -1


class ClassOrder(Order):
    """Base of the orders that deal images of classes."""

    index: ClassIndex
    names: Sequence[str]
    """Of all classes."""

    @abstractmethod
    def picked(self, step: int, row_R: Int) -> tuple[Int, Int]:
        """(class, number of its image) of these rows of global batch `step`, both (R,)."""

    def rows(self, step: int, row_R: Int) -> tuple[Int, Int]:
        return self.index.samples(*self.picked(step, row_R))

    @abstractmethod
    def drawn_class(self, number: int) -> int:
        """One of the classes that are dealt, by a random number."""

    def substitute(self, step: int, row: int, attempt: int) -> tuple[int, int]:
        """Another image of the same class: first those that the batch does not have. After the last, images of other
        classes: a class of one image must not end the run when that one is bad."""
        class_B, image_B = self.picked(step, np.arange(self.batch))
        one = int(class_B[row])
        of_class = np.flatnonzero(class_B == one)
        image = self.index.other_image(
            one,
            image=int(image_B[row]),
            taken=image_B[of_class],
            attempt=attempt,
            part=int(np.searchsorted(of_class, row)),
            parts=len(of_class),
            key=mixed(self.seed, 41, step, one),
        )
        if image < 0:
            one, image = self._of_another_class(one, mixed(self.seed, 33, step, row, attempt))
        set_R, sample_R = self.index.samples(np.array([one]), np.array([image]))
        return int(set_R[0]), int(sample_R[0])

    def _of_another_class(self, one: int, key: int) -> tuple[int, int]:
        for turn in range(OTHER_DRAWS):
            number = mixed(key, turn)
            other = self.drawn_class(number)
            if other != one:
                return other, mixed(number) % int(self.index.counts_C[other])
        raise ValueError(
            f"class '{self.names[one]}': none of its images can be read ({self.index.counts_C[one]} in all), and hardly "
            "another class is dealt; run `shards check` on its set, and make the set again without them"
        )


@dataclass(frozen=True, eq=False)
class Groups:
    """A group for every class."""

    group_C: Int
    """Position in `names`."""
    names: tuple[str, ...]


def domain_groups(class_names: Sequence[str]) -> Groups:
    """The domain of every class."""
    domains = [name.partition("/")[0] for name in class_names]
    names = tuple(sorted(set(domains)))
    place = {name: number for number, name in enumerate(names)}
    return Groups(np.fromiter((place[domain] for domain in domains), np.int64, len(domains)), names)


def image_groups(samples: Samples, index: ClassIndex) -> Groups:
    """`domain/group` of every class: the group of most of its images that have one, the first by name among equals.

    Classes of a domain without any are in its group `domain/`. Raises ValueError where no image has a group.
    """
    domain = domain_groups(samples.labels.names)
    found = {f"{name}/" for name in domain.names}
    for reader in samples.readers:
        found |= {f"{name}/{group}" for name, group in reader.manifest.groups[1:]}
    names = tuple(sorted(found))
    place = {name: number for number, name in enumerate(names)}
    joint_of = [
        np.array([-1, *(place[f"{name}/{group}"] for name, group in reader.manifest.groups[1:])], np.int32)
        for reader in samples.readers
    ]
    group_C = np.array([place[f"{name}/"] for name in domain.names], np.int64)[domain.group_C]
    voted_C, is_grouped_C = _vote(samples, index, joint_of, len(names))
    if not is_grouped_C.any():
        raise ValueError(NO_GROUPS)
    return Groups(np.where(is_grouped_C, voted_C, group_C), names)


def _vote(
    samples: Samples, index: ClassIndex, joint_of: Sequence[NDArray[np.int32]], num_groups: int
) -> tuple[Int, NDArray[np.bool_]]:
    """The group of most images of each class, and whether any has one, both (C,)."""
    group_N = np.full(int(index.set_starts_S1[-1]), -1, np.int32)
    for number, (reader, weight) in enumerate(zip(samples.readers, samples.weights, strict=True)):
        if weight:
            first, stop = index.set_starts_S1[number : number + 2].tolist()
            group_N[first:stop] = joint_of[number][reader.groups()]
    class_N, group_N = np.repeat(np.arange(len(index.counts_C)), index.counts_C), group_N[index.entry_N]
    here = group_N >= 0
    pair_K, votes_K = np.unique(class_N[here] * num_groups + group_N[here], return_counts=True)
    class_K, group_K = np.divmod(pair_K, num_groups)
    voted_C, is_grouped_C = np.zeros(len(index.counts_C), np.int64), np.zeros(len(index.counts_C), bool)
    if len(class_K):
        starts = np.flatnonzero(np.r_[True, class_K[1:] != class_K[:-1]])
        most_K = np.repeat(np.maximum.reduceat(votes_K, starts), np.diff(np.r_[starts, len(class_K)]))
        won = np.flatnonzero(votes_K == most_K)[::-1]  # backwards: of equals the first is written last
        voted_C[class_K[won]], is_grouped_C[class_K[won]] = group_K[won], True
    return voted_C, is_grouped_C


# --- what manifests alone tell


def known_classes(manifests: Sequence[Manifest], weights: Sequence[float]) -> tuple[tuple[str, ...], Int]:
    """Names and training images of the classes of the sets with a weight."""
    labels = join([manifest for manifest, weight in zip(manifests, weights, strict=True) if weight])
    assert labels.counts_C is not None, "sets count their images"
    return labels.names, labels.counts_C


def odd_weights(names: Sequence[str], weights: Sequence[float]) -> list[tuple[str, str]]:
    """Classes are dealt, so how often a set's samples come has no meaning."""
    odd = [f"{name}: {weight}" for name, weight in zip(names, weights, strict=True) if weight not in (0, 1)]
    if not odd:
        return []
    text = f"deals classes, whatever set they are in, and data.mixture has {odd[0]}; say 1.0, or 0 to leave a set out"
    return [("name", text)]


def some_of(names: Sequence[str], counts: Int) -> str:
    """`food/pear (1), food/plum (2) and 35 more`."""
    shown = ", ".join(f"{name} ({count})" for name, count in zip(names[:SHOWN], counts.tolist(), strict=False))
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
