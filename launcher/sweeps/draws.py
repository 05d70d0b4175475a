"""Values that are drawn at random: each follows from the seed, the point's number and the key alone.

So a larger `count` adds points and another key changes none of the values that are there.
"""

from __future__ import annotations

import builtins
import json
import math
import random
from typing import Any

from pydantic import Field, model_validator

from retrieval_train.config import Section

_DIGITS = 4
"""Significant ones: what a name and a config still show in full."""


class Draw(Section):
    """How the values of one key are drawn: exactly one of uniform, log, int and choice."""

    uniform: tuple[float, float] | None = None
    """A number between these two, each as likely as any other."""
    log: tuple[float, float] | bool | None = None
    """A number between these two, each order of magnitude as likely as any other. `log: true` beside int: the same of it."""
    int: tuple[builtins.int, builtins.int] | None = None
    """A whole number from the first to the last, both included."""
    choice: list[Any] | None = None
    """One of these."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Draw:
        has_int_log = self.int is not None and isinstance(self.log, bool)
        given = [self.uniform, None if has_int_log else self.log, self.int, self.choice]
        if sum(each is not None for each in given) != 1 or isinstance(given[1], bool):
            raise ValueError(
                "give exactly one of uniform: [low, high], log: [low, high], int: [low, high] and choice: [a, b, ...]; "
                "int may have log: true beside it"
            )
        for low, high in (each for each in given[:3] if isinstance(each, tuple)):
            if low >= high:
                raise ValueError(f"[{low:g}, {high:g}] is no range; give the lower end first")
            if (self.log and low <= 0) or not math.isfinite(high - low):
                raise ValueError(f"log cannot begin at {low:g}; give two numbers above 0")
        if self.choice is not None and not self.choice:
            raise ValueError("choice is empty; give the values to choose from")
        return self

    @property
    def is_number(self) -> bool:
        """Whether its values have an order."""
        return self.choice is None

    def at(self, share: float) -> Any:
        """The value at a share, in [0, 1), of the distribution."""
        if self.choice is not None:
            return self.choice[math.floor(share * len(self.choice))]
        if self.int is not None:
            low, high = self.int
            number = _log_between(low, high + 1, share) if self.log else low + share * (high + 1 - low)
            return min(max(math.floor(number), low), high)
        if self.uniform is not None:
            least, most = self.uniform
            number = least + share * (most - least)
        else:
            assert isinstance(self.log, tuple), "the validator sees to it"
            least, most = self.log
            number = _log_between(least, most, share)
        return self.rounded(number)

    def rounded(self, number: float) -> float:
        """To as many digits as a name shows, within the range."""
        ends = self.uniform or self.log
        assert isinstance(ends, tuple), "only of a range of numbers"
        return min(max(float(f"{number:.{_DIGITS}g}"), ends[0]), ends[1])


class Random(Section):
    """Points at random."""

    count: int = Field(ge=1)
    """How many."""
    seed: int = 0
    """Another seed, other points."""
    draws: dict[str, Draw] = Field(min_length=1)
    """Key -> how its values are drawn."""

    def rows(self) -> list[tuple[int, dict[str, Any]]]:
        """Number and values of each point, without those that are equal to an earlier one: choices repeat themselves."""
        first: dict[str, tuple[int, dict[str, Any]]] = {}
        for number in range(self.count):
            row = {key: self._value(number, key) for key in self.draws}
            first.setdefault(json.dumps(row, sort_keys=True), (number, row))
        return list(first.values())

    def _value(self, number: int, key: str) -> Any:
        # a text as seed: the same digits on every machine and Python
        return self.draws[key].at(random.Random(f"{self.seed}/{number}/{key}").random())


def _log_between(low: float, high: float, share: float) -> float:
    return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
