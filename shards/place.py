"""Where the bytes of an image lie, as plain data: a place can be written as JSON and read in another process.

File("photos/cat/1.jpg")             a file here, or a URL that fsspec opens (s3://…, https://…)
Span("images.tar", 1536, 48211)      a part of a file: a member of a tar that is read in place and never unpacked
Made("sample", ("glyphs", "A", 3))   drawn by a source: shards.sources.sample.make_image("glyphs", "A", 3)
Inline(b"…")                         the bytes themselves, from a table's cell; spilled to disk before anything else
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shards.files import read_bytes


@dataclass(frozen=True, slots=True)
class File:
    """A whole file."""

    path: str
    """A local path or a URL."""

    def read(self) -> bytes:
        """All of it; OSError where it cannot be read."""
        return read_bytes(self.path)


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a file."""

    path: str
    at: int
    num_bytes: int

    def read(self) -> bytes:
        """These bytes; OSError where they cannot be read or the file ends before."""
        return read_bytes(self.path, at=self.at, num_bytes=self.num_bytes)


@dataclass(frozen=True, slots=True)
class Made:
    """An image that a source draws."""

    source: str
    """Name of a module in shards.sources that has `make_image`."""
    arguments: tuple[str | int, ...]

    def read(self) -> bytes:
        """Draws it."""
        from shards.sources import load_source

        data: bytes = load_source(self.source).make_image(*self.arguments)  # type: ignore[attr-defined]
        return data


@dataclass(frozen=True, slots=True)
class Inline:
    """Bytes that came with the record."""

    data: bytes

    def read(self) -> bytes:
        """Them."""
        return self.data


Place = File | Span | Made | Inline
KINDS: dict[str, type[File] | type[Span]] = {"file": File, "span": Span}


def pack(place: Place) -> list[Any]:
    """As JSON holds it; Inline places must have been spilled before."""
    assert not isinstance(place, Inline), "bytes are spilled to a file first"
    if isinstance(place, Made):
        return ["made", place.source, *place.arguments]
    return ["file", place.path] if isinstance(place, File) else ["span", place.path, place.at, place.num_bytes]


def unpack(packed: list[Any]) -> Place:
    """What `pack` packed."""
    kind, *rest = packed
    return Made(rest[0], tuple(rest[1:])) if kind == "made" else KINDS[kind](*rest)
