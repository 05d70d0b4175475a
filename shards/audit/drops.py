"""Which images to leave out so that nothing grave remains of what was found, and as few as possible.

Relations are gone through from the gravest down; one whose images are gone already asks for no more. An evaluation loses
an image only where the training set has none to give: two pictures in it under two labels, a distractor that is none, a
query that is its own answer. Of repeats the smallest key stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from shards.audit.images import Images
from shards.audit.meetings import Meetings
from shards.audit.relations import INDEX, RELATIONS, Relation

REPEAT, EASY = "repeat", "easy query"
Reasons = dict[int, str]


class Drops:
    """The images to leave out, and why."""

    def __init__(self, images: Images, meetings: Meetings, keys: Mapping[int, str], reasons: Mapping[int, str]) -> None:
        """`keys`: of all images that meet another; `reasons`: images that are left out whatever they show."""
        self._images = images
        self._meetings = meetings
        self._keys = keys
        self.reasons = dict(reasons)
        self._is_out = np.zeros(len(images), bool)
        self._is_out[list(reasons)] = True

    def choose(self) -> None:
        """Goes through all relations."""
        for relation in RELATIONS:
            holds = np.flatnonzero(self._meetings.holds(relation)).tolist()
            if relation.name == REPEAT:
                self._thin_repeats(holds)
            elif relation.name == EASY:
                self._thin_easy(holds, relation)
            elif relation.drop:
                self._thin(holds, relation)

    def _thin(self, holds: list[int], relation: Relation) -> None:
        """Takes out one side, or both."""
        assert relation.drop, "a relation that asks for something"
        meetings, chosen = self._meetings, Reasons()
        left, right = meetings.left[holds], meetings.right[holds]
        sides = (left, right), (right, left)
        out = [relation.drop(meetings.kinds[one], meetings.kinds[other]) for one, other in sides]
        for at, two in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
            alive = [self._alive(party) for party in two]
            if all(map(len, alive)):
                for side in (0, 1):
                    if out[side][at]:
                        chosen |= self._because(relation.name, alive[side], alive[1 - side])
        self._take_out(chosen)

    def _thin_easy(self, holds: list[int], relation: Relation) -> None:
        """The index image goes, unless it is the last one that the query's class has there: then the query goes."""
        rows = self._images.rows[self._images.is_ours & ~self._is_out]
        rows = rows[(rows["role"] == INDEX) & (rows["label"] >= 0)]
        left_in_index = Counter(zip(rows["split"].tolist(), rows["label"].tolist(), strict=True))
        for at in holds:
            parties = self._meetings.left[at], self._meetings.right[at]
            index, query = sorted(parties, key=lambda party: self._meetings.kinds["role"][party] != INDEX)
            answers, asked = self._alive(index), self._alive(query)
            if not len(answers) or not len(asked):
                continue
            kind = self._meetings.kinds[index]
            place = int(kind["split"]), int(kind["label"])
            if len(answers) < left_in_index[place]:
                left_in_index[place] -= len(answers)
                self._take_out(self._because(relation.name, answers, asked))
            else:
                self._take_out(self._because(relation.name, asked, answers))

    def _thin_repeats(self, holds: list[int]) -> None:
        """One of each stays. Exact copies come first, so that two parties that are near have one image each by then."""
        for at in holds:
            sides = [self._alive(party) for party in (self._meetings.left[at], self._meetings.right[at])]
            if all(map(len, sides)):
                everyone = np.unique(np.concatenate(sides))
                stays = min(everyone.tolist(), key=self._keys.__getitem__)
                self._take_out(self._because(REPEAT, everyone[everyone != stays], np.array([stays])))

    def _alive(self, party: int) -> np.ndarray:
        """Its images that are not left out."""
        ats = self._meetings.members[party]
        return np.asarray(ats[~self._is_out[ats]])

    def _because(self, relation: str, ats: np.ndarray, others: np.ndarray) -> Reasons:
        return {at: f"{relation}: as {self._keys[int(others[0])]}" for at in ats.tolist()}

    def _take_out(self, reasons: Reasons) -> None:
        self._is_out[list(reasons)] = True
        self.reasons.update(reasons)
