"""The audit from the set to what is said of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.audit import THRESHOLD_BITS, TINY_PX, balance, findings, groups, tells
from shards.audit.copies import Copies, find_copies
from shards.audit.drops import Drops
from shards.audit.findings import SEVERITIES, Finding
from shards.audit.hamming import MOST_BITS
from shards.audit.images import Images, Watch, read_images
from shards.audit.meetings import Meetings, arrange
from shards.audit.relations import GRAVE
from shards.errors import ShardError
from shards.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Question:
    """What to look at, and how closely."""

    folder: Path
    against: Path | None = None
    threshold_bits: int = THRESHOLD_BITS
    """Near duplicates differ in at most so many of the 64 bits of their hashes."""
    tiny_px: int = TINY_PX
    workers: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.threshold_bits <= MOST_BITS:
            raise ShardError(
                f"--threshold {self.threshold_bits} is not in 0 to {MOST_BITS}; 0 finds pictures with equal hashes only"
            )
        if self.against and self.against.resolve() == self.folder.resolve():
            raise ShardError(
                f"--against {self.against} is the set itself; its splits are compared anyway, leave it out"
            )


@dataclass(frozen=True)
class Audit:
    """All there is to say."""

    question: Question
    images: Images
    copies: Copies
    keys: Mapping[int, str]
    """Of every image that shows the same as another."""
    findings: tuple[Finding, ...]
    """The gravest first."""
    drops: Mapping[int, str]
    """Images to leave out, and why."""

    @property
    def is_grave(self) -> bool:
        """Whether an evaluation on this set would mislead."""
        return any(finding.severity == GRAVE for finding in self.findings)


def read_sets(question: Question, watch: Watch) -> Images:
    """Reads every image of the set, and of the other one."""
    folders = [question.folder, *([question.against] if question.against else [])]
    return read_images([Manifest.load(folder) for folder in folders], workers=question.workers, watch=watch)


def examine(question: Question, images: Images, watch: Watch) -> Audit:
    """Finds what is to be found; the watch is called while pictures are compared."""
    copies = find_copies(images, most_bits=question.threshold_bits, workers=question.workers, watch=watch)
    meetings = arrange(images, copies.bundles)
    found = sorted(find_all(images, meetings, question), key=lambda finding: SEVERITIES.index(finding.severity))
    keys = images.keys(meetings.images())
    drops = Drops(images, meetings, keys, reasons(images, found))
    drops.choose()
    return Audit(question, images, copies, keys, tuple(found), drops.reasons)


def find_all(images: Images, meetings: Meetings, question: Question) -> Iterator[Finding]:
    """Kind by kind."""
    yield from findings.image_findings(images, tiny_px=question.tiny_px)
    yield from findings.pair_findings(meetings)
    yield from groups.group_findings(images)
    yield from tells.tell_findings(images)
    yield from balance.balance_findings(images)


def reasons(images: Images, found: list[Finding]) -> dict[int, str]:
    """Why images are left out that need no other image for it."""
    singles = {at: finding.kind for finding in found if finding.kind in ("broken", "blank") for at in finding.images}
    return dict(groups.leaking(found, images)) | singles
