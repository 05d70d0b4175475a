"""The samples of a tar as Python's tarfile finds them, also beyond places where the tar is damaged.

Neither our own reader nor the sidecar is asked, so that an error in how we write and read offsets cannot hide itself.
Where no header is found, the next one is looked for byte by byte: bytes may be missing, or be too many.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
MAGIC, MAGIC_AT = b"ustar", 257  # what tells a header from anything else, and its place in the block
PIECE_BYTES = 2**20  # of the search for it


class Found(NamedTuple):
    """An image with its json behind it."""

    key: str
    image: tarfile.TarInfo
    meta: tarfile.TarInfo


class Broken(NamedTuple):
    """A place that is not as it should be."""

    key: str | None
    """Of the sample that is broken by it, where a name is left."""
    text: str


class Gap(NamedTuple):
    """Bytes that belong to no whole member."""

    key: str | None
    text: str


class Refused(tarfile.TarError):
    """A member that could be read, but not where or what it is."""


class PlainFile(tarfile.TarInfo):
    """Takes no other members: no links, and no headers about other headers, which may nest or lie about their sizes."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type not in PLAIN or self.size < 0:
            raise Refused(f"{self.name!r} at byte {self.offset} is not a plain file")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return member


def walk_samples(file: BinaryIO, num_bytes: int) -> Iterator[Found | Broken]:
    """Everything in a tar of this size, in its order. The file's position may change between two samples."""
    image: tarfile.TarInfo | None = None
    gap: Gap | None = None
    named: str | None = None  # the last key that something was said about
    for piece in walk_members(file, num_bytes):
        key = piece.key if isinstance(piece, Gap) else key_of(piece)
        if image and isinstance(piece, tarfile.TarInfo) and piece.name == f"{key_of(image)}.json":
            yield Found(key_of(image), image, piece)
            image = None
            continue
        if image:
            named = key_of(image)
            after = piece.text if isinstance(piece, Gap) else f"followed by {piece.name!r}"
            yield Broken(named, f"its json is not behind it: {after}")
            image = None
            if isinstance(piece, Gap):
                continue
        if isinstance(piece, Gap):
            if gap:
                yield Broken(gap.key, gap.text)
            gap = piece
        elif piece.name.endswith(".json"):
            if key != named or gap:
                yield Broken(
                    key, f"its image is not there: {gap.text}" if gap else "its image is not in front of its json"
                )
            gap = None
        else:
            if gap:
                yield Broken(gap.key, gap.text)
            gap, image = None, piece
    if image:
        yield Broken(key_of(image), "its json is not behind it: the tar ends")
    if gap:
        yield Broken(gap.key, gap.text)


def key_of(member: tarfile.TarInfo) -> str:
    """The name without its extension."""
    return member.name.rpartition(".")[0]


def walk_members(file: BinaryIO, num_bytes: int) -> Iterator[tarfile.TarInfo | Gap]:
    """The members, and what lies between them that is none."""
    at: int | None = 0
    while at is not None:
        key, text, searched = None, "", at + 1
        try:
            file.seek(at)
            archive = tarfile.open(fileobj=file, mode="r:", tarinfo=PlainFile)
            while member := archive.next():
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                at, end = member.offset, member.offset_data + member.size
                searched = member.offset_data  # its size may be what is wrong
                if end > num_bytes:
                    key = key_of(member)
                    raise Refused(f"{member.name!r} goes to byte {end}, the tar to {num_bytes}")
                yield member
                at = archive.offset
        except Refused as error:
            text = str(error)
        except tarfile.TarError:
            text = ""  # no header, as where tarfile ends without a word
        if is_end(file, at, num_bytes):
            return
        yield Gap(
            key, text or (f"no tar header at byte {at}" if at < num_bytes else f"the tar ends at byte {num_bytes}")
        )
        at = find_header(file, searched)


def is_end(file: BinaryIO, at: int, num_bytes: int) -> bool:
    """Whether nothing but zeros is left, at least the two blocks that end an archive."""
    return not any(any(piece) for _, piece in read_pieces(file, at)) and num_bytes - at >= 2 * tarfile.BLOCKSIZE


def find_header(file: BinaryIO, at: int) -> int | None:
    """Where the next header of a plain file begins."""
    for start, piece in read_pieces(file, at + MAGIC_AT, overlap=len(MAGIC) - 1):
        found = piece.find(MAGIC)
        while found >= 0:
            header_at = start + found - MAGIC_AT
            file.seek(header_at)
            if is_header(file.read(tarfile.BLOCKSIZE)):
                return header_at
            found = piece.find(MAGIC, found + 1)
    return None


def read_pieces(file: BinaryIO, at: int, *, overlap: int = 0) -> Iterator[tuple[int, bytes]]:
    """(place, bytes) to the file's end; small pieces first, since most searches end soon."""
    size = tarfile.BLOCKSIZE
    while True:
        file.seek(at)
        piece = file.read(size)
        yield at, piece
        if len(piece) < size:
            return
        at, size = at + size - overlap, min(2 * size, PIECE_BYTES)


def is_header(block: bytes) -> bool:
    """Whether its sum is right and it opens a plain file."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").type in PLAIN
    except tarfile.HeaderError:
        return False
