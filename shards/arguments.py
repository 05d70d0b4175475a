"""What the command line takes as a number, and how its help looks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Keeps our line breaks and guesses no abbreviated options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """One line, as for every other mistake; the usage of `make` alone fills a screen."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def share(text: str) -> float:
    """`5%` or `0.05`; a bare 1 could mean either end, so it is refused."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1 or (value == 1 and not text.endswith("%")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a share; write it as 5% or 0.05")
    return value


def count(text: str, *, least: int = 1) -> int:
    """A whole number."""
    if not text.isascii() or not text.isdigit() or not least <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
    return int(text)


def seed(text: str) -> int:
    """A whole number, 0 too."""
    return count(text, least=0)


def pair(text: str) -> tuple[str, str]:
    """`old=new`"""
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW")
    return old, new


def add_workers(add: Callable[..., Any]) -> None:
    """--workers, by the `add_argument` of a parser or a group."""
    from shards.pool import usable_cpus

    add(
        "--workers",
        type=count,
        default=usable_cpus(),
        metavar="N",
        help="processes (default: all CPUs, here %(default)s)",
    )
