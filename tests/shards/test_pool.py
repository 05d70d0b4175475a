"""Exceptions of a worker as the caller sees them."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from shards import pool


class Demanding(Exception):
    """Can be pickled, and not be made again from its message."""

    def __init__(self, path: str, at: int) -> None:
        super().__init__(f"{path} at {at}")


def fail(piece: str, count: pool.Count) -> Any:
    """A piece of work that goes wrong as it is told."""
    if piece == "demanding":
        raise Demanding("x.jpg", 7)
    if piece == "unpicklable":
        raise KeyError(threading.Lock())
    if piece == "usual":
        raise FileNotFoundError(2, "No such file", "x.jpg")
    return piece


@pytest.mark.parametrize(
    ("piece", "kind", "message"),
    [
        ("demanding", RuntimeError, r"Demanding: x\.jpg at 7"),
        ("unpicklable", RuntimeError, r"KeyError: <unlocked _thread\.lock"),
        ("usual", FileNotFoundError, r"No such file: 'x\.jpg'"),
    ],
)
def test_any_exception_of_a_worker_comes_up_with_its_words_and_frames(
    piece: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        list(pool.run(fail, [piece, "fine"], workers=2, watch=lambda images, num_bytes: None))
    assert "in fail" in "".join(caught.value.__notes__)
