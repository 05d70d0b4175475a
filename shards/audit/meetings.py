"""Bundles of equal pictures as meetings of parties: the form in which they are counted, listed and thinned out.

A party is all images of one kind on one side of a bundle. Where two parties meet, every image of the one shows the same
as every image of the other, and what that means holds for all of them at once: the placeholder that occurs 5,000 times
in a class is one party, which meets itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement, islice, product

import numpy as np

from shards.audit.copies import Bundle
from shards.audit.images import Images
from shards.audit.relations import KIND, Relation

MOST_PARTIES = 1000
"""Of one side of a bundle. A picture under more labels than that is thinned out under so many of them; audit again."""


@dataclass(frozen=True)
class Meetings:
    """All meetings, bundle after bundle. `left` and `right` are parties; one that meets itself is both."""

    bundles: Sequence[Bundle]
    kinds: np.ndarray
    """KIND, by party."""
    members: Sequence[np.ndarray]
    """Images, by party."""
    bundle: np.ndarray
    """Position in `bundles`, by meeting."""
    left: np.ndarray
    right: np.ndarray

    def __len__(self) -> int:
        return len(self.left)

    def images(self) -> list[int]:
        """All that meet another."""
        met = [self.members[party] for party in np.unique((self.left, self.right)).tolist()]
        everyone: list[int] = np.unique(np.concatenate([np.empty(0, np.int64), *met])).tolist()
        return everyone

    def holds(self, relation: Relation) -> np.ndarray:
        """Which meetings are of this relation, in either order."""
        left, right = self.kinds[self.left], self.kinds[self.right]
        return np.asarray(relation.holds(left, right) | relation.holds(right, left))

    def num_pairs(self) -> np.ndarray:
        """Pairs of images, by meeting."""
        sizes = np.array([len(ats) for ats in self.members], np.int64)
        left, right = sizes[self.left], sizes[self.right]
        return np.asarray(np.where(self.left == self.right, left * (left - 1) // 2, left * right))

    def pairs(self, meeting: int, most: int) -> Iterator[tuple[int, int]]:
        """The first pairs of images of one meeting."""
        left, right = self.left[meeting], self.right[meeting]
        if left == right:
            return islice(combinations(self.members[left].tolist(), 2), most)
        return islice(product(self.members[left].tolist(), self.members[right].tolist()), most)


def arrange(images: Images, bundles: Sequence[Bundle]) -> Meetings:
    """The meetings of these bundles."""
    kinds, members = [np.empty(0, KIND)], list[np.ndarray]()
    places = list[tuple[int, int, int]]()
    for number, bundle in enumerate(bundles):
        sides = []
        for ats in (bundle.left, bundle.right):
            table, parties = sort_by_kind(images, ats)
            sides.append(range(len(members), len(members) + len(parties)))
            kinds.append(table)
            members += parties
        met = product(*sides) if sides[1] else combinations_with_replacement(sides[0], 2)
        places += [(number, one, other) for one, other in met if one != other or len(members[one]) > 1]
    bundle_of, left, right = np.array(places, np.int64).reshape(-1, 3).T
    return Meetings(bundles, np.concatenate(kinds), members, bundle_of, left, right)


def sort_by_kind(images: Images, ats: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """(different kinds, images of each) of one side of a bundle."""
    kinds = np.zeros(len(ats), KIND)
    for name in KIND.names or ():
        kinds[name] = images.rows[name][ats]
    if len(ats) <= 1:
        return kinds, [ats] * len(ats)
    table, kind_of = np.unique(kinds, return_inverse=True)
    order = np.argsort(kind_of, kind="stable")
    parties = np.split(ats[order], np.cumsum(np.bincount(kind_of))[:-1])
    return table[:MOST_PARTIES], parties[:MOST_PARTIES]
