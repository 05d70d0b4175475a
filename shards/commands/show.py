"""Show what is in a set: images by domain, split and role, class sizes, image sizes, and samples on a page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shards.errors import ShardError

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from shards.manifest import Manifest
    from shards.showing.stats import Stats
    from shards.showing.tables import Table

BESIDE = Path()
"""`--page` without a file."""
WIDE = 200
"""Columns where nobody looks: a table in a file is not cut to a terminal."""
EXAMPLES = """examples:
  shards show shard_sets/food                            tables
  shards show shard_sets/food --page                     and shard_sets/food.show.html, with charts and samples
  shards show shard_sets/food --json                     the same numbers for a program
  shards show shard_sets/food --sample food/12           where this sample lies, and its json
  shards show shard_sets/food --sample food/12 --to a.jpg
"""


def add_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """The set, and in which form to show it."""
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="the shard set")
    add(
        "--page",
        type=Path,
        nargs="?",
        const=BESIDE,
        metavar="FILE",
        help="also write one HTML page (default: DIR.show.html, beside the set)",
    )
    add("--json", action="store_true", help="print JSON in place of tables")
    add("--sample", metavar="KEY", help="print where one sample lies, and its json, and nothing else")
    add("--to", type=Path, metavar="FILE", help="with --sample: also save its image")


def run(options: argparse.Namespace) -> int:
    """shards show"""
    from shards.manifest import Manifest

    if options.to and options.sample is None:
        raise ShardError("--to saves the image of one sample; say which one with --sample KEY")
    if options.sample is not None and options.page:
        raise ShardError("--sample shows one sample; leave --page out")
    manifest = Manifest.load(options.folder)
    if options.sample is not None:
        from shards.showing.lookup import describe_found, find_sample, save_image

        found = find_sample(manifest, options.sample)
        if options.to:
            save_image(found.sample.image, outside(manifest.folder, options.to))
        print(json.dumps(describe_found(found), indent=1))
        return 0
    return show(manifest, as_json=options.json, page=page_path(options.folder, options.page))


def page_path(folder: Path, given: Path | None) -> Path | None:
    """Where the page goes; None where none was asked for."""
    whole = folder.resolve()
    return outside(folder, whole.with_name(f"{whole.name}.show.html") if given == BESIDE else given) if given else None


def outside(folder: Path, path: Path) -> Path:
    """The path, unless it lies in the set's folder, which holds what `shards make` put there and nothing else."""
    if path.resolve().is_relative_to(folder.resolve()):
        raise ShardError(f"{path} lies inside the set {folder}; choose a place outside")
    return path


def show(manifest: Manifest, *, as_json: bool, page: Path | None) -> int:
    """Prints the numbers and writes the page."""
    from shards.showing import tables
    from shards.showing.stats import Stats

    stats = Stats(manifest)
    if as_json:
        print(json.dumps(tables.as_json(stats), indent=1))
    else:
        print_set(stats)
    if page:
        from shards.showing.overview import fill_page

        fill_page(stats).write(page)
        if not as_json:
            print(f"page: {printable(str(page))}")
    return 0


def print_set(stats: Stats) -> None:
    """All tables, with names as other people wrote them: no markup of theirs, no control character."""
    from rich.console import Console
    from rich.text import Text

    from shards.showing import tables

    manifest, about = stats.manifest, stats.manifest.about
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, emoji=False, width=WIDE)
    console.print(Text(printable(manifest.name), "bold"), f": {tables.describe_set(stats)}", sep="")
    console.print(
        f"made by {about.get('tool')} from {about.get('config', {}).get('source')}; digest {manifest.digest[:12]}"
    )
    shown = [tables.count_table(stats), tables.class_table(stats), tables.size_table(stats)]
    shown += [table for table in (tables.shared_table(stats), tables.skipped_table(stats)) if table.rows]
    for table in shown:
        console.print(f"\n{table.title}", to_rich(table), sep="\n")


def to_rich(table: Table) -> RichTable:
    """As it stands on the screen."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    from shards.showing.page import format_cell, is_numeric

    drawn = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for at, column in enumerate(table.columns):
        is_number = all(is_numeric(row[at]) for row in table.rows)
        drawn.add_column(column, justify="right" if is_number else "left", no_wrap=is_number)
    for row in table.rows:
        drawn.add_row(*(printable(format_cell(cell)) for cell in row))
    return drawn


def printable(text: str) -> str:
    """The text without what would move a terminal's cursor or could not be written to it."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
