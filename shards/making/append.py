"""New images for a set: they first become a set beside it, `DIR.new`, then the two are merged and take its place.

A stop in between loses nothing, and the same command goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import ShardError, Stopped
from shards.making import base as bases
from shards.making import output
from shards.making.base import Base
from shards.making.maker import Order, make_set
from shards.making.merge import Watch, merge_sets, refuse_begun
from shards.manifest import MANIFEST, Manifest
from shards.record import Record

WORDS = ("config", "given", "fingerprint")


def append_set(
    base: Base, order: Order, records: Iterable[Record], watch: Watch = lambda *_: None
) -> tuple[Manifest, int]:
    """(the set with the records that it did not have, how many those are)"""
    bases.refuse_damaged(base.manifest)
    if base.manifest.num_folds:
        raise ShardError(
            f"{base.manifest.folder} has folds, which new classes would make uneven: make a new set of all images, by the "
            "same `shards make ... --folds` with another --out"
        )
    folder, new = base.manifest.folder, Path(order.out)
    refuse_begun(output.partial_folder(folder))
    clear_leftovers(base, new)
    order = replace(order, base=base, config={**order.config, "base": base.manifest.digest})
    try:
        added = make_set(order, records, watch).manifest
    except bases.NothingNew:
        output.remove(output.partial_folder(new))
        return base.manifest, 0
    try:
        num_new = sum(shard.samples for shard in added.shards)
        grown = base.manifest
        if num_new:
            about = keep_about(base.manifest, added)
            grown = merge_sets([folder, new], folder, force=True, about=about, name=base.name)
        discard(new)
    except KeyboardInterrupt as stop:
        raise Stopped("the new images are kept; repeat the command to go on") from stop
    return grown, num_new


def clear_leftovers(base: Base, new: Path) -> None:
    """Removes what an append left that was stopped after its merge, or before the set changed otherwise."""
    if (new / MANIFEST).is_file():
        left = Manifest.load(new)
        made_for = left.about.get("config", {}).get("base")  # None: somebody's own set of that name
        if made_for and (made_for != base.manifest.digest or np.isin(Base(left).hashes, base.hashes).all()):
            discard(new)
    partial = output.partial_folder(new)
    if base_of(partial / output.PLAN) not in (None, base.manifest.digest):
        with output.locked(partial):
            output.clear_but(partial, (output.LOCK,))
            output.remove(partial)


def base_of(plan: Path) -> Any:
    """The digest of the set that a begun one was to be added to."""
    try:
        return json.loads(plan.read_bytes())["config"].get("base")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def discard(new: Path) -> None:
    """Removes the set as one: a half-removed one would be in the way for ever."""
    with output.locked(output.partial_folder(new)) as partial:
        output.clear_but(partial, (output.LOCK,))
        new.rename(partial / output.SET)
        shutil.rmtree(partial / output.SET)
        output.remove(partial)


def keep_about(manifest: Manifest, added: Manifest) -> dict[str, object]:
    """How the grown set was made: as the first was, and then what was added."""
    said = {name: manifest.about[name] for name in WORDS}
    config: Mapping[str, Any] = added.about["config"]
    part = {**{name: added.about[name] for name in WORDS}, "config": {k: v for k, v in config.items() if k != "base"}}
    if all(part[name] == said[name] for name in ("config", "given")):
        said["fingerprint"] = part["fingerprint"]  # its own source was read again, and is all in the set now
    owed = {name: manifest.about[name] for name in ("salvaged",) if name in manifest.about}  # by repair
    return {**said, **owed, "appended": [*manifest.about.get("appended", ()), part]}
