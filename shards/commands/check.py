"""Reread a set and name what is broken, by shard and sample.

Every tar is read by Python's tarfile, every image decoded, every json held against its schema, the sidecar and the lists
of names; sums, counts and keys are compared over the whole set.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shards.arguments import add_workers

if TYPE_CHECKING:
    from shards.manifest import Manifest

EXAMPLES = """examples:
  shards check shard_sets/food             rereads every byte; exit code 1 when something is broken
  shards check shard_sets/food --quick     sizes, sidecars and lists only, as a look before a run
  shards check shard_sets/food --repair    writes again what is broken, from the source or from what is left
"""


def add_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """The set, how thoroughly, and what then."""
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="the shard set")
    add_workers(add)
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--quick", action="store_true", help="read no tar: sizes, sidecars and lists only")
    either.add_argument(
        "--repair",
        action="store_true",
        help="write broken shards again from the source that the set was made from; without it keep their intact samples "
        "and put the broken files into DIR.quarantine",
    )


def run(options: argparse.Namespace) -> int:
    """shards check"""
    from shards.checking.check import describe, inspect_set
    from shards.manifest import Manifest
    from shards.progress import progress_bar

    manifest = Manifest.load(options.folder)
    if options.repair:
        return repair(manifest, options.workers)
    with progress_bar(options.folder.name) as watch:
        findings = inspect_set(manifest, workers=options.workers, is_quick=options.quick, watch=watch)
    print(*describe(findings), sep="\n")
    return 1 if findings.num_problems else 0


def repair(manifest: Manifest, workers: int) -> int:
    """shards check --repair"""
    from shards.checking.repair import repair_set
    from shards.progress import progress_bar

    with progress_bar(manifest.name) as watch:
        outcome = repair_set(manifest, workers=workers, watch=watch)
    print(*outcome.lines, sep="\n")
    return 0 if outcome.is_whole else 1
