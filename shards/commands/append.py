"""Add new images to a set, without writing its tars again.

    shards append DIR                    reads the source that the set was made from again, and adds what is new there
    shards append DIR folder more        adds the images of another source

Images that the set has already (by domain and path) are passed over. Classes of the set keep their split, and their new
images join the index where they are evaluated; new classes are split by hash as always. Options that are not given are
those that the set was made with.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from shards.commands import make
from shards.errors import ShardError
from shards.making.options import (
    add_image_options,
    add_set_options,
    add_split_options,
    image_options_of,
    options_of,
    read_order,
)
from shards.sources import load_source, source_names

EXAMPLES = """examples:
  shards append shard_sets/photos                          # after photos were added to the folder
  shards append shard_sets/photos table more.csv --images more
  shards append DIR SOURCE --help                          all options of one source
"""


def add_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """The set, and a source with its options."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the set that grows")
    source = words[1] if len(words) > 1 and not words[1].startswith("-") else None
    if source is None:
        parser.add_argument("--workers", type=int, default=None, metavar="N", help="processes (default: all CPUs)")
        parser.set_defaults(source=None)
        return
    sources = parser.add_subparsers(dest="source", metavar=f"[{'|'.join(source_names())}]")
    one = sources.add_parser(source, description=load_source(source).__doc__)
    load_source(source).add_options(one)
    for add in (add_set_options, add_image_options, add_split_options):
        add(one)
    from shards.manifest import Manifest

    if Path(words[0]).is_dir():
        one.set_defaults(**image_options_of(Manifest.load(words[0])))


def run(options: argparse.Namespace) -> int:
    """shards append"""
    from shards.making.base import Base
    from shards.making.maker import Made
    from shards.making.merge import append_set
    from shards.manifest import Manifest
    from shards.progress import progress_bar

    folder: Path = options.folder
    manifest = Manifest.load(folder)
    if options.source is None:
        workers = options.workers
        options = options_of(manifest)
        options.workers = workers or options.workers
    elif getattr(options, "force", False):
        raise ShardError("--force replaces a set, and append adds to one; leave it out")
    options.out = folder  # sources name their default domain after the set
    order = read_order(options, folder.with_name(f"{folder.name}.new"))
    make.announce(load_source(options.source))
    with progress_bar(folder.name) as watch:
        grown, num_new = append_set(Base(manifest), order, load_source(options.source).records(options), watch)
    print(f"{num_new} new images")
    if num_new:
        make.describe(Made(grown, str(folder)))
    return 0
