"""One domain (or set) at a time: a batch, or each of several equal parts of it, holds a single one.

As in UnED (one domain a batch) and DINOv2 (one data set a batch, or a rank). With `share: equal` the domains take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from retrieval_train.data.order.dealt import Dealt
from retrieval_train.data.order.loss_driven import LossDriven
from retrieval_train.data.order.order import Order, Samples
from retrieval_train.data.order.pools import DealtConfig, component_quotas

if TYPE_CHECKING:
    from shards.manifest import Manifest


class Config(DealtConfig):
    """Domains take turns by their shares; of each, what fills no whole group is left out, other samples every epoch."""

    name: Literal["grouped"] = "grouped"
    """The order."""
    by: Literal["set", "domain"] = "domain"
    """What a group holds one of."""
    groups: int = Field(default=1, ge=1)
    """Equal parts of the batch that hold one domain each: 1 gives batches of one domain; the number of ranks gives each rank
    a domain of its own."""

    def problems(self, manifests: Sequence[Manifest], weights: Sequence[float], batch: int) -> list[tuple[str, str]]:
        found = super().problems(manifests, weights, batch)
        return found + ([("groups", self._uneven(batch))] if batch % self.groups else [])

    def build(self, samples: Samples, *, batch: int, seed: int) -> Order:
        if batch % self.groups:
            raise ValueError(f"data.order.groups: {self._uneven(batch)}")
        pools, unit = self.pools(samples), batch // self.groups
        due = self.component_rows(pools)
        names = sorted(due)
        components = tuple(names.index(pool.component) for pool in pools)
        if self.share == "size":
            turns: list[float] = [int(due[name] + 1e-6) // unit for name in names]
            if 0 in turns:
                name = names[turns.index(0)]
                raise ValueError(
                    f"data.order: {self.by} '{name}' has {due[name]:.0f} samples an epoch, and a group takes {unit}; take a "
                    "smaller data.batch or more groups, give it a larger share, or leave it out of data.mixture"
                )
            steps = int(sum(turns)) // self.groups
        else:
            steps = max(1, round(sum(due.values())) // batch)
            turns = [due[name] for name in names]
        quotas = component_quotas(pools, components, turns, rows=steps * batch, unit=unit)
        common = (pools, tuple(quotas.tolist()), components, batch, seed, self.shuffle, self.groups)
        if self.every is not None:
            return LossDriven(*common, every=self.every)
        return Dealt(*common, streams=self.automatic_streams(pools, batch) if self.groups == 1 else 1)

    def _uneven(self, batch: int) -> str:
        return f"{self.groups} groups do not cut data.batch {batch} into equal parts; take a divisor of {batch}"
