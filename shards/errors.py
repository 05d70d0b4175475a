"""What goes wrong for a reason that the user can mend: one error class and one way to guess what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ShardError(ValueError):
    """A mistake in the input, the options or a set: says where, what was given, what is allowed and what to do."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean label?` when one of the known words is close, else the empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def first_few(names: Iterable[str], *, count: int = 3) -> str:
    """`a, b, c, …`: enough to find the place without filling the screen."""
    listed = list(names)
    return ", ".join(listed[:count]) + (", …" if len(listed) > count else "")


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM in the middle of something that left files behind; says which, and how to go on."""
