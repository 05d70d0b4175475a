"""`shards COMMAND`. Exit codes: 0 done, 1 a broken set or a leak (`audit --strict`), 2 the user's mistake, 130 Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from shards import __version__
from shards.arguments import Parser
from shards.commands import command_names, load_command
from shards.errors import ShardError, Stopped

EXAMPLES = """examples:
  shards make sample --out shard_sets/sample
  shards make folder photos --out shard_sets/photos
  shards show shard_sets/photos
  shards check shard_sets/photos
  shards audit shard_sets/photos
"""
STOPPED, CLOSED = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cancelled job stops as after Ctrl-C
    try:
        words = expand(words)
        options = build_parser(words).parse_args(words)
        return int(options.run(options))
    except ShardError as error:
        print(f"shards: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except KeyboardInterrupt as stop:
        print(f"shards: stopped; {stop if isinstance(stop, Stopped) else 'nothing was changed'}", file=sys.stderr)
        return STOPPED
    finally:
        signal.signal(signal.SIGTERM, before)


def expand(words: list[str]) -> list[str]:
    """A command may take its words from a file."""
    if words and words[0] in command_names():
        expand_rest = getattr(load_command(words[0]), "expand", None)
        if expand_rest:
            return [words[0], *expand_rest(words[1:])]
    return words


def build_parser(words: Sequence[str]) -> Parser:
    """The parser for these words: only the command that they name is imported, all of them for help and mistakes."""
    text = "Makes, checks and shows sets of tar shards for image retrieval."
    parser = Parser(prog="shards", description=text, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"shards {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    names = command_names()
    for name in words[:1] if words and words[0] in names else names:
        command = load_command(name)
        doc = (command.__doc__ or "").strip()
        one = commands.add_parser(name, help=doc.partition("\n")[0], description=doc, epilog=command.EXAMPLES)
        command.add_options(one, words[1:])
        one.set_defaults(run=command.run)
    return parser
