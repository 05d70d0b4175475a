"""`shards make | check | show`. Exit codes: 0 done, 1 a set is broken, 2 the user's mistake, 130 Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards import __version__
from shards.arguments import Parser, count, seed, share
from shards.errors import ShardError
from shards.sources import load_source, source_names, summary

if TYPE_CHECKING:
    from shards.maker import Order

EXAMPLES = """examples:
  shards make sample --out shard_sets/sample
  shards make folder photos --out shard_sets/photos
  shards make table release.tar --out shard_sets/release
  shards show shard_sets/release
  shards check shard_sets/release
"""
MAKE_EXAMPLES = """examples:
  shards make folder photos --out shard_sets/photos --min-images 2 --max-side 512
  shards make table food.csv --images photos --domain food --out shard_sets/food --dev-fraction 10%
  shards make SOURCE --help                all options of one source
"""
SHOW_EXAMPLES = """examples:
  shards show shard_sets/food              images by domain, split and role, and class sizes
"""
CHECK_EXAMPLES = """examples:
  shards check shard_sets/food             rereads every byte; exit code 1 when something is broken
"""
NOT_COMPARED = ("command", "source", "run", "out", "force")
STOPPED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = build_parser(arguments).parse_args(arguments)
        return int(options.run(options))
    except ShardError as error:
        print(f"shards: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("shards: stopped; nothing half-written is left", file=sys.stderr)
        return STOPPED


def build_parser(arguments: Sequence[str]) -> Parser:
    """The parser for these arguments: a source brings options of its own, so `make` needs to know which one it is."""
    text = "Makes, checks and shows sets of tar shards for image retrieval."
    parser = Parser(prog="shards", description=text, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"shards {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    make = commands.add_parser("make", help="make a set from a source", epilog=MAKE_EXAMPLES)
    sources = make.add_subparsers(dest="source", metavar="SOURCE", required=True)
    if arguments[:1] == ["make"]:
        name = arguments[1] if len(arguments) > 1 else "--help"
        if name in ("-h", "--help"):
            listed = "\n".join(f"  {name:<8} {summary(load_source(name))}" for name in source_names())
            make.description = f"Makes a shard set. Sources:\n{listed}"
        else:
            add_source(sources, name)
    add_command(commands, "check", run_check, "reread a set and find what is broken", CHECK_EXAMPLES)
    add_command(commands, "show", run_show, "show what is in a set", SHOW_EXAMPLES)
    return parser


def add_command(commands: Any, name: str, run: Any, text: str, examples: str) -> None:
    """A command that takes one set."""
    parser = commands.add_parser(name, help=text, description=f"{text.capitalize()}.", epilog=examples)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the shard set")
    parser.set_defaults(run=run)


def add_source(sources: Any, name: str) -> None:
    """The parser of one source: its own options and those that all sources share."""
    if name.startswith("-"):
        listed = ", ".join(source_names())
        raise ShardError(f"the source comes first: shards make SOURCE {name} …; there are: {listed}")
    source = load_source(name)
    parser = sources.add_parser(name, description=source.__doc__)
    source.add_options(parser)
    add = parser.add_argument_group("the set").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the new set, whose name is the set's")
    add("--force", action="store_true", help="replace a set that is there")
    add("--seed", type=seed, default=0, help="of the shuffle (default: 0)")
    add("--shard-mb", type=count, default=256, metavar="MB", help="largest shard in 10^6 bytes (default: 256)")
    add("--shard-samples", type=count, metavar="N", help="most samples in a shard (default: as many as fit)")
    add("--max-side", type=count, metavar="PX", help="re-encode larger images as JPEG of this longest side")
    add("--max-skipped", type=share, default=0.01, metavar="SHARE", help="unreadable images allowed (default: 1%%)")
    add = parser.add_argument_group("the split").add_argument
    add(
        "--dev-fraction",
        type=share,
        metavar="SHARE",
        help="of the classes, if the input brings no split (default: 20%%)",
    )
    add("--test-fraction", type=share, metavar="SHARE", help="of the classes (default: none)")
    add("--min-images", type=count, metavar="N", help="drop classes with fewer images (default: refuse single ones)")
    add("--train-only", action="store_true", help="make no evaluation split")
    parser.set_defaults(run=run_make)


def run_make(options: argparse.Namespace) -> int:
    """shards make"""
    from shards.maker import make_set
    from shards.progress import progress_bar
    from shards.stats import describe_made

    order = read_order(options)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cancelled job cleans up as after Ctrl-C
    try:
        with progress_bar(options.out.name) as watch:
            made = make_set(order, load_source(options.source).records(options), watch)
    finally:
        signal.signal(signal.SIGTERM, before)
    describe_made(made)
    return 0


def read_order(options: argparse.Namespace) -> Order:
    """What the options ask for."""
    from shards.maker import Order
    from shards.split import Rules
    from shards.writer import Sizes

    named = {name: value for name, value in sorted(vars(options).items()) if name not in NOT_COMPARED}
    return Order(
        out=options.out,
        config={"source": options.source, **{k: v for k, v in named.items() if not isinstance(v, Path)}},
        given={name: str(value) for name, value in named.items() if isinstance(value, Path)},
        rules=Rules(options.dev_fraction, options.test_fraction, options.min_images, options.train_only),
        sizes=Sizes(options.shard_mb * 10**6, options.shard_samples, options.max_side),
        seed=options.seed,
        max_skipped=options.max_skipped,
        force=options.force,
    )


def run_check(options: argparse.Namespace) -> int:
    """shards check"""
    from shards.check import check_set

    return check_set(options.folder)


def run_show(options: argparse.Namespace) -> int:
    """shards show"""
    from shards.stats import show_set

    show_set(options.folder)
    return 0
