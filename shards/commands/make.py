"""Make a set from a source."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import ShardError, first_few
from shards.files import place_path
from shards.making.options import (
    add_image_options,
    add_set_options,
    add_split_options,
    from_yaml,
    is_yaml,
    read_order,
)
from shards.sources import load_source, source_names, summary

if TYPE_CHECKING:
    from shards.making.maker import Made

EXAMPLES = """examples:
  shards make folder photos --out shard_sets/photos --min-images 2 --max-side 512
  shards make table food.csv --images photos --domain food --out shard_sets/food --dev-fraction 10%
  shards make folder photos --folds 5 --out shard_sets/photos            then train with data.fold=0, 1, …
  shards make food.yaml --out shard_sets/food      source and options from a file
  shards make SOURCE --help                        all options of one source
"""


def add_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """A source brings options of its own, so its name decides which ones there are."""
    sources = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        names = source_names()
        width = max(map(len, names)) + 2
        listed = "\n".join(f"  {name:<{width}}{summary(load_source(name))}" for name in names)
        parser.description = f"Makes a shard set. Sources:\n{listed}"
    else:
        add_source(sources, name)


def add_source(sources: Any, name: str) -> None:
    """The parser of one source: its own options and those that all sources share."""
    if name.startswith("-"):
        listed = ", ".join(source_names())
        raise ShardError(f"the source comes first: shards make SOURCE {name} …; there are: {listed}")
    source = load_source(name)
    parser = sources.add_parser(name, description=source.__doc__)
    source.add_options(parser)
    parser.add_argument("--out", type=place_path, required=True, metavar="DIR", help="the new set, a folder or a URL")
    for add in (add_set_options, add_image_options, add_split_options):
        add(parser)


def expand(words: Sequence[str]) -> list[str]:
    """`food.yaml --out x` -> `table food.csv --min-images=3 --out x`."""
    return [*from_yaml(Path(words[0])), *words[1:]] if is_yaml(words) else list(words)


def run(options: argparse.Namespace) -> int:
    """shards make"""
    from shards.making.maker import make_set
    from shards.making.output import name_of
    from shards.progress import progress_bar

    order = read_order(options, options.out)
    source = load_source(options.source)
    announce(source)
    with progress_bar(name_of(options.out)) as watch:
        made = make_set(order, source.records(options), watch)
    describe(made)
    return 0


def describe(made: Made) -> None:
    """What was made, and what to do next."""
    manifest = made.manifest
    num_samples = sum(shard.samples for shard in manifest.shards)
    state = "already there, made from the same input with the same options" if made.was_there else "made"
    num_classes, num_shards = len(manifest.classes), len(manifest.shards)
    print(f"{made.where}: {state}: {num_samples} images of {num_classes} classes, {num_shards} shards")
    if made.num_found:
        print(f"  {made.num_found} shards were finished by an earlier run")
    for split, roles in manifest.about["totals"].items():
        print(f"  {split:<6}" + ", ".join(f"{role} {cell['samples']}" for role, cell in roles.items()))
    shared = (manifest.classes.table > 0).sum(0) > 1
    if shared.any() and not manifest.is_multi_label:
        names = [name for name, is_shared in zip(manifest.classes.class_names(), shared, strict=True) if is_shared]
        print(f"  {len(names)} classes have images in more than one split ({first_few(names)}), as the input says")
    if made.num_dropped:
        print(f"  {made.num_dropped} images left out by --drop")
    if made.num_small:
        print(f"  {made.num_small} images left out by the rules for classes")
    if made.num_skipped:
        print(f"  {made.num_skipped} images skipped, listed in {made.where}/skipped.csv")


def announce(source: Any) -> None:
    """Says where nobody has run a source on the real release."""
    if getattr(source, "VERIFIED", True):
        return
    print(f"layout unverified: written after {source.DOCUMENTED_AT}, not yet run on the real release", file=sys.stderr)
