"""Shards copied whole from a slow place to the node's own disk; what is not there yet is read at its source.

`ahead` has a shard copied in the background, by one process of the node and once. `read` takes the copy; where it is just
being made it waits a little, and otherwise reads its few bytes at the source, so that a cache that is late, full or broken
costs speed and never a sample. Which bytes a sample has does not depend on the cache: a copy that is not what the manifest
says is thrown away with a warning.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import os
import time
from pathlib import Path

from retrieval_train.data.store.cache import Cache, lock_of
from retrieval_train.data.store.fetcher import Fetcher
from retrieval_train.data.store.local import OpenFile, OpenFiles
from retrieval_train.data.store.lock import POLL_S, is_locked, locked
from retrieval_train.data.store.store import Store
from shards.manifest import Manifest, Shard, ShardError

log = logging.getLogger(__name__)

PIECE_BYTES = 2**23  # of a shard, fetched at a time
WAIT_S = 2.0  # that a reader waits for a copy in the making; once a shard
LOCK_S = 0.05  # one who only looks whether a shard is being copied holds its lock for a moment
LOOK_S = 5.0  # between two looks whether a copy is still there, each of which says that it is in use
PAUSE_S = 60.0  # without copying after the disk was full
OPEN = OpenFiles(32)
"""Copies a process keeps open, of all sets: a deleted one gives its room back when the last process has closed it."""


class ScratchStore:
    """The tars of one set, by their copies."""

    _paused_until: float

    def __init__(self, manifest: Manifest, source: Store, cache: Cache) -> None:
        self._shards = {shard.file: shard for shard in manifest.shards}
        self._name, self._source, self._cache = manifest.name, source, cache
        self._folder = cache.folder(manifest)
        self._folder.mkdir(0o700, exist_ok=True)
        self._forget()

    def __getstate__(self) -> dict[str, object]:
        return {name: self.__dict__[name] for name in ("_shards", "_name", "_source", "_cache", "_folder")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def read(self, file: str, at: int, count: int) -> bytes:
        """See Store."""
        data = self._read_copy(file, at, count)
        if data is None and self._wait_for(file):
            data = self._read_copy(file, at, count)
        return self._source.read(file, at, count) if data is None else data

    def ahead(self, file: str, at: int, count: int) -> None:
        """See Store. Has the whole shard copied."""
        try:
            copy = self._open_copy(file)
            if copy is None:
                self._fetcher().ask(file)
            else:
                copy.ahead(at, count)
        except OSError as error:
            log.debug("%s: cannot be read ahead: %s", file, error)  # `read` goes to the source

    # --- the copy

    def _read_copy(self, file: str, at: int, count: int) -> bytes | None:
        """None where there is no copy, or none that can be read."""
        try:
            copy = self._open_copy(file)
            data = None if copy is None else copy.read(at, count)
        except OSError as error:
            self._refused[file] = math.inf
            self._warn("broken", f"{self._folder / file}: {error.strerror}; reading from the source instead")
            return None
        if data is None or len(data) == count:
            return data
        self._seen.pop(file, None)  # cut short since the last look
        OPEN.forget(self._folder / file)
        return None

    def _open_copy(self, file: str) -> OpenFile | None:
        path, shard, now = self._folder / file, self._shards[file], time.monotonic()
        if now < self._refused.get(file, 0.0):
            return None
        if now - self._seen.get(file, -LOOK_S) >= LOOK_S:
            OPEN.forget_deleted()
            if not self._cache.find(path, shard) or not self._cache.touch(path, shard):
                self._seen.pop(file, None)
                OPEN.forget(path)
                return None
            self._seen[file] = now
            self._given_up.discard(file)
        try:
            return OPEN.get(path)
        except FileNotFoundError:
            self._seen.pop(file, None)
            return None

    def _wait_for(self, file: str) -> bool:
        """Whether the copy is there after a while; asks for it and waits only while somebody is making it."""
        if self._is_refused(file):
            return False
        path, shard, fetcher = self._folder / file, self._shards[file], self._fetcher()
        fetcher.ask(file)
        if file in self._given_up:
            return False
        deadline = time.monotonic() + WAIT_S
        try:
            while fetcher.is_near(file) or is_locked(lock_of(path)):
                if self._cache.find(path, shard):
                    return True
                if time.monotonic() > deadline:
                    self._given_up.add(file)
                    return False
                time.sleep(POLL_S / 4)
            return self._cache.find(path, shard)
        except OSError as error:
            self._warn("broken", f"{self._folder}: {error.strerror}; reading from the source instead")
            return False

    # --- making it, in a thread

    def _copy(self, file: str) -> None:
        """Unless another process does."""
        path, shard = self._folder / file, self._shards[file]
        if self._is_refused(file):
            return
        try:
            with self._cache.slot():
                self._folder.mkdir(0o700, exist_ok=True)
                with locked(lock_of(path), wait_s=LOCK_S) as is_held:
                    if is_held and not self._cache.find(path, shard):
                        self._copy_now(path, shard)
        except ShardError as error:  # the source: whoever reads a sample there is told the same
            self._refused.setdefault(file, time.monotonic() + PAUSE_S)
            log.warning("no copy on scratch: %s", error)
        except OSError as error:
            self._paused_until = time.monotonic() + PAUSE_S
            self._warn("disk", f"data.store.scratch: {error.strerror}; {self._name} is read at its source meanwhile")

    def _copy_now(self, path: Path, shard: Shard) -> None:
        path.unlink(missing_ok=True)  # not what it should be
        part = self._cache.reserve(path, shard.bytes)
        if part is None:
            what = "is smaller than a shard" if shard.bytes > self._cache.max_bytes else "is full of shards in use"
            self._paused_until = time.monotonic() + PAUSE_S / 10
            self._warn(
                "full", f"data.store.scratch_gb: the cache {what}; the rest of {self._name} is read at its source"
            )
            return
        try:
            try:
                self._fill(part, shard)
            except OSError as error:
                if error.errno != errno.ENOSPC or not self._cache.evict(shard.bytes):
                    raise
                self._fill(part, shard)
            self._cache.publish(part, path, shard)
        finally:
            part.unlink(missing_ok=True)

    def _fill(self, part: Path, shard: Shard) -> None:
        """Copies the shard and compares sums on the way."""
        summed = hashlib.sha256()
        with part.open("r+b") as file:
            for at in range(0, shard.bytes, PIECE_BYTES):
                piece = self._source.read(shard.file, at, min(PIECE_BYTES, shard.bytes - at))
                summed.update(piece)
                file.write(piece)
        if summed.hexdigest() != shard.sha256:
            self._refused[shard.file] = math.inf
            raise ShardError(
                f"{self._name}/{shard.file}: its sum is not the manifest's, so it changed or was damaged after the set "
                "was made; run `shards check` on the set"
            )

    # --- what belongs to one process

    def _is_refused(self, file: str) -> bool:
        """Whether there is no point in copying it now."""
        return time.monotonic() < max(self._refused.get(file, 0.0), self._paused_until)

    def _fetcher(self) -> Fetcher[str]:
        if self._pid != os.getpid():
            self._forget()
        return self._threads

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._seen: dict[str, float] = {}
        self._given_up: set[str] = set()
        self._refused: dict[str, float] = {}  # file: until when its copy is of no use
        self._warned: set[str] = set()
        self._paused_until = 0.0
        self._threads: Fetcher[str] = Fetcher(self._copy, OPEN.forget_deleted, threads=self._cache.slots)

    def _warn(self, kind: str, text: str) -> None:
        """Once a process: a full disk is full for every shard."""
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("%s", text)
