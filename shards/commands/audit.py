"""Look for copies, leaks, wrong labels and bad images in a set, and write a page and a list of what to leave out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shards.arguments import add_workers, count, seed
from shards.errors import ShardError

if TYPE_CHECKING:
    from shards.audit.examine import Audit

WIDE = 200
"""Columns where nobody looks: a table in a file is not cut to a terminal."""
EXAMPLES = """examples:
  shards audit shard_sets/food                                    writes shard_sets/food.audit/
  shards audit shard_sets/food --against shard_sets/benchmark     and what the two share
  shards audit shard_sets/food --strict                           exit code 1 when something is grave
  shards make … --drop shard_sets/food.audit/drop.csv             makes it again without what was found
"""


def add_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """The set, and how closely to look."""
    from shards.audit import THRESHOLD_BITS, TINY_PX

    bits, least = THRESHOLD_BITS, TINY_PX
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="the shard set")
    add("--against", type=Path, metavar="DIR", help="another set: what is in both")
    add("--out", type=Path, metavar="DIR", help="for report.html, findings.csv and drop.csv (default: DIR.audit)")
    add(
        "--threshold",
        type=seed,
        default=bits,
        metavar="BITS",
        help=f"of 64 hash bits, for near duplicates (default: {bits})",
    )
    add(
        "--tiny",
        type=count,
        default=least,
        metavar="PX",
        help=f"images with a shorter side are named (default: {least})",
    )
    add_workers(add)
    add("--strict", action="store_true", help="exit code 1 when a finding is grave")


def run(options: argparse.Namespace) -> int:
    """shards audit"""
    from shards.audit.examine import Question, examine, read_sets
    from shards.audit.lists import write_lists
    from shards.audit.report import fill_page
    from shards.progress import progress_bar

    question = Question(options.folder, options.against, options.threshold, options.tiny, options.workers)
    out = free_folder(options.out, [options.folder, *([options.against] if options.against else [])])
    with progress_bar("reading") as watch:
        images = read_sets(question, watch)
    with progress_bar("comparing", unit="pairs") as watch:
        audit = examine(question, images, watch)
    make_folder(out)
    write_lists(audit, out)
    fill_page(audit).write(out / "report.html")
    describe(audit, out)
    return int(options.strict and audit.is_grave)


def free_folder(given: Path | None, sets: Sequence[Path]) -> Path:
    """Where the output goes: never into a set, which holds what `shards make` put there and nothing else."""
    whole = sets[0].resolve()
    out = given or whole.with_name(f"{whole.name}.audit")
    for folder in sets:
        if out.resolve().is_relative_to(folder.resolve()):
            raise ShardError(f"--out {out} lies inside the set {folder}; choose a place outside")
    return out


def make_folder(out: Path) -> None:
    """The folder for the output."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShardError(f"--out {out}: {error.strerror}") from error


def describe(audit: Audit, out: Path) -> None:
    """The findings, and where the rest is."""
    from rich.console import Console

    from shards.audit import report
    from shards.audit.lists import DROPS, FINDINGS

    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, emoji=False, width=WIDE)
    console.print(f"{audit.question.folder}: {report.describe(audit)}", soft_wrap=True)
    if audit.findings:
        console.print(report.screen_table(audit))
    console.print(f"page: {out / 'report.html'}   lists: {out / FINDINGS}, {out / DROPS}", soft_wrap=True)
