"""Measure, beside other tools, how fast sets are written and opened, and what memory that takes.

write    photos of 155 kB into tars, as they are and made smaller: tar, Python's tarfile, webdataset's ShardWriter, shards
memory   shards make with a million tiny images
open     a set of 100 million samples, its files sparse
all      these three
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.arguments import count
from shards.errors import ShardError

if TYPE_CHECKING:
    from shards.bench.outcome import Outcome

EXAMPLES = """examples:
  shards bench                                        writing, on photos that it draws
  shards bench --photos ~/photos --images 500         on photos of yours
  shards bench all --scratch /dev/shm --json bench.json
"""
COUNTS = {"write": 1000, "memory": 1_000_000, "open": 100_000_000}
ROUNDS = 5
LEAST_PHOTOS = 20


def add_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """What is measured, on what and where."""
    add = parser.add_argument
    add("part", nargs="?", choices=(*COUNTS, "all"), default="write", help="what to measure (default: write)")
    default = ", ".join(f"{name} {number:,}" for name, number in COUNTS.items())
    add("--images", type=count, metavar="N", help=f"how many (default: {default})")
    add("--photos", type=Path, metavar="DIR", help="take images from this folder (default: draw photos of 155 kB)")
    add("--rounds", type=count, default=ROUNDS, metavar="N", help="turns of each contestant (default: %(default)s)")
    add(
        "--scratch", type=Path, metavar="DIR", help="where everything is written and removed (default: temporary files)"
    )
    add("--json", type=Path, metavar="FILE", help="write all measurements")


def run(options: argparse.Namespace) -> int:
    """shards bench"""
    outcomes = []
    for part in COUNTS if options.part == "all" else [options.part]:
        try:
            with tempfile.TemporaryDirectory(prefix="shards-bench-", dir=options.scratch) as folder:
                outcomes.append(measure(part, Path(folder), options))
        except OSError as error:
            raise ShardError(
                f"--scratch {options.scratch or tempfile.gettempdir()}: {error.strerror or error}"
            ) from error
    show(outcomes)
    if options.json:
        write(options.json, outcomes)
    return 0


def measure(part: str, scratch: Path, options: argparse.Namespace) -> Outcome:
    """One part."""
    from shards.bench.memory import bench_memory
    from shards.bench.opening import bench_opening
    from shards.bench.writing import bench_writing
    from shards.progress import progress_bar

    number = options.images or COUNTS[part]
    with progress_bar(part, unit="turns") as watch:
        if part == "memory":
            return bench_memory(scratch, count=number, watch=watch)
        if part == "open":
            return bench_opening(scratch, count=number, rounds=options.rounds, watch=watch)
        if number < LEAST_PHOTOS:
            raise ShardError(f"--images {number}: at least {LEAST_PHOTOS} to write")
        return bench_writing(scratch, count=number, rounds=options.rounds, given=options.photos, watch=watch)


def show(outcomes: list[Outcome]) -> None:
    """Tables, what they mean, and the goals."""
    from rich.console import Console

    from shards.bench.outcome import describe_machine, goal_table
    from shards.commands.show import to_rich

    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, emoji=False, width=WIDE)
    machine = describe_machine()
    console.print(
        f"{machine['processor']}, {machine['cpus']} CPUs, Python {machine['python']}, load {machine['load'][0]}"
    )
    for outcome in outcomes:
        for table in outcome.tables:
            console.print(f"\n{table.title}", to_rich(table), sep="\n")
        console.print("", *outcome.notes, sep="\n")
    goals = goal_table(outcomes)
    console.print(f"\n{goals.title}", to_rich(goals), sep="\n")


WIDE = 200
"""Columns where nobody looks: a table in a file is not cut to a terminal."""


def write(path: Path, outcomes: list[Outcome]) -> None:
    """Everything, for other programs."""
    from shards.bench.outcome import describe_machine

    content: dict[str, Any] = {"machine": describe_machine()}
    content |= {outcome.name: outcome.as_json() for outcome in outcomes}
    try:
        path.write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ShardError(f"--json {path}: {error.strerror}") from error
