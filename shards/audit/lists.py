"""The lists of an audit, for other programs: every finding as CSV, and the samples to leave out."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from shards.audit.examine import Audit
from shards.errors import ShardError

FINDINGS, DROPS = "findings.csv", "drop.csv"
COLUMNS = (
    *("kind", "severity", "title", "key", "place", "label"),
    *("other_key", "other_place", "other_label", "bits", "what", "numbers"),
)
SINGLE = ("broken", "blank", "tiny")


def write_lists(audit: Audit, folder: Path) -> None:
    """findings.csv and drop.csv."""
    write_csv(folder / FINDINGS, COLUMNS, finding_rows(audit))
    keys = audit.images.keys(list(audit.drops))
    rows = sorted((keys[at], reason) for at, reason in audit.drops.items())
    write_csv(folder / DROPS, ("key", "reason"), rows)


def finding_rows(audit: Audit) -> Iterator[Sequence[object]]:
    """One row a pair or image that is listed; one for a finding that is about neither."""
    images, keys = audit.images, audit.keys
    for finding in audit.findings:
        head = finding.kind, finding.severity, finding.title
        tail = finding.what, " ".join(f"{name}={value:g}" for name, value in finding.numbers.items())
        for one, other, bits in finding.pairs:
            cells = [(keys[at], images.place(at), images.label(at)) for at in (one, other)]
            yield *head, *cells[0], *cells[1], bits, *tail
        if finding.kind in SINGLE:
            names = images.keys(finding.images)
            for at in finding.images:
                yield *head, names[at], images.place(at), images.label(at), *("",) * 4, *tail
        elif not finding.pairs:
            yield *head, *("",) * 7, *tail


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Written aside and renamed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(columns)
            table.writerows(rows)
        aside.replace(path)
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; the list cannot be written there") from error
    finally:
        aside.unlink(missing_ok=True)
