"""Pools dealt by shares that follow the losses of their domains (UDON, section 3.3).

A dealing is a period of some steps; every pool goes on where the period before left it. The shares of a period are settled
some steps before it begins, so that workers may read ahead, and lie in the checkpoint: the order is arithmetic on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from retrieval_train.data.order.deal import Deal, Places
from retrieval_train.data.order.dealt import Dealt
from retrieval_train.data.order.permutation import Int
from retrieval_train.data.order.pools import KNOWN_AHEAD, component_quotas

LEAST_SHARE = 0.05  # of the mean


@dataclass
class LossDriven(Dealt):
    """Deals by shares that follow the losses. `quotas` are those of an epoch by size, with which the first period goes."""

    every: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        self._names = sorted({pool.component for pool in self.pools})
        self._domain_of = tuple(self._names.index(pool.component) for pool in self.pools)
        self._shares: list[list[float]] = [self._by_size()]
        """Of each period that is settled, the share of every component."""
        self._last: dict[str, float] = {}
        """The last loss of every component."""

    def observe(self, step: int, loss_of_domain: Mapping[str, float]) -> bool:
        """`step` steps are done. The shares of a period are settled KNOWN_AHEAD steps before it begins."""
        self._last.update({name: loss for name, loss in loss_of_domain.items() if name in self._names})
        if (step + KNOWN_AHEAD) % self.every or (step + KNOWN_AHEAD) // self.every != len(self._shares):
            return False
        self._shares.append(self._by_loss() or self._by_size())
        return True

    def state(self) -> dict[str, Any]:
        """A copy: a checkpoint is written while training goes on."""
        return {"components": self._names, "shares": [*self._shares], "last": dict(self._last)}

    def take_state(self, state: Mapping[str, Any]) -> None:
        if state.get("components") != self._names:
            raise ValueError(
                f"the checkpoint's loss-driven shares are of other domains ({state.get('components')}, here "
                f"{self._names}); start a new run"
            )
        before, self._last = self._shares, dict(state["last"])
        self._shares = [list(shares) for shares in state["shares"]]
        # after a roll-back, periods that were settled are settled anew: what was made of them goes
        common = zip(before, self._shares, strict=False)
        same = next(
            (period for period, (old, new) in enumerate(common) if old != new), min(len(before), len(self._shares))
        )
        for period in [period for period in self._deals if period >= same]:
            del self._deals[period]
        del self._begins[same + 1 :]  # that of a period is made of the shares before it

    def _numbers(self, step: int, row_R: Int) -> tuple[Int, Int]:
        some = self._dealt_at(step, row_R)
        turn_R, place_R = np.divmod(self._begun(step // self.every)[some.pool] + some.place, some.size)
        return some.pool, self.shuffle.samples(place_R, some.size, self._keys(some, turn_R), some.parts)

    def needed_next(self, step: int, row_R: Int) -> list[tuple[int, int, int]]:
        return []  # one range for all streams: no rank could tell which blocks are its own

    def _dealt_at(self, step: int, row_R: Int) -> Places:
        period, at = divmod(step, self.every)
        return self._period(period).places(at, row_R)

    def _by_size(self) -> list[float]:
        return [float(value) for value in np.bincount(self._domain_of, self.quotas)]

    def _by_loss(self) -> list[float]:
        """The last losses; a domain without one gets the mean, and none less than LEAST_SHARE of it: it would never be seen
        again. Empty where no loss is above 0."""
        mean = sum(self._last.values()) / max(len(self._last), 1)
        return [max(self._last.get(name, mean), LEAST_SHARE * mean) for name in self._names] if mean > 0 else []

    def _period(self, period: int) -> Deal:
        assert period < len(self._shares), f"the shares of period {period} are not settled yet"
        if period not in self._deals:
            # uncut: a pool's places go on from period to period, whichever group takes them
            self._deals[period] = self._dealing(self.every, tuple(self._quotas_of(period).tolist()), cut=False)
        return self._deals[period]

    @cached_property
    def _deals(self) -> dict[int, Deal]:
        return {}

    @cached_property
    def _begins(self) -> list[Int]:
        """Of each period, how many rows every pool gave before it."""
        return [np.zeros(len(self.pools), np.int64)]

    def _begun(self, period: int) -> Int:
        while len(self._begins) <= period:
            self._begins.append(self._begins[-1] + self._quotas_of(len(self._begins) - 1))
        return self._begins[period]

    def _quotas_of(self, period: int) -> Int:
        """Rows that each pool gives in a period; where groups hold one domain, in whole groups."""
        unit = self.batch // self.groups if any(self.components) else 1
        return component_quotas(
            self.pools, self._domain_of, self._shares[period], rows=self.every * self.batch, unit=unit
        )
