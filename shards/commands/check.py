"""Reread a set and name what is broken, by shard and sample."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """examples:
  shards check shard_sets/food             rereads every byte; exit code 1 when something is broken
"""


def add_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """The set."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the shard set")


def run(options: argparse.Namespace) -> int:
    """shards check"""
    from shards.check import check_set

    return check_set(options.folder)
