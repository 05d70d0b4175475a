"""The commands. One file here is one command: `shards check` runs `shards.commands.check`.

A command has a docstring, whose first line is its help, and

    EXAMPLES                     lines for the end of its --help
    add_options(parser, words)   declares its options; `words` are those given after the command's name
    run(options)                 does it and gives the exit code

Heavy imports go into `run`: all commands are imported to list them.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Sequence
from typing import Protocol, cast


class Command(Protocol):
    """What a module of this folder offers."""

    __doc__: str | None
    EXAMPLES: str

    def add_options(self, parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
        """Declares its options."""

    def run(self, options: argparse.Namespace) -> int:
        """Does it; ShardError for the user's mistakes."""


def command_names() -> list[str]:
    """All of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_command(name: str) -> Command:
    """The command of this name."""
    return cast(Command, importlib.import_module(f"{__name__}.{name}"))
