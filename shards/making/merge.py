"""Several sets become one without a byte of their tars being written: tars are linked under new names, sidecars get the
new set's ids. On file systems without hard links, and across them, tars are copied."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.classes import Classes
from shards.errors import ShardError, Stopped, first_few
from shards.making import output
from shards.making.base import refuse_damaged
from shards.making.writer import DONE
from shards.manifest import LABELS, SIDECAR, Manifest, Shard, write_labels, write_manifest, write_sidecar
from shards.skipped import SKIPPED, SKIPPED_COLUMNS, write_skipped

Watch = Callable[[int, int, int], None]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Names:
    """What all sets have, numbered by rank."""

    domains: list[str]
    classes: list[tuple[str, str]]
    groups: list[tuple[str, str]]

    @classmethod
    def of(cls, manifests: Sequence[Manifest]) -> Names:
        """Of these sets."""
        domains = {domain for manifest in manifests for domain in manifest.domains}
        classes = {name for manifest in manifests for name in manifest.classes.ids}
        groups = {group for manifest in manifests for group in manifest.groups}
        return cls(sorted(domains), sorted(classes), sorted(groups))


@dataclass(frozen=True)
class Ranks:
    """New ids by a set's own; the last class id is for -1."""

    domains: Ids
    classes: Ids
    groups: Ids

    @classmethod
    def of(cls, manifest: Manifest, names: Names) -> Ranks:
        """For this set."""

        def places(own: Sequence[object], all_names: Sequence[object]) -> list[int]:
            there = {name: at for at, name in enumerate(all_names)}
            return [there[name] for name in own]

        return cls(
            np.array(places(manifest.domains, names.domains)),
            np.array([*places(list(manifest.classes.ids), names.classes), -1]),
            np.array(places(manifest.groups, names.groups)),
        )


def merge_sets(
    folders: Sequence[Path],
    out: Path,
    *,
    force: bool = False,
    watch: Watch = lambda *_: None,
    about: Mapping[str, object] | None = None,
    name: str = "",
) -> Manifest:
    """The set of all samples of these sets, at `out`; ShardError where a sample is in two of them.

    Its name is that of the folder unless another one is given.
    """
    out = out.resolve() if out.is_symlink() else out
    manifests = [Manifest.load(folder) for folder in folders]
    for manifest in manifests:
        refuse_damaged(manifest)
    output.check_free(out, force=force)
    about = about or describe(manifests)
    if not force and (found := output.find_finished(out, about, changed_at=0.0)):
        return found
    refuse_unlike(manifests)
    refuse_twice(manifests)
    with output.locked(output.partial_folder(out)) as folder:
        if not force:
            refuse_begun(folder)
        try:
            output.clear_but(folder, (output.LOCK,))
            write_merged(folder, name or out.name, manifests, about, watch)
            output.publish(folder, out, replace=force)
        except OSError as error:
            raise ShardError(f"{folder}: {error.strerror or error}; {state_of(out, folder)}") from error
        except KeyboardInterrupt as stop:
            raise Stopped(state_of(out, folder)) from stop
        finally:
            output.remove(folder)
    return Manifest.load(out)


def state_of(out: Path, folder: Path) -> str:
    """What a stop left, for the message: before the last rename nothing, after it everything."""
    return "nothing was changed" if folder.is_dir() else f"{out} was finished before"


def refuse_begun(folder: Path) -> None:
    """ShardError where a stopped `shards make` left finished shards, which may be hours of work."""
    if list(folder.glob(f"*{DONE}")) or (folder / output.PLAN).exists():
        raise ShardError(
            f"{folder} holds the beginning of another set: finish that with the command that began it, "
            "or remove the folder"
        )


def describe(manifests: Sequence[Manifest]) -> dict[str, object]:
    """What the new manifest says of its making."""
    digests = [manifest.digest for manifest in manifests]
    return {
        "config": {"source": "merge", "sets": [manifest.name for manifest in manifests], "digests": digests},
        "given": {f"set{at}": str(manifest.folder.absolute()) for at, manifest in enumerate(manifests)},
        "fingerprint": hashlib.sha256("".join(digests).encode()).hexdigest(),
    }


def write_merged(
    folder: Path, name: str, manifests: Sequence[Manifest], about: Mapping[str, object], watch: Watch
) -> None:
    """Fills the folder."""
    names = Names.of(manifests)
    total = sum(shard.samples for manifest in manifests for shard in manifest.shards)
    numbers: dict[str, int] = {}
    shards, done, written = [], 0, 0
    for manifest in manifests:
        ranks = Ranks.of(manifest, names)
        for old in manifest.shards:
            prefix = old.file.rpartition("-")[0]
            new = replace(old, file=f"{prefix}-{numbers.get(prefix, 0):06d}.tar")
            numbers[prefix] = numbers.get(prefix, 0) + 1
            link(manifest.folder / old.file, folder / new.file)
            take_over(folder, manifest, old, new, ranks)
            shards.append(new)
            done, written = done + old.samples, written + old.bytes
            watch(total, done, written)
    several = {"multi_label": True} if manifests[0].is_multi_label else {}
    skipped = {line for manifest in manifests for line in read_skipped(manifest)}
    if skipped:
        write_skipped(folder / SKIPPED, skipped)
    counted = {"skipped": len(skipped), "small": sum(manifest.about.get("small", 0) for manifest in manifests)}
    write_manifest(
        folder,
        name=name,
        shards=sorted(shards, key=lambda shard: shard.file),
        domains=names.domains,
        classes=join_classes(manifests, names),
        groups=names.groups,
        about={**about, **several, **counted},
    )


def read_skipped(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    """What did not make it into this set."""
    path = manifest.folder / SKIPPED
    if not path.is_file():
        return
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            for row in csv.DictReader(file):
                yield tuple(row.get(name) or "" for name in SKIPPED_COLUMNS)
    except csv.Error as error:
        raise ShardError(f"{path}: not readable as CSV ({error}); mend or remove it") from error


def link(old: Path, new: Path) -> None:
    """A second name for the same bytes, or a copy where the file system has no such thing."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def take_over(folder: Path, manifest: Manifest, old: Shard, new: Shard, ranks: Ranks) -> None:
    """The sidecar, and the labels where there are several, with the new ids."""
    rows = np.array(manifest.sidecar(old), SIDECAR)
    rows["label"] = ranks.classes[rows["label"]]
    rows["domain"] = ranks.domains[rows["domain"]]
    rows["group"] = ranks.groups[rows["group"]]
    write_sidecar(folder, new, rows)
    if manifest.is_multi_label:
        pairs = np.array(manifest.labels(old), LABELS)
        pairs["label"] = ranks.classes[pairs["label"]]
        write_labels(folder, new, pairs)


def join_classes(manifests: Sequence[Manifest], names: Names) -> Classes:
    """Counts added up; a class keeps its group if all sets that have the class agree."""
    ids = {name: at for at, name in enumerate(names.classes)}
    table = np.zeros((3, len(ids)), np.int64)
    groups: list[set[str]] = [set() for _ in ids]
    for manifest in manifests:
        at = np.array([ids[name] for name in manifest.classes.ids], np.int64)
        table[:, at] += manifest.classes.table
        for number, group in zip(at.tolist(), manifest.classes.groups, strict=True):
            groups[number].add(group)
    return Classes(
        domains=tuple(domain for domain, _ in names.classes),
        labels=tuple(label for _, label in names.classes),
        groups=tuple(next(iter(named)) if len(named) == 1 else "" for named in groups),
        table=table,
    )


def refuse_unlike(manifests: Sequence[Manifest]) -> None:
    """One label or several: a set has one kind. Of sets with folds a class may be in another fold of each."""
    if folded := [manifest.name for manifest in manifests if manifest.num_folds]:
        raise ShardError(
            f"{folded[0]} has folds, and merged classes could be in two of them: train on several sets by "
            "data.mixture, or make one set with folds of all images"
        )
    kinds = {manifest.is_multi_label: manifest.name for manifest in manifests}
    if len(kinds) > 1:
        raise ShardError(
            f"images of {kinds[True]} have several labels, those of {kinds[False]} one: they cannot be merged"
        )


def refuse_twice(manifests: Sequence[Manifest]) -> None:
    """A key is a sample's only name."""
    places = [(manifest, shard) for manifest in manifests for shard in manifest.shards]
    hashes = np.concatenate([manifest.sidecar(shard)["key_hash"] for manifest, shard in places])
    order = np.argsort(hashes, kind="stable")
    twice = order[1:][hashes[order][1:] == hashes[order][:-1]]
    if not len(twice):
        return
    starts = np.cumsum([0, *(shard.samples for _, shard in places)])
    named = []
    for at in twice[:4].tolist():
        which = int(np.searchsorted(starts, at, side="right")) - 1
        manifest, shard = places[which]
        named.append(f"{manifest.read(shard, at - int(starts[which])).key} of {manifest.name}")
    raise ShardError(
        f"{len(twice)} samples are in two of the sets by their keys ({first_few(named)}): if they are the same images, "
        "leave them out with `shards reshard --drop`; if not, make one set with another --domain"
    )
