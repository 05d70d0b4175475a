"""Where the images of a table lie: a folder, or an uncompressed tar that is read in place and never unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from shards.errors import ShardError
from shards.record import Unreadable, read_file


@dataclass(frozen=True, slots=True)
class Found:
    """An image file that is there."""

    read: Callable[[], bytes]
    num_bytes: int
    changed_at: float


class Store(Protocol):
    """Finds images by their path."""

    def find(self, path: str) -> Found:
        """The image at this relative path; Unreadable if there is none or the path leaves the store."""


def open_store(path: Path) -> Store:
    """A folder or a tar."""
    if path.is_dir():
        return FolderStore(path)
    if path.is_file():
        return TarStore(path)
    raise ShardError(f"{path}: no such folder or tar of images")


@dataclass(frozen=True, slots=True)
class FolderStore:
    """Images below a folder."""

    root: Path

    def find(self, path: str) -> Found:
        """See Store."""
        file = self.root / inside(path)
        try:
            status = file.stat()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise Unreadable(f"no file {path!r} in {self.root}") from error
        return Found(partial(read_file, file), status.st_size, status.st_mtime)


class TarStore:
    """Images inside a tar; one pass over its headers, then one read an image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_plain(path)
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                self.members = {
                    member.name.removeprefix("./"): (member.offset_data, member.size)
                    for member in tar
                    if member.isreg()
                }
        except tarfile.TarError as error:
            raise ShardError(f"{path}: not a readable tar ({error})") from error
        self._changed_at = path.stat().st_mtime

    def find(self, path: str) -> Found:
        """See Store."""
        name = str(inside(path))
        if name not in self.members:
            raise Unreadable(f"no file {path!r} in {self.path}")
        return Found(partial(self.read, name), self.members[name][1], self._changed_at)

    def read(self, name: str) -> bytes:
        """The bytes of a member."""
        at, num_bytes = self.members[name]
        self._file.seek(at)
        return self._file.read(num_bytes)


def open_plain(path: Path) -> BinaryIO:
    """Opens a tar that is not compressed: bytes inside a compressed one cannot be reached without unpacking."""
    file = path.open("rb")
    head = file.read(6)
    file.seek(0)
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")):
        file.close()
        raise ShardError(f"{path}: compressed; unpack it to a plain .tar or a folder first")
    return file


def inside(path: str) -> PurePosixPath:
    """The path, if it stays below the root it is meant for."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise Unreadable(f"the path {path!r} leaves the images folder")
    return pure
