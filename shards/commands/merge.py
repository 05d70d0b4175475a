"""Make one set of several, without writing their tars again.

The tars get second names (hard links) in the new folder, or are copied where the file system has none. Classes of one
domain and label become one class, wherever they come from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from shards.errors import ShardError

EXAMPLES = """examples:
  shards merge shard_sets/food shard_sets/cars --out shard_sets/both
"""


def add_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """The sets and the new one."""
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="the sets")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new set")
    parser.add_argument("--force", action="store_true", help="replace a set that is there")


def run(options: argparse.Namespace) -> int:
    """shards merge"""
    from shards.commands.make import describe
    from shards.making.maker import Made
    from shards.making.merge import merge_sets
    from shards.progress import progress_bar

    if options.out.resolve() in [folder.resolve() for folder in options.folders]:
        raise ShardError(
            f"--out {options.out} is one of the sets to merge; choose another name, or see `shards append`"
        )
    with progress_bar(options.out.name) as watch:
        manifest = merge_sets(options.folders, options.out, force=options.force, watch=watch)
    describe(Made(manifest, str(options.out)))
    return 0
