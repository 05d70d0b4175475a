"""`shards check`: rereads a whole set and says, by shard and sample, what is broken.

Shards are inspected by several processes (inspection.py); what concerns the set as a whole is held together here. The
problems come in the order of the shards, whatever the number of processes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import pool
from shards.checking.inspection import Piece, inspect_shard
from shards.checking.problem import MOST, Part, Problem, Report, printable
from shards.checking.schema import hash_of
from shards.checking.walk import Found, walk_samples
from shards.errors import ShardError
from shards.manifest import CLASSES, GROUPS, MANIFEST, Manifest, Shard, totals
from shards.skipped import SKIPPED

Watch = Callable[[int, int, int], None]
"""Called with the samples to do, those done, and the bytes of their images."""
SIZES, WIDS = "sizes.json", "wids.json"


@dataclass(slots=True)
class Findings:
    """All that is wrong with a set."""

    manifest: Manifest
    reports: list[Report] = field(default_factory=list)
    """One a shard, in their order."""
    lists: list[Problem] = field(default_factory=list)
    """Of the files with names."""
    rest: list[Problem] = field(default_factory=list)
    twice: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    """(first, second) place of samples with the same key, counted through all shards."""

    @property
    def num_problems(self) -> int:
        """Of all."""
        in_shards = sum(report.num_problems for report in self.reports)
        return len(self.lists) + in_shards + len(self.twice) + len(self.rest)

    def named(self) -> Iterator[Problem]:
        """The problems, of each shard the first few."""
        yield from self.lists
        for report in self.reports:
            yield from report.problems
        for first, second in self.twice[:MOST].tolist():
            report, row = self.locate(second)
            other, other_row = self.locate(first)
            text = f"its key occurs before, at {other.shard.file}: sample {other_row}"
            key = find_key(self.manifest.folder / report.shard.file, int(report.hashes[row]))
            yield Problem(Part.SAMPLE, report.shard.file, text, row, key)
        yield from self.rest

    def locate(self, place: int) -> tuple[Report, int]:
        """(shard, position in its tar) of a sample."""
        starts = np.cumsum([0, *(len(report.hashes) for report in self.reports)])
        which = int(np.searchsorted(starts, place, side="right")) - 1
        return self.reports[which], place - int(starts[which])


def describe(findings: Findings) -> list[str]:
    """The first problems, one a line, and how many there are."""
    manifest, number = findings.manifest, findings.num_problems
    lines = [str(problem) for _, problem in zip(range(MOST), findings.named(), strict=False)]
    if number > len(lines):
        lines.append(f"… and {number - len(lines)} more")
    found = "no problem" if not number else "1 problem" if number == 1 else f"{number} problems"
    num_samples = sum(shard.samples for shard in manifest.shards)
    lines.append(f"{manifest.folder}: {found} in {num_samples} samples of {len(manifest.shards)} shards")
    if "salvaged" in manifest.about:
        lost = num_lost(manifest)
        lines.append(
            f"  repaired without its source: {lost} samples lost; where that comes back, --repair restores them"
        )
    return lines


def num_lost(manifest: Manifest) -> int:
    """Samples that an earlier repair had to leave out."""
    lost = manifest.about.get("salvaged", {}).get("lost", 0)
    return lost if isinstance(lost, int) else 0


def inspect_set(
    manifest: Manifest, *, workers: int = 1, is_quick: bool = False, watch: Watch = lambda *_: None
) -> Findings:
    """Everything that is wrong; without reading the tars if `is_quick`."""
    findings = Findings(manifest, lists=list(check_names(manifest)))
    findings.reports = inspect_shards(manifest, manifest.shards, workers=workers, is_quick=is_quick, watch=watch)
    findings.twice = find_twice(findings.reports)
    is_whole = all(report.labels is not None for report in findings.reports)
    if is_whole and not findings.lists:
        findings.rest += check_counts(manifest, findings.reports)
    findings.rest += check_lists(manifest)
    findings.rest += check_foreign(manifest)
    return findings


def inspect_shards(
    manifest: Manifest, shards: Sequence[Shard], *, workers: int, is_quick: bool, watch: Watch
) -> list[Report]:
    """A report on each of these shards, in their order; the largest are inspected first."""
    run = time.monotonic_ns()
    pieces = [Piece(manifest.folder, shard, is_quick, run) for shard in shards]
    total = sum(shard.samples for shard in shards)
    count = lambda images, num_bytes: watch(max(total, images), images, num_bytes)  # noqa: E731
    reports: dict[str, Report] = {}
    by_size = sorted(pieces, key=lambda piece: -piece.shard.bytes)
    with closing(pool.run(inspect_shard, by_size, workers=1 if is_quick else workers, watch=count)) as ready:
        for report in ready:
            reports[report.shard.file] = report
    return [reports[shard.file] for shard in shards]


def check_names(manifest: Manifest) -> Iterator[Problem]:
    """classes.tsv and groups.tsv: whether they are those that the set was made with, and ids are ranks."""
    try:
        names = list(zip(manifest.classes.domains, manifest.classes.labels, strict=True))
        if names != sorted(set(names)):
            yield Problem(Part.NAMES, CLASSES, "its classes are not in order")
        if (manifest.classes.table < 0).any() or (manifest.classes.folds < 0).any():
            yield Problem(Part.NAMES, CLASSES, "its counts are negative")
    except ShardError as error:
        yield Problem(Part.NAMES, CLASSES, without_path(error))
    try:
        groups = list(manifest.groups)
        if groups[:1] != [("", "")] or groups != sorted(set(groups)):
            yield Problem(Part.NAMES, GROUPS, "its groups are not in order, after an empty one")
    except ShardError as error:
        yield Problem(Part.NAMES, GROUPS, without_path(error))


def without_path(error: ShardError) -> str:
    """The message without the file that it begins with."""
    return str(error).partition(": ")[2] or str(error)


def find_twice(reports: Sequence[Report]) -> NDArray[np.int64]:
    """Places of samples whose key another sample has, each with the first that has it."""
    hashes = np.concatenate([np.empty(0, np.uint64), *(report.hashes for report in reports)])
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    is_first = np.append(True, ordered[1:] != ordered[:-1])[: len(hashes)]
    firsts = order[np.maximum.accumulate(np.where(is_first, np.arange(len(hashes)), 0))]
    pairs: NDArray[np.int64] = np.stack((firsts, order), 1)[~is_first]
    return pairs[np.argsort(pairs[:, 1])]


def find_key(path: Path, sought: int) -> str | None:
    """The key with this hash in a tar."""
    try:
        with path.open("rb") as file:
            found = walk_samples(file, path.stat().st_size)
            return next((one.key for one in found if isinstance(one, Found) and hash_of(one.key) == sought), None)
    except OSError:
        return None  # inspect_shard has named it


def check_counts(manifest: Manifest, reports: Sequence[Report]) -> Iterator[Problem]:
    """Images by split and class as the sidecars have them, against classes.tsv."""
    classes = manifest.classes
    labelled = [(one.shard.part, one.labels) for one in reports if one.labels is not None]
    found = classes.with_counts(labelled)
    for part in classes.parts:
        stated, there = classes.counts(part), found.counts(part)
        for label in np.flatnonzero(there != stated):
            name = f"{classes.domains[label]}/{classes.labels[label]}"
            text = f"{name} has {stated[label]} images in {part}, the shards have {there[label]}"
            yield Problem(Part.LISTS, CLASSES, text)


def check_lists(manifest: Manifest) -> Iterator[Problem]:
    """What follows from the list of shards: totals, and the files for other readers."""
    if manifest.about.get("totals") != totals(manifest.shards):
        yield Problem(Part.LISTS, MANIFEST, "its totals are not those of its shards")
    files = [shard.file for shard in manifest.shards]
    if files != sorted(files):
        yield Problem(Part.LISTS, MANIFEST, "its shards are not in order")
    sizes = {shard.file: shard.samples for shard in manifest.shards}
    trained = [(shard.file, shard.samples) for shard in manifest.shards if shard.split == "train"]
    for name, true, read in ((SIZES, sizes, dict), (WIDS, trained, read_wids)):
        try:
            stated = read(read_json(manifest.folder / name))
        except OSError as error:
            yield Problem(Part.LISTS, name, f"cannot be read ({error.strerror or error})")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            yield Problem(Part.LISTS, name, f"cannot be read ({error!r})")
        else:
            if stated != true:
                yield Problem(Part.LISTS, name, "its counts are not the manifest's")


def read_json(path: Path) -> Any:
    """The content; OSError or ValueError."""
    if path.exists() and not path.is_file():
        raise OSError("no file")
    return json.loads(path.read_bytes())


def read_wids(content: Any) -> list[tuple[str, int]]:
    """(file, samples) by wids.json."""
    return [(entry["url"], entry["nsamples"]) for entry in content["shardlist"]]


def check_foreign(manifest: Manifest) -> Iterator[Problem]:
    """What lies in the folder besides."""
    for path in find_foreign(manifest):
        what = "not in the manifest" if path.name.endswith(".tar") else "not of this set"
        yield Problem(Part.FOREIGN, printable(path.name), what)


def find_foreign(manifest: Manifest) -> list[Path]:
    """Files and folders that no set has, and those of shards that this one has not."""
    own = {MANIFEST, CLASSES, GROUPS, SIZES, WIDS, SKIPPED}
    for shard in manifest.shards:
        own |= {shard.file, shard.sidecar, *([shard.labels] if manifest.is_multi_label else [])}
    return sorted(path for path in manifest.folder.iterdir() if path.name not in own)
