"""A folder on the node's disk with whole shards in it, shared by all processes of one user on that node.

    <scratch>/retrieval-train-<uid>/room.lock            who makes room
                                    slot-0.lock …        one for each shard that may be copied at a time
    <digest of the set>/<shard>.tar                      whole and verified; its mtime is made of its sha256, its atime
                                                         says when it was last used
                        <shard>.tar.<pid>-<n>.part       being copied, and dead when nobody holds the lock of the shard
                        <shard>.tar.lock                 flock of the process that copies it
                        tables-<digest>/                 all of a remote set but its tars, see tables.py

A file gets the name of a shard only when it is whole and verified, so whatever is killed leaves nothing that is taken for
one; a requeued job finds the shards again and knows them by size and mtime. The content of a set names its folder, so a
set that is made anew never meets the copies of the old one.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from retrieval_train.data.store.lock import POLL_S, is_locked, locked
from shards.manifest import Manifest, Shard, ShardError

USED_S = 30.0  # a copy that was used this recently is in use, and stays
SPARE_BYTES = 2**28  # of the disk are left to others
MOST_PAUSE_S = 0.5  # between two looks whether a slot is free
ROOM_S = 60.0  # making room takes milliseconds
_number = itertools.count()


@dataclass(frozen=True)
class Cache:
    """All copies below one scratch folder."""

    root: Path
    max_bytes: int
    """Bound on the copies of all sets together, those in the making included."""
    slots: int
    """Shards that are copied at a time."""

    @classmethod
    def open(cls, scratch: Path, *, max_bytes: int, slots: int) -> Cache:
        """Raises ShardError for a folder that is not there or cannot be written."""
        root = scratch / f"retrieval-train-{os.getuid()}"
        try:
            if not scratch.is_dir():
                raise FileNotFoundError(2, "no such folder")
            root.mkdir(0o700, exist_ok=True)
            if root.stat().st_uid != os.getuid():
                raise PermissionError(1, f"{root} is somebody else's")
            with locked(root / "room.lock", wait_s=ROOM_S, is_kept=True):
                pass
        except OSError as error:
            raise ShardError(
                f"data.store.scratch {scratch}: not usable on {socket.gethostname()} ({error.strerror}); "
                "give a folder on the node's own disk that can be written, or null"
            ) from error
        return cls(root, max_bytes, slots)

    def folder(self, manifest: Manifest) -> Path:
        """Where the copies of a set lie."""
        return self.root / manifest.digest[:16]

    def find(self, path: Path, shard: Shard) -> bool:
        """Whether the copy of a shard is there and as it was when it was verified."""
        try:
            stat = path.stat()
        except FileNotFoundError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (shard.bytes, stamp(shard))

    def touch(self, path: Path, shard: Shard) -> bool:
        """Says that a copy is in use; whether it is still there."""
        try:
            os.utime(path, ns=(time.time_ns(), stamp(shard)))
        except FileNotFoundError:
            return False
        return True

    def reserve(self, path: Path, num_bytes: int) -> Path | None:
        """An empty file of this size next to `path`, for which there is room; None where there is none.

        The caller holds the lock of `path`.
        """
        part = path.with_name(f"{path.name}.{os.getpid()}-{next(_number)}.part")
        with locked(self.root / "room.lock", wait_s=ROOM_S, is_kept=True) as is_held:
            if not is_held or not self._make_room(num_bytes, mine=path):
                return None
            with part.open("xb") as file:
                file.truncate(num_bytes)
        return part

    @contextmanager
    def slot(self) -> Iterator[None]:
        """While it is held, at most `slots` threads of all processes are in here."""
        pause_s = POLL_S
        while True:
            for number in range(self.slots):
                with locked(self.root / f"slot-{number}.lock", is_kept=True) as is_held:
                    if is_held:
                        yield
                        return
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, MOST_PAUSE_S)  # copies take seconds, and many threads may wait

    def evict(self, num_bytes: int) -> bool:
        """Deletes copies that are not in use until so much was given back; whether it was."""
        with locked(self.root / "room.lock", wait_s=ROOM_S, is_kept=True) as is_held:
            return is_held and self._evict(num_bytes, self._copies()) >= num_bytes

    def publish(self, part: Path, path: Path, shard: Shard) -> None:
        """Gives a verified copy its name."""
        os.utime(part, ns=(time.time_ns(), stamp(shard)))
        with locked(self.root / "room.lock", wait_s=ROOM_S, is_kept=True):  # so that no count misses it on its way
            part.rename(path)

    def num_bytes(self) -> int:
        """What the bound is on."""
        with locked(self.root / "room.lock", wait_s=ROOM_S, is_kept=True):
            return sum(stat.st_size for _, stat in [*self._copies(), *self._parts()])

    def _make_room(self, num_bytes: int, *, mine: Path) -> bool:
        for part, _ in self._parts():
            whole = part.with_name(part.name.rpartition(".tar.")[0] + ".tar")
            if whole == mine or not is_locked(lock_of(whole)):
                part.unlink(missing_ok=True)  # its process was killed
        copies, parts = self._copies(), self._parts()
        taken = sum(stat.st_size for _, stat in [*copies, *parts])
        disk = os.statvfs(self.root)
        promised = sum(max(stat.st_size - stat.st_blocks * 512, 0) for _, stat in parts)
        free = disk.f_bavail * disk.f_frsize - promised - SPARE_BYTES
        missing = num_bytes - min(self.max_bytes - taken, free)
        return num_bytes <= self.max_bytes and (missing <= 0 or self._evict(missing, copies) >= missing)

    def _evict(self, num_bytes: int, copies: list[tuple[Path, os.stat_result]]) -> int:
        """Bytes that were given back; none when not enough can be."""
        idle_since = time.time() - USED_S
        idle = sorted((stat.st_atime, path, stat.st_size) for path, stat in copies if stat.st_atime < idle_since)
        if sum(size for _, _, size in idle) < num_bytes:
            return 0
        given = 0
        for _, path, size in idle:
            if given >= num_bytes:
                break
            path.unlink(missing_ok=True)
            given += size
        return given

    def _copies(self) -> list[tuple[Path, os.stat_result]]:
        return _existing(self.root.glob("*/*.tar"))

    def _parts(self) -> list[tuple[Path, os.stat_result]]:
        return _existing(self.root.glob("*/*.part"))


def lock_of(path: Path) -> Path:
    """The lock of who copies a shard."""
    return path.with_name(f"{path.name}.lock")


def stamp(shard: Shard) -> int:
    """The mtime in ns of a verified copy: whole seconds, which every file system keeps, from the first 7 hex digits."""
    return int(shard.sha256[:7], 16) * 10**9


def _existing(paths: Iterable[Path]) -> list[tuple[Path, os.stat_result]]:
    """Files with their state; another process may rename or delete them meanwhile."""
    found = []
    for path in paths:
        try:
            found.append((path, path.stat()))
        except FileNotFoundError:
            continue
    return found
