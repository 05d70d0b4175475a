"""One domain (or set) at a time: a batch, or each of several equal parts of it, holds a single one.

As in UnED (one domain a batch) and DINOv2 (one data set a batch, or a rank). With `share: equal` the domains take turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from retrieval_train.data.order.dealt import Dealt
from retrieval_train.data.order.loss_driven import LossDriven
from retrieval_train.data.order.order import Order, Samples
from retrieval_train.data.order.pools import DealtConfig, component_quotas, trained_domains

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

    @model_validator(mode="after")
    def _streams_are_groups(self) -> Config:
        if self.streams is not None and self.groups > 1:
            raise ValueError(
                f"streams: {self.streams} has no meaning with groups: {self.groups}, with ranges of their own; leave it out"
            )
        return self

    def problems(self, manifests: Sequence[Manifest], weights: Sequence[float], batch: int) -> list[tuple[str, str]]:
        found = super().problems(manifests, weights, batch)
        if found or batch % self.groups:
            return found + ([("groups", self._uneven(batch))] if batch % self.groups else [])
        due: dict[str, float] = {}
        for manifest, weight in zip(manifests, weights, strict=True):
            for name, count in trained_domains(manifest).items():
                component = manifest.name if self.by == "set" else name
                due[component] = due.get(component, 0) + weight * count
        short = self._short({name: rows for name, rows in due.items() if rows}, batch)
        return [("groups", short)] if short else []

    def build(self, samples: Samples, *, batch: int, seed: int) -> Order:
        if batch % self.groups:
            raise ValueError(f"data.order.groups: {self._uneven(batch)}")
        pools, unit = self.pools(samples), batch // self.groups
        due = self.component_rows(pools)
        names = sorted(due)
        components = tuple(names.index(pool.component) for pool in pools)
        if short := self._short(due, batch):
            raise ValueError(f"data.order.groups: {short}")
        if self.share == "size":
            turns: list[float] = [int(due[name] + 1e-6) // unit for name in names]
            steps = int(sum(turns)) // self.groups
        else:
            steps = max(1, round(sum(due.values())) // batch)
            turns = [due[name] for name in names]
        quotas = component_quotas(pools, components, turns, rows=steps * batch, unit=unit)
        common = (pools, tuple(quotas.tolist()), components, batch, seed, self.shuffle, self.groups)
        if self.every is not None:
            return LossDriven(*common, every=self.every)
        return Dealt(*common, streams=self.automatic_streams(pools, batch) if self.groups == 1 else 1)

    def _short(self, due: Mapping[str, float], batch: int) -> str:
        """Shares by size are whole groups, of which each component needs one; empty: each has."""
        unit = batch // self.groups
        for name, rows in sorted(due.items()):
            if self.share == "size" and int(rows + 1e-6) < unit:
                return (
                    f"{self.by} '{name}' has {rows:.0f} samples an epoch, and a group takes {unit}; take a smaller "
                    "data.batch or more groups, give it a larger share, or leave it out of data.mixture"
                )
        return ""

    def _uneven(self, batch: int) -> str:
        return f"{self.groups} groups do not cut data.batch {batch} into equal parts; take a divisor of {batch}"
