"""`shards check --repair`: only what is broken is written again, and never so that a stop in between loses anything.

    restore   tars from a copy under another name, or from the source, if they get the sums they had     restore.py
    names     classes.tsv and groups.tsv from the tars                                                   finish.py
    salvage   of other broken tars what is intact; the broken files go to DIR.quarantine                 salvage.py
    index     sidecars from the tars                                                                     reindex.py
    finish    the manifest, counts and lists                                                             finish.py

Everything is written in DIR.repair.partial and renamed. A set that lost samples remembers what it had: where its source
comes back, another repair makes it what it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from shards.checking.check import Findings, Watch, find_foreign, inspect_set, inspect_shards, num_lost
from shards.checking.finish import differs, remake_names, rewrite_lists
from shards.checking.inspection import sum_of
from shards.checking.origin import Origin, read_origins
from shards.checking.problem import MOST, Part, printable
from shards.checking.quarantine import Quarantine
from shards.checking.reindex import Ids, index_tar
from shards.checking.restore import find_copies, find_homes, order_by_sidecar, plan_again, write_again
from shards.checking.salvage import find_remains, find_wanted, rebuild
from shards.errors import ShardError, Stopped
from shards.making import output
from shards.making.merge import link
from shards.manifest import CLASSES, GROUPS, Manifest, Shard, write_labels, write_sidecar


@dataclass(slots=True)
class Outcome:
    """What became of the set."""

    lines: list[str] = field(default_factory=list)
    """What was done, file by file."""
    is_whole: bool = True
    """Whether nothing is broken any more, and nothing was lost."""


def repair_set(manifest: Manifest, *, workers: int = 1, watch: Watch = lambda *_: None) -> Outcome:
    """Repairs what `shards check` finds; ShardError where nothing can be written."""
    folder = manifest.folder.resolve()
    with output.locked(folder.with_name(f"{folder.name}.repair.partial")) as aside:
        try:
            outcome = Repair(replace(manifest, folder=folder), aside, workers, watch).run()
        except OSError as error:
            raise ShardError(f"{folder}: {error.strerror or error}; repeat the command to go on") from error
        except KeyboardInterrupt as stop:
            raise Stopped("what is repaired so far is in its place; repeat the command to go on") from stop
        output.remove(aside)
        return outcome


class Repair:
    """One repair of one set."""

    def __init__(self, manifest: Manifest, aside: Path, workers: int, watch: Watch) -> None:
        self.manifest, self.folder, self.aside = manifest, manifest.folder, aside
        self.workers, self.watch = workers, watch
        self.quarantine = Quarantine(self.folder.with_name(f"{self.folder.name}.quarantine"))
        self.outcome = Outcome()
        self.shards = {shard.file: shard for shard in manifest.shards}
        """What the manifest is to say in the end."""
        salvaged = manifest.about.get("salvaged", {}).get("shards", [])
        self.before = {entry["file"]: Shard(**entry) for entry in salvaged}
        """Shards that lost samples, as they were made."""
        self.sums: dict[str, str | None] = {}
        """Of the tars as they lie there."""
        self.origins: list[Origin] = []
        self.restored: set[str] = set()
        """Tars that are again what they were."""
        self.touched: set[str] = set()
        """Files of shards that were changed, or may need another sidecar."""

    def run(self) -> Outcome:
        """All steps."""
        self.put_names_back()
        findings = inspect_set(self.manifest, workers=self.workers, watch=self.watch)
        if not findings.num_problems and not self.before:
            self.say(f"{self.folder}: no problem, nothing to repair")
            return self.outcome
        self.sums = {report.shard.file: report.sha256 for report in findings.reports}
        pending = self.put_back(self.find_pending())
        self.clear()
        pending = self.write_again(pending) if pending else []
        stale = [shard for shard in pending if not self.is_as_stated(shard.file)]
        if self.mend_names(findings, stale):
            self.salvage(findings, stale)
            self.finish(findings)
        self.verify()
        return self.outcome

    def say(self, line: str) -> None:
        """Adds a line to what was done."""
        self.outcome.lines.append(printable(line))

    def find_pending(self) -> list[Shard]:
        """Shards, as they were made, whose tars are not so."""
        made = {**self.shards, **self.before}
        return [made[file] for file in sorted(made) if self.sums.get(file) != made[file].sha256]

    def is_as_stated(self, file: str) -> bool:
        """Whether the tar is what the manifest says, if not what it was at first."""
        return file not in self.shards or self.sums.get(file) == self.shards[file].sha256

    def put_names_back(self) -> None:
        """What a repair that was killed right after it had written the manifest still has aside."""
        for name in (CLASSES, GROUPS):
            new, old, stated = self.aside / name, self.folder / name, self.manifest.about["classes"][name]
            if new.is_file() and sum_of(new) == stated and (not old.is_file() or sum_of(old) != stated):
                self.put(new, name)

    def put_back(self, pending: list[Shard]) -> list[Shard]:
        """Tars that were exchanged or renamed; gives the rest."""
        if not pending:
            return pending
        folders = [self.folder, self.aside, self.quarantine.folder, *find_homes(self.manifest)]
        sums = {self.folder / file: total for file, total in self.sums.items()}
        linked: list[tuple[Shard, Path, Path]] = []
        for shard, path in find_copies(pending, folders, sums):
            new = self.aside / f"back-{len(linked)}-{os.getpid()}.tar"
            link(path, new)
            linked.append((shard, path, new))
        for shard, path, new in linked:
            self.place(new, shard)
            self.say(f"{shard.file}: put back; its bytes were in {path}")
        return [shard for shard in pending if shard.file not in self.restored]

    def place(self, new: Path, shard: Shard) -> None:
        """Puts a tar where it belongs, as it was made."""
        self.put(new, shard.file)
        self.sums[shard.file] = shard.sha256
        self.shards[shard.file] = shard
        self.before.pop(shard.file, None)
        self.touched.add(shard.file)
        self.restored.add(shard.file)

    def put(self, new: Path, name: str) -> None:
        """Renames a finished file into the set."""
        path = self.folder / name
        if path.is_dir():
            self.quarantine.move(path)
        os.replace(new, path)

    def clear(self) -> None:
        """What a killed repair left aside; not before its tars were looked through for ours."""
        for path in self.aside.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != output.LOCK:
                path.unlink()

    def write_again(self, pending: list[Shard]) -> list[Shard]:
        """Tars from the source; gives the rest."""
        for origin in read_origins(self.manifest, self.aside):
            if isinstance(origin, Origin):
                self.origins.append(origin)
            else:
                self.say(origin)
        plan = plan_again(self.origins, self.folder / "skipped.csv")
        for order in (
            lambda shard: order_by_sidecar(self.folder, shard),
            lambda shard: order_by_sidecar(self.quarantine.folder, shard),
            lambda shard: plan.get(shard.file),
        ):
            ready = write_again(pending, self.sums, order, self.origins, workers=self.workers, watch=self.watch)
            for shard, new in self.until_source_fails(ready):
                if self.sums.get(shard.file) == shard.sha256:
                    self.say(f"{shard.file}: the source gives the same bytes; its sum in manifest.json was wrong")
                else:
                    self.say(f"{shard.file}: written again from the source, same bytes")
                self.place(new, shard)
            pending = [shard for shard in pending if shard.file not in self.restored]
        if pending and not all(origin.is_unchanged for origin in self.origins):
            self.say("the source: changed since the set was made")
        return pending

    def until_source_fails(self, ready: Iterator[tuple[Shard, Path]]) -> Iterator[tuple[Shard, Path]]:
        """What a source gives that lists its images, and then may prove to have none of them."""
        try:
            yield from ready
        except ShardError as error:
            self.say(f"the source: {error}")
            self.origins.clear()

    def mend_names(self, findings: Findings, stale: list[Shard]) -> bool:
        """Makes damaged lists of names again; False where they cannot be, and what needs them must wait."""
        if not findings.lists and not any(Part.NAMES in report.parts for report in findings.reports):
            return True
        try:
            if stale:
                raise ShardError(f"{stale[0].file} is broken too, and its samples are part of what they say")
            shards = tuple(shard for file, shard in sorted(self.shards.items()))
            self.manifest, names = remake_names(replace(self.manifest, shards=shards), self.aside)
        except ShardError as error:
            return self.give_up(f"the lists of names cannot be made again ({error})")
        for name in names:
            self.put(self.aside / name, name)
            self.say(f"{name}: made again from the samples")
        self.touched |= self.shards.keys()
        return True

    def give_up(self, line: str) -> bool:
        """Says why no more can be done."""
        self.say(f"{line}; copy manifest.json, {CLASSES} and {GROUPS} from another copy of the set, or make it again")
        self.outcome.is_whole = False
        return False

    def salvage(self, findings: Findings, stale: list[Shard]) -> None:
        """Keeps what is intact in the tars that are still broken, and in those that were made with broken samples."""
        ids = Ids.of(self.manifest)
        broken = {shard.file for shard in stale}
        twice: dict[str, set[int]] = {}
        for first, second in findings.twice.tolist():
            (one, _), (other, row) = findings.locate(first), findings.locate(second)
            if not self.restored & {one.shard.file, other.shard.file}:
                is_first_broken = one.shard.file in broken and other.shard.file not in broken
                hashes = twice.setdefault((one if is_first_broken else other).shard.file, set())
                hashes |= {int(other.hashes[row])} if one is not other else set()
        odd = {report.shard.file for report in findings.reports if Part.SAMPLE in report.parts} | twice.keys()
        for file in sorted(broken):
            self.salvage_shard(self.shards[file], ids, twice.get(file, set()), self.origins)
        for file in sorted(odd - broken):
            self.salvage_shard(self.shards[file], ids, twice.get(file, set()), [])

    def salvage_shard(self, shard: Shard, ids: Ids, elsewhere: set[int], origins: list[Origin]) -> None:
        """Writes the shard with what is left of it."""
        old, new = self.folder / shard.file, self.aside / shard.file
        is_right = self.sums.get(shard.file) == shard.sha256
        wanted = find_wanted(self.manifest, shard, origins)
        remains = find_remains(old, shard, ids, None if is_right else wanted, elsewhere)
        rebuilt = rebuild(old, new, shard, wanted, remains, origins)
        num_kept, num_lost = rebuilt.shard.samples, len(rebuilt.lost)
        is_same = rebuilt.shard.sha256 == self.before.get(shard.file, shard).sha256
        self.say(f"{shard.file}: {rebuilt.describe(is_same=is_same, is_right=is_right)}")
        if is_same:
            self.before.pop(shard.file, None)
        elif num_lost:
            self.say(f"  listed in {self.quarantine.list}")
            self.quarantine.write(shard.file, rebuilt.lost)
        if not is_same and (num_lost or not (rebuilt.num_again or is_right)):
            self.before.setdefault(shard.file, shard)
            self.outcome.is_whole = False
        if not is_same and num_kept and rebuilt.shard.sha256 != self.sums.get(shard.file):
            self.quarantine.keep(old)
            self.quarantine.keep(self.folder / shard.sidecar)
        self.shards[shard.file] = rebuilt.shard
        self.touched.add(shard.file)

    def finish(self, findings: Findings) -> None:
        """Sidecars, lists, manifest; then what is not of the set goes."""
        beside = {Part.SIDECAR, Part.LABELS, Part.ENTRY, Part.TAR}
        self.touched |= {report.shard.file for report in findings.reports if report.parts & beside}
        self.shards = {file: shard for file, shard in sorted(self.shards.items()) if shard.samples}
        ids = Ids.of(self.manifest)
        for file in sorted(self.touched & self.shards.keys()):
            self.index(file, ids)
        shards = list(self.shards.values())
        if not shards:
            self.give_up("no sample is left")
            return
        for name in rewrite_lists(self.manifest, shards, self.before, self.aside):
            self.put(self.aside / name, name)
            self.say(f"{name}: written again")
        for path in find_foreign(Manifest.load(self.folder)):
            self.say(f"{path.name}: not of this set; moved to {self.quarantine.move(path)}")

    def index(self, file: str, ids: Ids) -> None:
        """Puts a salvaged tar in its place, and beside any tar what follows from it."""
        new = self.aside / file
        path = new if new.exists() else self.folder / file
        rows, pairs = index_tar(path, ids)
        shard = self.shards[file] = replace(self.shards[file], samples=len(rows), bytes=path.stat().st_size)
        write_sidecar(self.aside, shard, rows)
        if self.manifest.is_multi_label:
            write_labels(self.aside, shard, pairs)
        if path == new:
            self.put(new, file)
        for name in (shard.sidecar, *([shard.labels] if self.manifest.is_multi_label else [])):
            if differs(self.aside / name, self.folder / name):
                self.put(self.aside / name, name)
                self.say(f"{name}: made again from the tar")

    def verify(self) -> None:
        """Looks at the result as `shards check` does, at the tars that were touched once more as a whole."""
        manifest = Manifest.load(self.folder)
        touched = [shard for shard in manifest.shards if shard.file in self.touched]
        reports = inspect_shards(manifest, touched, workers=self.workers, is_quick=False, watch=self.watch)
        problems = list(inspect_set(manifest, is_quick=True).named())
        problems += [problem for report in reports for problem in report.problems]
        for problem in problems[:MOST]:
            self.say(f"still broken: {problem}")
        self.outcome.is_whole &= not problems
        if problems:
            self.say(f"{self.folder}: still broken")
        elif "salvaged" in manifest.about:
            lost = num_lost(manifest)
            self.say(f"{self.folder}: sound, but not what it was: {lost} samples lost; training can go on without them")
            self.say(f"  where the source comes back, `shards check {self.folder} --repair` restores it")
        else:
            self.say(f"{self.folder}: whole again")
