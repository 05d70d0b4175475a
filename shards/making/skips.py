"""Images that did not make it: counted, named, and too many of them refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shards.errors import ShardError
from shards.making.catalog import Catalog, Skip
from shards.making.writer import Written

NAMED_IN_ERROR = 5


@dataclass(slots=True)
class Skips:
    """Images that cannot be used, and how many of them are too many."""

    max_share: float
    num_images: int
    catalog: Catalog
    found: list[Skip] = field(default_factory=list)

    def add(self, written: Written) -> None:
        """Counts those of a shard; stops early, but not before there are a few to name."""
        self.found += [Skip(row, reason) for row, reason in written.lost]
        if len(self.found) >= NAMED_IN_ERROR:
            self.check()

    def check(self) -> None:
        """ShardError when there are too many."""
        share = len(self.found) / self.num_images
        if share > self.max_share:
            few = self.found[:NAMED_IN_ERROR]
            names = [record.name for record in self.catalog.records([skip.row for skip in few])]
            named = [f"  {name}: {skip.reason}" for name, skip in zip(names, few, strict=True)]
            named += ["  …"] if len(self.found) > len(named) else []
            raise ShardError(
                f"{len(self.found)} of {self.num_images} images cannot be used, more than --max-skipped "
                f"{self.max_share:.3g}; mend or remove them, or allow more:\n" + "\n".join(named)
            )


def as_rows(catalog: Catalog, skips: Sequence[Skip]) -> list[tuple[str, ...]]:
    """What skipped.csv says of them."""
    records = catalog.records([skip.row for skip in skips])
    return [(r.domain, r.label or "", r.source, s.reason) for r, s in zip(records, skips, strict=True)]
