"""Where the images of a table lie: a folder, a URL, or an uncompressed tar that is read in place and never unpacked."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple, Protocol

from shards.errors import ShardError
from shards.files import below, is_url, path_of, shown
from shards.inputs.members import open_plain, walk_members
from shards.place import File, Place, Span
from shards.record import Unreadable


class Found(NamedTuple):
    """An image that is there, or may be: nobody asks a server for each of a million files."""

    place: Place
    num_bytes: int
    """0 behind a URL."""
    changed_at: float


class Store(Protocol):
    """Finds images by their path."""

    def find(self, path: str) -> Found:
        """The image at this path, as `inside` gives it; Unreadable if there is none."""


def open_store(path: Path | str) -> Store:
    """A folder, a tar or a URL."""
    if is_url(path):
        return TarStore(path) if path_of(path).suffix.lower() == ".tar" else UrlStore(str(path))
    if Path(path).is_dir():
        return FolderStore(path)
    if Path(path).is_file():
        return TarStore(path)
    raise ShardError(f"{path}: no such folder or tar of images")


class FolderStore:
    """Images below a folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = os.path.abspath(root)
        self._shown = str(root)

    def find(self, path: str) -> Found:
        """See Store."""
        place = f"{self.root}/{path}"
        try:
            status = os.stat(place)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise Unreadable(f"no file {path!r} in {self._shown}") from error
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(f"{path!r} in {self._shown} is not a file")
        return Found(File(place), status.st_size, status.st_mtime)


class UrlStore:
    """Images below a URL; nothing is asked before they are read."""

    def __init__(self, root: str) -> None:
        self.root = root

    def find(self, path: str) -> Found:
        """See Store."""
        return Found(File(below(self.root, path)), 0, 0.0)


class TarStore:
    """Images inside a tar; one pass over its headers, then one read an image."""

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.place = str(path) if is_url(path) else os.path.abspath(path)
        with open_plain(path) as file:
            self.members = {
                member.name.removeprefix("./"): (member.at, member.num_bytes)
                for member in walk_members(file, shown(path))
            }
        self._changed_at = 0.0 if is_url(path) else os.stat(path).st_mtime

    def find(self, path: str) -> Found:
        """See Store."""
        if path not in self.members:
            raise Unreadable(f"no file {path!r} in {shown(self.path)}")
        at, num_bytes = self.members[path]
        return Found(Span(self.place, at, num_bytes), num_bytes, self._changed_at)


def inside(path: str) -> str:
    """The path without empty parts and dots, if it stays below the root it is meant for; else Unreadable."""
    parts = path.split("/")
    if path.startswith("/") or ".." in parts:
        raise Unreadable(f"the path {path!r} leaves the images folder")
    return "/".join(part for part in parts if part not in ("", "."))
