"""Random numbers of one image: every operation has its own stream, so that adding one leaves the others as they were."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    import numpy as np

WORD = 2**64 - 1


class Stream:
    """Splitmix64 (Steele, Lea and Flood, 2014): as good as any for this, and begun at no cost, unlike Python's Random."""

    def __init__(self, state: int) -> None:
        self._state = state

    def word(self) -> int:
        """64 bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & WORD
        return _mixed(self._state)

    def random(self) -> float:
        """Uniform in [0, 1)."""
        return (self.word() >> 11) * 2.0**-53

    def within(self, pair: tuple[float, float]) -> float:
        """Uniform between two bounds."""
        return pair[0] + (pair[1] - pair[0]) * self.random()

    def around(self, middle: float, most: float) -> float:
        """Uniform, at most `most` away from the middle."""
        return middle + most * (2 * self.random() - 1)

    def below(self, count: int) -> int:
        """One of 0 ... count - 1."""
        return int(self.random() * count)

    def many(self) -> np.random.Generator:
        """For a number a pixel."""
        import numpy as np

        return np.random.Generator(np.random.PCG64(self.word()))


def _mixed(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
    return word ^ word >> 31


@cache
def _number(name: str) -> int:
    return crc32(name.encode()) << 32 | crc32(name[::-1].encode())


class Draws:
    """All follows from the seed and an operation's name; neither Python's nor numpy's nor torch's generator is touched."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._state = _mixed(seed & WORD)

    def stream(self, name: str) -> Stream:
        """The stream of an operation, from its beginning."""
        return Stream(_mixed(self._state ^ _number(name)))

    def happens(self, name: str, p: float) -> bool:
        """True with this probability."""
        return p >= 1 or (p > 0 and self.stream("whether " + name).random() < p)

    def choice(self, name: str, weights: Mapping[str, float]) -> str:
        """One key, in proportion to its weight; some weight is above 0."""
        at = self.stream("which of " + name).random() * sum(weights.values())
        for key, weight in weights.items():
            at -= weight
            if at < 0:
                return key
        return key  # rounding
