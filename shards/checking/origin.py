"""The source that a set was made from, read again: broken shards are written from it as they were.

Which samples a shard had is known from its sidecar, by the hashes of their keys; where the sidecar is lost too, the same
plan is made as when the set was made. Whether it worked is never assumed: the sums in the manifest tell.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.key import hash_8
from shards.making.catalog import Catalog, fill
from shards.making.filters import usable
from shards.making.layout import lay_out
from shards.making.maker import Order, rename
from shards.making.options import options_of, read_order
from shards.making.split import make_plan, without
from shards.making.writer import Losses, Work, get_ready
from shards.manifest import Manifest, Shard
from shards.skipped import LONELY
from shards.sources import load_source
from shards.tar import Ready

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Origin:
    """One source; a set that was appended to has several."""

    folder: Path
    """With the catalog's files, and where shards are written."""
    order: Order
    catalog: Catalog
    is_unchanged: bool
    """Whether it says what it said when the set was made, of files of the same sizes."""

    @cached_property
    def _sorted(self) -> tuple[Hashes, NDArray[np.int64]]:
        rows = np.flatnonzero(~self.catalog["is_out"])
        rows = rows[np.argsort(self.catalog["key_hash"][rows], kind="stable")]
        return self.catalog["key_hash"][rows], rows

    def find_rows(self, hashes: Hashes) -> NDArray[np.int64]:
        """The catalog's row for every key; -1 where it is not there any more."""
        known, rows = self._sorted
        at = np.searchsorted(known, hashes)
        there = np.minimum(at, len(known) - 1)
        return np.where(known[there] == hashes, rows[there], -1) if len(known) else np.full(len(hashes), -1)

    def plan(self, skipped: Path) -> dict[str, Hashes]:
        """The keys of each shard in tar order, as they were if the source is unchanged."""
        catalog, order = self.catalog, self.order
        plan = make_plan(catalog, usable(catalog, order.dropped, None), order.rules)
        tasks = lay_out(catalog, plan, order.sizes, order.look)
        is_lost = np.isin(catalog["source_hash"], np.array(sorted(read_skipped(skipped)), np.uint64)) & plan.kept
        rest, _ = without(catalog, plan, np.flatnonzero(is_lost), order.rules)
        return {task.file: catalog["key_hash"][task.rows[rest.kept[task.rows]]] for task in tasks}

    def work(self, shard: Shard, rows: NDArray[np.int64]) -> Work:
        """The shard of these rows, to be written again. Its sidecar is made from the tar later, so ids are left out."""
        return Work(
            folder=self.folder,
            into=self.folder,
            file=shard.file,
            split=shard.split,
            role=shard.role,
            row=rows,
            at=self.catalog["at"][rows],
            length=self.catalog["length"][rows],
            is_shared=self.catalog["is_shared"][rows],
            numbers=np.zeros((len(rows), 3), np.int64),
            labels={},
            look=self.order.look,
            fold=shard.fold,
        )

    def sample(self, shard: Shard, hashed: int) -> Ready | None:
        """One sample, made again; None where it cannot be."""
        rows = self.find_rows(np.array([hashed], np.uint64))
        if rows[0] < 0:
            return None
        return next(get_ready(self.work(shard, rows), Losses(), lambda num_bytes: None), None)


def read_skipped(path: Path) -> Iterator[int]:
    """Hashes of the sources of images that could not be read when the set was made."""
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.DictReader(file):
            if row.get("reason") != LONELY:
                yield hash_8(f"{row.get('domain')}\0{row.get('source')}")


def read_origins(manifest: Manifest, aside: Path) -> Iterator[Origin | str]:
    """Every source of the set, or one line that says why it cannot be read again."""
    for number, part in enumerate(find_parts(manifest)):
        config, given = part.get("config", {}), part.get("given", {})
        name = f"the source, {config.get('source')} {' '.join(map(str, given.values()))}".strip()
        folder = aside / f"source{number}"
        folder.mkdir()
        try:
            options = options_of(replace(manifest, about={"config": config, "given": given}))
            yield read_origin(options, manifest, folder, part.get("fingerprint"))
        except (ShardError, OSError) as error:
            yield f"{name}: cannot be read again ({error})"
        except (TypeError, ValueError, AttributeError, KeyError) as error:  # options that no command line would take
            yield f"{name}: its options in manifest.json are damaged ({error!r})"


def find_parts(manifest: Manifest) -> Iterator[Mapping[str, Any]]:
    """What the set was made of, and what was added later from elsewhere."""
    about = manifest.about
    salvaged = about.get("salvaged", {})
    yield {**about, "fingerprint": salvaged.get("fingerprint", about.get("fingerprint"))}
    seen = [(about.get("config"), about.get("given"))]
    appended = about.get("appended", [])
    for part in appended if isinstance(appended, list) else []:
        if isinstance(part, dict) and (said := (part.get("config"), part.get("given"))) not in seen:
            seen.append(said)
            yield part


def read_origin(options: argparse.Namespace, manifest: Manifest, folder: Path, fingerprint: str | None) -> Origin:
    """The source that these options name."""
    name = Path(str(manifest.about.get("name", ""))).name or manifest.name
    options.out = manifest.folder.with_name(name)  # sources name their default domain after the set
    if options.drop and not options.drop.is_file():
        options.drop = None  # what it named is in no sidecar
    order = read_order(options, options.out)
    records = rename(load_source(options.source).records(options), order.rules)
    catalog = fill(folder, records, seed=order.seed)
    return Origin(folder, order, catalog, is_unchanged=catalog.fingerprint == fingerprint)
