"""skipped.csv: images that did not make it into a set, and why; absent where all of them did."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

SKIPPED = "skipped.csv"
SKIPPED_COLUMNS = ("domain", "label", "source", "reason")
LONELY = "no readable index image of its class is left"
"""The one reason that follows from others: nothing is wrong with such an image."""


def write_skipped(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    """Sorted, so that it does not tell which process found what first."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(SKIPPED_COLUMNS)
        table.writerows(sorted(rows))
