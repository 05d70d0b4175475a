"""Where the members of a tar lie: one pass over its headers, nothing unpacked and nothing kept.

Plain ustar, GNU and PAX tars; compressed ones are refused, since a part of them cannot be read without all before it.
Python's tarfile would remember every member.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from shards.errors import ShardError
from shards.files import open_binary, shown
from shards.ustar import BLOCK, padding

REGULAR, LINKS_AND_THE_LIKE = (b"0", b"\0", b"7"), (b"1", b"2", b"3", b"4", b"5", b"6")
PAX, PAX_FOR_ALL, GNU_NAME, GNU_LINK, GNU_SPARSE = b"x", b"g", b"L", b"K", b"S"
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
MAX_PAX_BYTES = 2**20


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    at: int
    """Its first byte's place in the tar."""
    num_bytes: int


@contextmanager
def open_plain(path: str | Path) -> Iterator[BinaryIO]:
    """A tar, opened; ShardError where there is none or it is compressed."""
    try:
        with open_binary(path, in_place=True) as file:
            if file.read(6).startswith(COMPRESSED):
                raise ShardError(f"{shown(path)}: compressed; unpack it to a plain .tar or a folder first")
            file.seek(0)
            yield file
    except OSError as error:
        raise ShardError(f"{shown(path)}: cannot be read ({error.strerror or error})") from error


def walk_members(file: BinaryIO, name: str) -> Iterator[Member]:
    """The regular files of a tar, in order; ShardError that says `name` where this is no tar or only a part of one."""
    total = file.seek(0, os.SEEK_END)
    at = 0
    said: dict[str, str] = {}  # what the special members in front of a file say about it
    while at < total:
        file.seek(at)
        block = file.read(BLOCK)
        if at and len(block) < BLOCK:
            raise ShardError(f"{name}: ends in the middle of a header; copy or download it again")
        if not any(block):
            return
        try:
            path, kind, num_bytes = parse_block(block)
            num_bytes = num_bytes if kind in (PAX, GNU_NAME) else int(said.get("size", num_bytes))
        except ValueError as error:
            raise ShardError(f"{name}: not a readable tar (no header at byte {at})") from error
        start = at + BLOCK
        at = start if kind in LINKS_AND_THE_LIKE else start + num_bytes + padding(num_bytes)
        path = said.get("path", path)
        if num_bytes < 0 or start + num_bytes > total:
            raise ShardError(f"{name}: ends in the middle of {path!r}; copy or download it again")
        if kind in (PAX, GNU_NAME):
            said |= read_special(file, name, kind, num_bytes)
            continue
        if kind == GNU_SPARSE or any(word.startswith("GNU.sparse") for word in said):
            raise ShardError(f"{name}: {path!r} is stored as a sparse file; pack the tar anew without --sparse")
        if kind in REGULAR and not path.endswith("/"):
            yield Member(path, start, num_bytes)
        if kind not in (PAX_FOR_ALL, GNU_LINK):
            said = {}
    if total == 0:
        raise ShardError(f"{name}: not a readable tar (it is empty)")


def parse_block(block: bytes) -> tuple[str, bytes, int]:
    """Name, kind and size of the member that this block opens; ValueError where it opens none."""
    if len(block) != BLOCK or number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise ValueError("the sum of the header is wrong")
    path = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    path = prefix + b"/" + path if prefix else path
    return path.decode("utf-8", "surrogateescape"), block[156:157], number(block[124:136])


def number(field: bytes) -> int:
    """Octal digits, or GNU's binary numbers for files above 8 GiB."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def read_special(file: BinaryIO, name: str, kind: bytes, num_bytes: int) -> dict[str, str]:
    """What a PAX header or a GNU long name says about the next member; the file stands at its content."""
    if num_bytes > MAX_PAX_BYTES:
        raise ShardError(f"{name}: a header of {num_bytes} bytes; this is not a tar of images")
    content = file.read(num_bytes)
    if kind == GNU_NAME:
        return {"path": content.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    said, at = {}, 0
    try:
        while at < len(content):
            length, _, rest = content[at:].partition(b" ")
            end = int(length) - len(length) - 1
            if end < 1:
                raise ValueError("a record that holds nothing")
            word, _, value = rest[: end - 1].partition(b"=")
            said[word.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
            at += int(length)
    except ValueError as error:
        raise ShardError(f"{name}: not a readable tar (a damaged PAX header)") from error
    return said
