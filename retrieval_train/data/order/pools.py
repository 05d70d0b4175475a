"""What is dealt by shares: pools of samples, and the part of the config that all orders by shares have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from retrieval_train.data.order.apportion import largest_remainders
from retrieval_train.data.order.order import OrderConfig, Samples
from retrieval_train.data.order.permutation import Int
from retrieval_train.data.order.shuffle import Shuffle

if TYPE_CHECKING:
    from shards.manifest import Manifest

KNOWN_AHEAD = 64  # steps by which the shares of a period are settled before it begins: no loader reads further ahead
NEAR = 4  # samples of a set that are so near each other are read in one piece
MOST_STREAMS = 16  # unless asked for
MOST_WEIGHT = 1000


@dataclass(frozen=True)
class Pool:
    """Samples of one set that are dealt evenly."""

    set: int
    component: str
    """The domain or the set: what shares are given to."""
    size: int
    weight: float = 1.0
    """How often an epoch takes each sample, where shares go by size."""
    numbers: NDArray[np.uint32] | None = None
    """Which samples of the set, ascending; None: all of them."""

    def sample(self, place: Int) -> Int:
        return place if self.numbers is None else self.numbers[place].astype(np.int64)

    def runs(self, first: int, count: int) -> list[tuple[int, int]]:
        """(first sample, count) of the stretches of the set in which samples [first, first + count) of the pool lie."""
        if self.numbers is None:
            return [(first, count)]
        number_K = self.sample(np.arange(first, first + count))
        starts = np.flatnonzero(np.diff(number_K, prepend=-NEAR - 1) > NEAR)
        begin_K, end_K = number_K[starts], number_K[np.r_[starts[1:], count] - 1]
        return list(zip(begin_K.tolist(), (end_K - begin_K + 1).tolist(), strict=True))


class DealtConfig(OrderConfig):
    """What all orders by shares have."""

    by: Literal["set", "domain"] = "set"
    """What gets a share: each set of the mixture or, over all sets, each domain."""
    share: Literal["size", "equal", "temperature", "given", "loss"] = "size"
    """size: by images, and by the mixture's weights; equal: all alike; temperature: by images ** temperature; given: by
    `weights`; loss: by the last loss of each domain (UDON, section 3.3), anew every `every` steps."""
    temperature: float | None = Field(default=None, ge=0, le=1)
    """0 is equal, 1 is by size."""
    weights: dict[str, float] | None = None
    """Domain or set -> share, for `share: given`; they need not add up to 1."""
    every: int | None = Field(default=None, ge=2 * KNOWN_AHEAD)
    """Steps between two settings of the shares, for `share: loss`; the first steps go by size."""
    streams: int | None = Field(default=None, ge=1)
    """Parts of a batch that read ranges of the shards of their own: with a multiple of the nodes, a node opens only its
    share of the tars. null: up to 16, as many as leave each of them a window of the shuffle."""
    shuffle: Shuffle = Shuffle()
    """How far samples are mixed."""

    @model_validator(mode="after")
    def _fits_its_share(self) -> DealtConfig:
        for name, share in (("temperature", "temperature"), ("weights", "given"), ("every", "loss")):
            given = getattr(self, name) is not None
            if given and self.share != share:
                raise ValueError(f"{name} has no meaning with share: {self.share}; say share: {share} or leave it out")
            if self.share == share and not given:
                raise ValueError(f"share: {share} needs {name}")
        if self.share == "loss" and self.by != "domain":
            raise ValueError("share: loss follows the losses of domains; say by: domain")
        if self.share == "loss" and self.streams is not None:
            raise ValueError(
                "streams has no meaning with share: loss, where all rows read the whole sets; leave it out"
            )
        if self.weights is not None and (problem := bad_weights(self.weights)):
            raise ValueError(f"weights {problem}")
        return self

    def problems(self, manifests: Sequence[Manifest], weights: Sequence[float], batch: int) -> list[tuple[str, str]]:
        rows = sum(
            int(weight * sum(shard.samples for shard in manifest.select("train")) + 1e-6)
            for manifest, weight in zip(manifests, weights, strict=True)
        )
        if rows < batch:
            return [("batch", f"{batch} rows, but an epoch has only {rows}; take a smaller batch")]
        if self.weights is None:
            return []
        sets = [manifest.name for manifest in manifests]
        there = set(sets) if self.by == "set" else {name for m in manifests for name in trained_domains(m)}
        return weight_problems(self.weights, sorted(there), self.by)

    def pools(self, samples: Samples) -> list[Pool]:
        """The pools of the mixture, those of a component together. Raises ValueError where there is nothing to deal."""
        found = [pool for number in range(len(samples.readers)) for pool in self._pools_of(samples, number)]
        found = [pool for pool in found if pool.size and pool.weight]
        if not found:
            raise ValueError("data.mixture: no sample with a label is left to train on; give its sets weights above 0")
        return sorted(found, key=lambda pool: (pool.component, pool.set))

    def component_rows(self, pools: Sequence[Pool]) -> dict[str, float]:
        """Rows of an epoch that each component is due; not rounded."""
        names = sorted({pool.component for pool in pools})
        due = {name: sum(p.weight * p.size for p in pools if p.component == name) for name in names}
        total = sum(due.values())
        if self.share in ("size", "loss"):
            return due
        if self.share == "given":
            assert self.weights is not None
            if problems := weight_problems(self.weights, names, self.by):
                raise ValueError(f"data.order.{problems[0][0]}: {problems[0][1]}")
            wanted = {name: self.weights[name] for name in names}
        else:
            power = self.temperature if self.temperature is not None else 0.0
            wanted = {name: value**power for name, value in due.items()}
        return {name: total * value / sum(wanted.values()) for name, value in wanted.items()}

    def automatic_streams(self, pools: Sequence[Pool], batch: int) -> int:
        if self.streams is not None:
            return self.streams
        most = min(sum(pool.size for pool in pools) // self.shuffle.window, batch, MOST_STREAMS)
        return 1 << max(most.bit_length() - 1, 0)

    def _pools_of(self, samples: Samples, number: int) -> list[Pool]:
        reader, weight = samples.readers[number], samples.weights[number]
        domains = reader.manifest.domains
        is_whole = not samples.only_labelled or samples.is_all_labelled(number)
        if is_whole and (self.by == "set" or len(domains) == 1):
            component = reader.manifest.name if self.by == "set" else domains[0]
            return [Pool(number, component, len(reader), weight)]
        if len(reader) >= 2**32:
            raise ValueError(
                f"data.mixture: {reader.manifest.name} has {len(reader):,} samples; a set that is dealt in part (by "
                f"domain, or without its unlabelled samples) may have {2**32 - 1:,}, so cut it into several sets"
            )
        kept = np.ones(len(reader), bool) if is_whole else samples.label_N[number] >= 0
        if self.by == "set":
            numbers = np.flatnonzero(kept).astype(np.uint32)
            return [Pool(number, reader.manifest.name, len(numbers), weight, numbers)]
        domain_N = reader.domains()
        found = []
        for place, domain in enumerate(domains):
            numbers = np.flatnonzero(kept & (domain_N == place)).astype(np.uint32)
            found.append(Pool(number, domain, len(numbers), weight, numbers))
        return found


def trained_domains(manifest: Manifest) -> dict[str, int]:
    """Domains with labelled training samples, and how many; too many where they have several labels, which all count."""
    found: dict[str, int] = {}
    for name, count in zip(manifest.classes.class_names(), manifest.classes.counts("train").tolist(), strict=True):
        if count:
            domain = name.partition("/")[0]
            found[domain] = found.get(domain, 0) + count
    return found


def bad_weights(weights: Mapping[str, float]) -> str:
    """What is wrong with weights, whatever they are for; empty: nothing."""
    if not all(0 <= weight <= MOST_WEIGHT for weight in weights.values()) or not any(weights.values()):
        return f"{dict(weights)} needs weights of 0 to {MOST_WEIGHT}, and one above 0"
    return ""


def weight_problems(weights: Mapping[str, float], there: Sequence[str], by: str) -> list[tuple[str, str]]:
    unknown, missing = sorted(set(weights) - set(there)), sorted(set(there) - set(weights))
    if unknown:
        return [("weights", f"no {by} '{unknown[0]}' with training samples; there are: {', '.join(there)}")]
    if missing:
        return [("weights", f"names no '{missing[0]}'; give every {by} a weight, 0 leaves it out")]
    if not any(weights[name] for name in there):
        return [("weights", "are all 0; give one of them a weight above 0")]
    return []


def component_quotas(
    pools: Sequence[Pool], components: Sequence[int], shares: Sequence[float], *, rows: int, unit: int
) -> Int:
    """`rows` rows dealt to the components by shares, in whole `unit`s, and within each to its pools by size and weight."""
    turns = largest_remainders(rows // unit, shares) * unit
    quotas = np.zeros(len(pools), np.int64)
    for component, num_rows in enumerate(turns.tolist()):
        members = [number for number, mine in enumerate(components) if mine == component]
        weights = [pools[number].weight * pools[number].size for number in members]
        quotas[members] = largest_remainders(num_rows, weights)
    return quotas
