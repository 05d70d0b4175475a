"""Add new images to a set, without writing its tars again.

    shards append DIR                    reads the source that the set was made from again, and adds what is new there
    shards append DIR folder more        adds the images of another source

Images that the set has already (by domain and path) are passed over. Classes of the set keep their split, and their new
images join the index where they are evaluated; new classes are split by hash as always. Options that are not given are
those that the set was made with; without a source, only those of the set itself (--workers, --shard-mb, …) can be given.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.commands import make
from shards.errors import ShardError
from shards.making.options import (
    add_image_options,
    add_set_options,
    add_split_options,
    options_of,
    read_order,
    set_option_names,
    shared_options_of,
)
from shards.sources import load_source, source_names

if TYPE_CHECKING:
    from shards.manifest import Manifest

EXAMPLES = """examples:
  shards append shard_sets/photos                          # after photos were added to the folder
  shards append shard_sets/photos table more.csv --images more
  shards append DIR SOURCE --help                          all options of one source
"""


def add_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """The set, and a source with its options."""
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help"):
        raise ShardError(f"the set comes first: shards append DIR [SOURCE] {words[0]} …")
    parser.add_argument("folder", type=Path, metavar="DIR", help="the set that grows")
    defaults: dict[str, Any] = {}
    if words and Path(words[0]).is_dir():
        from shards.making.base import refuse_damaged
        from shards.manifest import Manifest

        manifest = Manifest.load(words[0])
        refuse_damaged(manifest)
        defaults = shared_options_of(manifest)
    source = words[1] if len(words) > 1 and not words[1].startswith("-") else None
    if source is None:
        add_set_options(parser)
        own = {name: value for name, value in defaults.items() if name in set_option_names()}
        parser.set_defaults(**own, source=None)
        return
    sources = parser.add_subparsers(dest="source", metavar=f"[{'|'.join(source_names())}]")
    one = sources.add_parser(source, description=load_source(source).__doc__)
    load_source(source).add_options(one)
    for add in (add_set_options, add_image_options, add_split_options):
        add(one)
    one.set_defaults(**defaults)


def run(options: argparse.Namespace) -> int:
    """shards append"""
    from shards.making.append import append_set
    from shards.making.base import Base
    from shards.making.maker import Made
    from shards.manifest import Manifest
    from shards.progress import progress_bar

    folder: Path = vars(options).pop("folder").resolve()
    base = Base(Manifest.load(folder))
    if options.force:
        raise ShardError("--force replaces a set, and append adds to one; leave it out")
    try:
        if options.source is None:
            options = own_options(base.manifest, options)
        options.out = folder.with_name(base.name)  # sources name their default domain after the set
        order = read_order(options, folder.with_name(f"{folder.name}.new"))
    except ShardError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # options that no command line would take
        raise ShardError(f"{folder}: the options in its manifest.json are damaged ({error!r})") from error
    make.announce(load_source(options.source))
    with progress_bar(folder.name) as watch:
        grown, num_new = append_set(base, order, load_source(options.source).records(options), watch)
    print(f"{num_new} new images")
    if num_new:
        make.describe(Made(grown, str(folder)))
    return 0


def own_options(manifest: Manifest, given: argparse.Namespace) -> argparse.Namespace:
    """Those that the set was made with, and what the command line says of the set itself."""
    options = options_of(manifest)
    for name in set_option_names():
        if name != "drop" or given.drop:
            setattr(options, name, getattr(given, name))
    return options
