"""The files below a folder or URL, one after the other, without holding them all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from shards.errors import ShardError
from shards.files import WEB, is_url, open_system, shown, with_retries

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

HIDDEN = (".", "__MACOSX")
REFUSED_SUFFIXES = (".avif", ".heic", ".heif", ".jp2", ".jxl")  # listed all the same, so that skipped.csv names them
TAKEN_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
IMAGE_SUFFIXES = TAKEN_SUFFIXES + REFUSED_SUFFIXES
CHANGED = ("mtime", "LastModified", "last_modified", "updated")  # what file systems call the modification time


class Entry(NamedTuple):
    """A file below a folder."""

    path: str
    """Below the folder, with `/`."""
    place: str
    """Absolute path or URL."""
    num_bytes: int
    """0 where nobody says."""
    changed_at: float


def is_image(name: str) -> bool:
    """By its name."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def walk_files(root: str | Path, wanted: Callable[[str], bool]) -> Iterator[Entry]:
    """The files below a folder or URL whose name is wanted: folder by folder, sorted within each, hidden ones left out.

    Holds the names of one folder at a time (and of the folders still to come). Links are followed, but no folder is
    entered twice.
    """
    return walk_remote(str(root), wanted) if is_url(root) else walk_local(os.path.abspath(root), wanted)


def walk_local(root: str, wanted: Callable[[str], bool]) -> Iterator[Entry]:
    """See walk_files."""
    seen: set[int] = set()  # of device and inode: a set of paths would take three times as much
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            there = os.stat(f"{root}/{folder}")
            number = there.st_dev << 64 | there.st_ino
            if number in seen:
                continue
            seen.add(number)
            files, folders = list_folder(f"{root}/{folder}", wanted)
        except OSError as error:
            raise ShardError(f"{root}/{folder}: cannot be listed ({error.strerror})") from error
        for name in files:
            path = f"{folder}{name}"
            place = f"{root}/{path}"
            try:
                status = os.stat(place)
            except OSError:  # a link to nowhere: whoever reads it says so
                yield Entry(path, place, 0, 0.0)
                continue
            if stat.S_ISREG(status.st_mode):
                yield Entry(path, place, status.st_size, status.st_mtime)
        waiting += [f"{folder}{name}/" for name in reversed(folders)]


def list_folder(folder: str, wanted: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """Names of the wanted files and of the folders in it."""
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(HIDDEN[0]):
                continue
            if is_folder(entry):
                folders += [name] if not name.startswith(HIDDEN) else []
            elif wanted(name):
                files.append(name)
    return sorted(files), sorted(folders)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Links to folders too; a link to itself is none, and is found out when it is read."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def list_folders(root: str | Path) -> list[str]:
    """Names of the folders right below a folder or URL, sorted, without the hidden ones."""
    if not is_url(root):
        return list_folder(os.path.abspath(root), lambda name: False)[1]
    top, _, folders = list_remote(str(root))
    return [path_below(top, folder) for folder in folders]


def walk_remote(url: str, wanted: Callable[[str], bool]) -> Iterator[Entry]:
    """See walk_files; one listing a folder right below the URL."""
    system, _ = open_system(url)
    top, files, folders = list_remote(url)
    yield from remote_entries(system, top, files, wanted)
    for folder in folders:
        found = ask(url, partial(system.find, folder, detail=True))
        system.invalidate_cache()  # a listing of millions would stay in memory
        yield from remote_entries(system, top, list(found.values()), wanted)


def list_remote(url: str) -> tuple[str, list[dict[str, Any]], list[str]]:
    """(path of the URL, what is known of the files, the folders) right below it."""
    system, top = open_system(url)
    infos = ask(url, partial(system.ls, top, detail=True))
    folders = sorted(info["name"] for info in infos if info["type"] == "directory")
    shown_ones = [name for name in folders if path_below(top, name) and not path_below(top, name).startswith(HIDDEN)]
    return top, [info for info in infos if info["type"] == "file"], shown_ones


def ask(url: str, listing: Callable[[], Any]) -> Any:
    """A listing, after a few tries."""
    try:
        return with_retries(listing)
    except FileNotFoundError as error:
        raise ShardError(f"{shown(url)}: no such folder") from error
    except OSError as error:
        raise ShardError(f"{shown(url)}: cannot be listed ({error})") from error


def path_below(top: str, name: str) -> str:
    """The path that a name has below the URL it was listed for."""
    path = name.removeprefix(top).strip("/")
    return unquote(path, errors="surrogateescape") if name.startswith(WEB) else path


def remote_entries(
    system: AbstractFileSystem, top: str, infos: list[dict[str, Any]], wanted: Callable[[str], bool]
) -> Iterator[Entry]:
    """What fsspec lists, as entries."""
    for info in sorted(infos, key=lambda info: info["name"]):
        path = path_below(top, info["name"])
        if wanted(path.rpartition("/")[2]) and not any(part.startswith(HIDDEN) for part in path.split("/")):
            yield Entry(path, system.unstrip_protocol(info["name"]), info.get("size") or 0, changed_at(info))


def changed_at(info: dict[str, Any]) -> float:
    """When the file changed, 0 where the file system does not say."""
    changed = next((info[name] for name in CHANGED if info.get(name)), 0.0)
    changed = changed.timestamp() if hasattr(changed, "timestamp") else changed
    return float(changed) if isinstance(changed, (int, float)) else 0.0
