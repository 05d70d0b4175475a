"""`shards make`: records in, a finished set out."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shards.errors import ShardError
from shards.key import name_samples
from shards.manifest import Classes, Manifest, Shard, write_manifest
from shards.output import check_free, find_finished, new_folder
from shards.record import Record, Skip
from shards.split import Plan, Rules, make_plan
from shards.writer import Numbers, Sizes, write_shards

log = logging.getLogger(__name__)

Watch = Callable[[int, int], None]
"""Called after every image with the number of images of this pass and the bytes just written (0: skipped)."""
NAMED_IN_ERROR = 5


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be made."""

    out: Path
    config: Mapping[str, Any]
    """Source and options as they go into the manifest; two sets are the same if these and the records are."""
    given: Mapping[str, str]
    """Paths that were given; recorded, not compared."""
    rules: Rules = field(default_factory=Rules)
    sizes: Sizes = field(default_factory=Sizes)
    seed: int = 0
    max_skipped: float = 0.01
    force: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """The result."""

    manifest: Manifest
    skips: Sequence[Skip] = ()
    num_small: int = 0
    was_there: bool = False


def make_set(order: Order, records: Iterable[Record], watch: Watch = lambda total, num_bytes: None) -> Made:
    """Makes the set, or finds that it is there; ShardError and no trace where it cannot be made."""
    check_free(order.out, force=order.force)
    listed = mark_repeated(records)
    if not listed:
        raise ShardError("the input has no images")
    about: dict[str, Any] = {
        "config": dict(order.config),
        "given": dict(order.given),
        "fingerprint": fingerprint(listed),
    }
    if not order.force:
        changed_at = max(record.changed_at for record in listed)
        found = find_finished(order.out, about, changed_at=changed_at)
        if found:
            return Made(found, was_there=True)
    skips = Skips(order.max_skipped, len(listed))
    for record in listed:
        if record.problem:
            skips.add(Skip(record, record.problem))
    usable = [record for record in listed if not record.problem]
    with new_folder(order.out, force=order.force) as folder:
        try:
            num_small = write_set(folder, order, usable, skips, about, watch)
        except OSError as error:
            raise ShardError(f"{folder}: {error.strerror}; the set was not made") from error
    return Made(Manifest.load(order.out), skips.found, num_small)


def write_set(
    folder: Path, order: Order, records: list[Record], skips: Skips, about: Mapping[str, Any], watch: Watch
) -> int:
    """Fills the folder; gives the number of images left out because their class is too small.

    Images are read once, while writing. One that turns out unreadable may take its class below two images, or a query
    its only match: if the plan without it puts anything elsewhere, everything is written again by the new plan.
    """
    keys = {id(record): key for record, key in zip(records, name_samples(records), strict=True)}

    def plan_for(records: list[Record], *, after_loss: bool) -> Plan:
        return make_plan(records, [keys[id(record)] for record in records], order.rules, spare_lonely=after_loss)

    plan = plan_for(records, after_loss=False)
    while True:
        shards, lost = write_pass(folder, order, plan, skips, watch)
        if not lost:
            break
        skips.check()
        records = [record for record in records if id(record) not in lost]
        written, plan = plan, plan_for(records, after_loss=True)
        rest = [entry for entry in written.placed if id(entry.record) not in lost]
        if plan.placed == rest and number(plan) == number(written):
            break
        log.warning("%d unreadable images change the split: writing again without them", len(lost))
        for path in folder.iterdir():
            path.unlink()
    skips.found += [Skip(record, "no readable index image of its class is left") for record in plan.lonely]
    skips.check()
    finish(folder, order, plan, shards, skips, about)
    return len(plan.small)


def write_pass(folder: Path, order: Order, plan: Plan, skips: Skips, watch: Watch) -> tuple[list[Shard], set[int]]:
    """Writes the tars by this plan; gives them and the ids of the records that could not be read."""
    lost: set[int] = set()

    def note(num_bytes: int, skip: Skip | None) -> None:
        if skip:
            lost.add(id(skip.record))
            skips.add(skip)
        watch(len(plan.placed), num_bytes)

    shards = write_shards(folder, plan.placed, number(plan), order.sizes, seed=order.seed, watch=note)
    return shards, lost


def number(plan: Plan) -> Numbers:
    """Ids of classes, domains and groups: their ranks."""
    records = [entry.record for entry in plan.placed]
    classes = sorted({(record.domain, record.label) for record in records if record.label is not None})
    groups = [("", ""), *sorted({(record.domain, record.group) for record in records if record.group})]
    return Numbers(
        classes={name: at for at, name in enumerate(classes)},
        domains={domain: at for at, domain in enumerate(sorted({record.domain for record in records}))},
        groups={group: at for at, group in enumerate(groups)},
    )


def finish(
    folder: Path, order: Order, plan: Plan, shards: Sequence[Shard], skips: Skips, about: Mapping[str, Any]
) -> None:
    """The files beside the tars."""
    numbers = number(plan)
    classes = Classes.count((p.record.domain, p.record.label, p.record.group, p.split) for p in plan.placed)
    if skips.found:
        write_skips(folder / "skipped.csv", skips.found)
    write_manifest(
        folder,
        name=order.out.name,
        shards=shards,
        domains=list(numbers.domains),
        classes=classes,
        groups=list(numbers.groups),
        about={**about, "skipped": len(skips.found), "small": len(plan.small)},
    )


@dataclass(slots=True)
class Skips:
    """Images that cannot be used, and how many of them are too many."""

    max_share: float
    num_images: int
    found: list[Skip] = field(default_factory=list)

    def add(self, skip: Skip) -> None:
        """Counts one more; stops early, but not before there are a few to name."""
        self.found.append(skip)
        if len(self.found) >= NAMED_IN_ERROR:
            self.check()

    def check(self) -> None:
        """ShardError when there are too many."""
        share = len(self.found) / self.num_images
        if share > self.max_share:
            named = [f"  {skip.record.name}: {skip.reason}" for skip in self.found[:NAMED_IN_ERROR]]
            named += ["  …"] if len(self.found) > len(named) else []
            raise ShardError(
                f"{len(self.found)} of {self.num_images} images cannot be used, more than --max-skipped "
                f"{self.max_share:.3g}; mend or remove them, or allow more:\n" + "\n".join(named)
            )


def write_skips(path: Path, skips: Iterable[Skip]) -> None:
    """skipped.csv, sorted by name."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("domain", "label", "source", "reason"))
        rows = ((skip.record.domain, skip.record.label or "", skip.record.source, skip.reason) for skip in skips)
        table.writerows(sorted(rows))


def mark_repeated(records: Iterable[Record]) -> list[Record]:
    """The records as a list; the second one of the same image of a domain gets a problem."""
    listed, seen = [], set()
    for record in records:
        place = record.domain, record.source
        if "/" in record.domain or not record.domain:
            raise ShardError(f"{record.source}: the domain {record.domain!r} is empty or has a slash; rename it")
        if place in seen and not record.problem:
            record = replace(record, problem="listed more than once")
        seen.add(place)
        listed.append(record)
    return listed


def fingerprint(records: Iterable[Record]) -> str:
    """sha256 over what the input says and how large its files are, whatever their order."""
    lines = sorted(
        json.dumps([r.domain, r.source, r.label, r.group, r.split, r.num_bytes, dict(r.extra)], sort_keys=True)
        for r in records
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
