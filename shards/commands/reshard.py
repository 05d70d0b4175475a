"""Make a set anew from its own tars: other shard sizes, another shuffle, smaller images, fewer samples.

Splits, roles, labels and keys stay. It is `shards make set DIR`, with `--verify structure` as default: the images were
decoded when the set was made.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from shards.commands import make
from shards.files import place_path
from shards.making.options import add_image_options, add_set_options, rule_defaults

EXAMPLES = """examples:
  shards reshard shard_sets/food --out shard_sets/food_1gb --shard-mb 1000
  shards reshard shard_sets/food --out shard_sets/food_256 --short-side 256
  shards reshard shard_sets/food --out shard_sets/food_clean --drop shard_sets/food.audit/drop.csv
"""


def add_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """The set and what changes."""
    parser.add_argument("set", type=Path, metavar="DIR", help="the set")
    parser.add_argument("--out", type=place_path, required=True, metavar="DIR", help="the new set, a folder or a URL")
    add_set_options(parser)
    add_image_options(parser)
    parser.set_defaults(source="set", verify="structure", **rule_defaults())


def run(options: argparse.Namespace) -> int:
    """shards reshard"""
    return make.run(options)
