"""Every batch holds every set (or domain) in its share: the order for training on all of them at once."""

from __future__ import annotations

from typing import Literal

from retrieval_train.data.order.apportion import largest_remainders
from retrieval_train.data.order.dealt import Dealt
from retrieval_train.data.order.loss_driven import LossDriven
from retrieval_train.data.order.order import Order, Samples
from retrieval_train.data.order.pools import DealtConfig


class Config(DealtConfig):
    """Each set's share of a batch is exact to one row, or to one row for each stream; the default order."""

    name: Literal["mixed"] = "mixed"
    """The order."""
    last: Literal["drop", "wrap"] = "drop"
    """The samples that fill no whole batch at an epoch's end: drop leaves them out, other ones every epoch; wrap fills the
    batch up with samples that come a second time."""

    def build(self, samples: Samples, *, batch: int, seed: int) -> Order:
        pools = self.pools(samples)
        due = self.component_rows(pools)
        sizes = {name: sum(p.weight * p.size for p in pools if p.component == name) for name in due}
        exact = [due[p.component] * p.weight * p.size / sizes[p.component] for p in pools]
        # rounded down, two epochs of half a pool have different halves
        exact = [float(int(part + 1e-6)) if part < p.size else part for part, p in zip(exact, pools, strict=True)]
        wanted = largest_remainders(int(sum(exact) + 1e-6), exact)
        rows = int(wanted.sum())
        steps = rows // batch if self.last == "drop" else -(-rows // batch)
        if steps == 0:
            raise ValueError(f"data.batch is {batch}, but an epoch has only {rows} samples; take a smaller batch")
        quotas = largest_remainders(steps * batch, wanted)
        if self.last == "wrap":
            quotas = wanted + largest_remainders(steps * batch - rows, wanted)
        streams = self.automatic_streams(pools, batch)
        one = (0,) * len(pools)
        common = (pools, tuple(quotas.tolist()), one, batch, seed, self.shuffle)
        if self.every is not None:
            return LossDriven(*common, every=self.every)
        return Dealt(*common, streams=streams)
