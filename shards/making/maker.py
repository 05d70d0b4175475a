"""`shards make`: records in, a finished set out.

catalog   what the source says, written down             catalog.py
plan      what is kept and where it goes                 filters.py split.py folds.py plan.py
layout    which samples make which shard                 layout.py
write     shard by shard, in several processes           writer.py pool.py
finish    numbers of classes, lists, manifest, rename    this file, output.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shards import pool
from shards.errors import ShardError, Stopped
from shards.images.imaging import Look
from shards.making import output
from shards.making.base import Base, NothingNew
from shards.making.catalog import Catalog, Skip, fill
from shards.making.filters import usable
from shards.making.layout import Sizes, Task, lay_out
from shards.making.numbering import Numbering, number, renumber
from shards.making.plan import Plan
from shards.making.rules import Rules
from shards.making.skips import Skips, as_rows
from shards.making.split import make_plan, without
from shards.making.target import Target, open_target
from shards.making.writer import Work, Written, thin, write_shard
from shards.manifest import Manifest, write_manifest
from shards.record import Record
from shards.skipped import LONELY, SKIPPED, write_skipped

Watch = Callable[[int, int, int], None]
"""Called with the number of images to do, of images done, and of bytes written."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be made."""

    out: Path | str
    """A folder, or a URL that fsspec can write to."""
    config: Mapping[str, Any]
    """Source and options as they go into the manifest; two sets are the same if these and the records are."""
    given: Mapping[str, str]
    """Paths that were given; recorded, not compared."""
    rules: Rules = field(default_factory=Rules)
    sizes: Sizes = field(default_factory=Sizes)
    look: Look = field(default_factory=Look)
    seed: int = 0
    max_skipped: float = 0.01
    dropped: frozenset[int] = frozenset()
    """Key hashes of samples to leave out."""
    base: Base | None = None
    """The set that this one will be added to."""
    workers: int = 1
    force: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """The result."""

    manifest: Manifest
    where: str
    num_skipped: int = 0
    num_small: int = 0
    was_there: bool = False
    num_found: int = 0
    """Shards that an earlier run had finished."""
    num_dropped: int = 0
    """Of the list of samples to leave out, those that are in the input."""


def make_set(order: Order, records: Iterable[Record], watch: Watch = lambda total, images, num_bytes: None) -> Made:
    """Makes the set, goes on with it, or finds that it is there."""
    target = open_target(order.out)
    target.check_free(force=order.force)
    with output.locked(target.folder) as folder:
        try:
            output.tidy(folder)
            catalog = fill(folder, rename(records, order.rules), seed=order.seed)
            about = {"config": dict(order.config), "given": dict(order.given), "fingerprint": catalog.fingerprint}
            if not order.force and (found := target.find_finished(about, changed_at=catalog.changed_at)):
                output.remove(folder)
                return Made(found, str(order.out), was_there=True)
            output.begin(folder, about, changed_at=catalog.changed_at, force=order.force)
            return write_set(target, order, catalog, about, watch)
        except BaseException as error:
            how = output.how_to_go_on(folder)
            output.leave(folder)
            if isinstance(error, KeyboardInterrupt):
                raise Stopped(how) from error
            if isinstance(error, OSError):
                where = error.filename or folder
                raise ShardError(f"{where}: {error.strerror or error}; {how}") from error
            raise


def rename(records: Iterable[Record], rules: Rules) -> Iterator[Record]:
    """The records, with the domains' new names."""
    seen = set()
    for record in records:
        seen.add(record.domain)
        new = rules.rename_domains.get(record.domain)
        yield replace(record, domain=new) if new else record
    unknown = sorted(rules.rename_domains.keys() - seen)
    if unknown:
        raise ShardError(f"--rename-domain {unknown[0]}=…: no such domain; there are: {', '.join(sorted(seen))}")


def write_set(target: Target, order: Order, catalog: Catalog, about: Mapping[str, Any], watch: Watch) -> Made:
    """From the catalog to the finished set."""
    skips = Skips(order.max_skipped, len(catalog), catalog, list(catalog.skips))
    skips.check()
    num_dropped = count_dropped(catalog, order.dropped)
    there = usable(catalog, order.dropped, order.base)
    if not there.any() and order.base:
        raise NothingNew
    plan = make_plan(catalog, there, order.rules, order.base)
    num_small = int((there & ~plan.kept).sum())
    tasks = lay_out(catalog, plan, order.sizes, order.look)
    numbering = number(catalog, plan)
    works = {task.file: as_work(target, order, catalog, numbering, task) for task in tasks}
    target.begin(force=order.force)
    found = {
        file: one
        for file, work in works.items()
        if (one := target.find_written(file)) and fits(one, target, work, catalog)
    }
    written = write_all(works, found, order.workers, skips, watch)
    plan, num_more = leave_out(target, works, written, catalog, plan, order, skips)
    skips.check()
    refuse_empty(plan, order.base)
    finish(target, order, catalog, plan, works, written, skips, {**about, "small": num_small + num_more})
    manifest = target.publish(force=order.force)
    return Made(
        manifest, str(order.out), len(skips.found), num_small + num_more, num_found=len(found), num_dropped=num_dropped
    )


def fits(written: Written, target: Target, work: Work, catalog: Catalog) -> bool:
    """Whether what an earlier run finished holds the samples that are wanted: bytes at a URL may have changed the cuts."""
    rows = np.load(target.set_folder / written.shard.sidecar, mmap_mode="r", allow_pickle=False)
    return np.array_equal(rows["key_hash"], catalog["key_hash"][written.rows(work)])


def count_dropped(catalog: Catalog, dropped: frozenset[int]) -> int:
    """How many samples the list leaves out; ShardError where it knows none of them."""
    count = int(np.isin(catalog["key_hash"], np.fromiter(dropped, np.uint64, len(dropped))).sum())
    if dropped and not count:
        key = next(catalog.keys(np.array([0])))
        raise ShardError(
            f"--drop: none of its {len(dropped)} keys is in the input, whose keys are like {key}; a key starts with the "
            "domain, which is the set's name unless --domain says another"
        )
    return count


def refuse_empty(plan: Plan, base: Base | None) -> None:
    """Every image may prove unreadable where that is allowed, and every new one of a set that grows."""
    if not plan.kept.any():
        if base:
            raise NothingNew
        raise ShardError("no image is left: none of them can be read")


def as_work(target: Target, order: Order, catalog: Catalog, numbering: Numbering, task: Task) -> Work:
    """A shard as the writing process needs it."""
    rows = task.rows
    return Work(
        folder=target.folder,
        into=target.set_folder,
        file=task.file,
        split=task.split,
        role=task.role,
        row=rows,
        at=catalog["at"][rows],
        length=catalog["length"][rows],
        is_shared=catalog["is_shared"][rows],
        numbers=numbering.of(catalog, rows),
        labels=numbering.labels_of(catalog, rows),
        look=order.look,
        is_multi_label=catalog.is_multi_label,
        url=target.url,
        fold=task.fold,
    )


def write_all(
    works: Mapping[str, Work], found: Mapping[str, Written], workers: int, skips: Skips, watch: Watch
) -> dict[str, Written]:
    """Every shard by its file: those that an earlier run finished, and the rest written now."""
    written = dict(found)
    for one in found.values():
        skips.add(one)
    total = sum(len(work.row) for work in works.values())
    before = sum(len(works[file].row) for file in written)
    rest = sorted((work for file, work in works.items() if file not in written), key=lambda work: -len(work.row))
    watch(total, before, 0)
    count = lambda images, num_bytes: watch(total, before + images, num_bytes)  # noqa: E731
    with closing(pool.run(write_shard, rest, workers=workers, watch=count)) as ready:
        for one in ready:
            written[one.shard.file] = one
            skips.add(one)
    watch(total, total, 0)
    return {file: written[file] for file in works}


def leave_out(
    target: Target,
    works: Mapping[str, Work],
    written: dict[str, Written],
    catalog: Catalog,
    plan: Plan,
    order: Order,
    skips: Skips,
) -> tuple[Plan, int]:
    """Takes out, in place, what cannot stand without the images that proved unreadable.

    Gives the plan without both, and how many went because their class is now too small.
    """
    lost = np.array([row for one in written.values() for row, _ in one.lost], np.int64)
    if not len(lost):
        return plan, 0
    rest, lonely = without(catalog, plan, lost, order.rules, order.base)
    gone = np.setdiff1d(np.flatnonzero(plan.kept & ~rest.kept), lost)
    for file, work in works.items():
        out = tuple(np.intersect1d(work.row, gone).tolist())
        if out != written[file].left_out:
            target.bring(file)
            written[file] = thin(work, written[file], out)
    skips.found += [Skip(int(row), LONELY) for row in lonely]
    return rest, len(gone) - len(lonely)


def finish(
    target: Target,
    order: Order,
    catalog: Catalog,
    plan: Plan,
    works: Mapping[str, Work],
    written: Mapping[str, Written],
    skips: Skips,
    about: Mapping[str, Any],
) -> None:
    """The files beside the tars, and ids that count what is really there."""
    final, folder = number(catalog, plan), target.set_folder
    shards = [one.shard for one in written.values() if one.shard.samples]
    for shard in shards:
        rows = written[shard.file].rows(works[shard.file])
        renumber(folder, shard, final.of(catalog, rows), final.labels_of(catalog, rows), rows)
    output.clear_but(folder, {name for shard in shards for name in (shard.file, shard.sidecar, shard.labels)})
    if skips.found:
        write_skipped(folder / SKIPPED, as_rows(catalog, skips.found))
    several = {"multi_label": True} if catalog.is_multi_label else {}
    folds = {"folds": plan.num_folds} if plan.num_folds else {}
    write_manifest(
        folder,
        name=output.name_of(order.out),
        shards=shards,
        domains=final.domain_names(catalog),
        classes=final.class_table(catalog, plan),
        groups=final.group_names(catalog),
        about={**about, **several, **folds, "skipped": len(skips.found)},
    )
