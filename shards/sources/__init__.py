"""Where records come from. One file (or package) here is one source: `shards make NAME` imports `shards.sources.NAME`.

A source has a docstring, whose first line is its help, and two functions:

    add_options(parser)   its own command-line options; paths with type=Path
    records(options)      yields the records; options.out.name is the name of the set that is being made

Nothing else knows it. Heavy imports go into the functions: all sources are imported to list them.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Iterable
from typing import Protocol, cast

from shards.errors import ShardError, did_you_mean
from shards.record import Record


class Source(Protocol):
    """What a module of this folder offers."""

    __doc__: str | None

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Declares the options of this source."""

    def records(self, options: argparse.Namespace) -> Iterable[Record]:
        """The images of a release; ShardError where it cannot be read."""


def source_names() -> list[str]:
    """What `shards make` can make from."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_source(name: str) -> Source:
    """The source of this name."""
    names = source_names()
    if name not in names:
        raise ShardError(f"no source {name!r}; there are: {', '.join(names)}{did_you_mean(name, names)}")
    return cast(Source, importlib.import_module(f"{__name__}.{name}"))


def summary(source: Source) -> str:
    """The first line of its docstring."""
    return (source.__doc__ or "").strip().partition("\n")[0]
