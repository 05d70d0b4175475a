"""Tars in a folder: one pread a sample. The kernel's page cache is shared by all processes of a node and needs no care."""

from __future__ import annotations

import errno
import logging
import os
import resource
import threading
import time
from collections.abc import Callable
from functools import cache
from itertools import count as count_from
from pathlib import Path

from retrieval_train.data.store.store import StoreError
from shards.manifest import ShardError

log = logging.getLogger(__name__)

MOST_OPEN = 128  # tars that one process keeps open, of all sets together
WANTED_FILES = 65_536  # the usual limit of 1024 open files is soon reached by images, pipes and sockets of many workers
PAUSES_S = (0.1, 0.5, 2.0, 5.0)  # before each further try
PASSING = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENOTCONN}
    | {errno.EREMOTEIO, errno.ESHUTDOWN, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)
"""Errors of network and parallel file systems that may be gone a second later."""


class OpenFile:
    """A file descriptor that closes with its last user, so that one thread may forget what another is reading."""

    def __init__(self, path: Path | str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(
        self, close: Callable[[int], None] = os.close
    ) -> None:  # at exit the module may be gone before its files
        if hasattr(self, "fd"):
            close(self.fd)

    def read(self, at: int, count: int) -> bytes:
        """Up to `count` bytes; fewer only at the end of the file."""
        data = os.pread(self.fd, count, at)
        while 0 < len(data) < count and (more := os.pread(self.fd, count - len(data), at + len(data))):
            data += more
        return data

    def ahead(self, at: int, count: int) -> None:
        """Asks the kernel to have these bytes ready."""
        os.posix_fadvise(self.fd, at, count, os.POSIX_FADV_WILLNEED)


class OpenFiles:
    """The most recently used files of this process. pread keeps no position, so a fork may use its parent's."""

    def __init__(self, most: int = MOST_OPEN) -> None:
        self._most = most
        self._files: dict[tuple[str, int], OpenFile] = {}
        self._lock, self._pid = threading.Lock(), os.getpid()

    def __getstate__(self) -> dict[str, object]:
        return {"_most": self._most}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["_most"])  # type: ignore[misc]

    def get(self, path: Path | str, owner: int = 0) -> OpenFile:
        """Opened, or opened before by this owner."""
        name = (str(path), owner)
        with self._mine():
            file = self._files.pop(name, None)
        file = file or OpenFile(path)
        with self._mine():
            self._files[name] = file
            while len(self._files) > self._most:
                self._files.pop(next(iter(self._files)))
        return file

    def forget(self, path: Path | str, owner: int = 0) -> None:
        """The next `get` opens it anew."""
        with self._mine():
            self._files.pop((str(path), owner), None)

    def forget_deleted(self) -> None:
        """Gives back the room of files that were deleted while they were open."""
        with self._mine():
            gone = [name for name, file in self._files.items() if os.fstat(file.fd).st_nlink == 0]
            for name in gone:
                del self._files[name]

    def _mine(self) -> threading.Lock:
        if self._pid != os.getpid():  # another thread of the parent may have held the lock while it forked
            self._lock, self._pid = threading.Lock(), os.getpid()
        return self._lock


OPEN = OpenFiles()
"""Of all local stores of this process; what a store has left there goes when others need the room."""
_owners = count_from(1)


@cache
def allow_files() -> None:
    """Raises this process's limit of open files as far as it may, once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class LocalStore:
    """The tars of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._owner = next(_owners)  # a set that was made anew in the same folder is not read from the old one's tars
        allow_files()

    def read(self, file: str, at: int, count: int) -> bytes:
        """See Store. What a file system may get over is tried again for some seconds."""
        path = f"{self.folder}/{file}"
        for pause_s in (*PAUSES_S, None):
            try:
                data = OPEN.get(path, self._owner).read(at, count)
                break
            except OSError as error:
                OPEN.forget(path, self._owner)  # a stale handle stays stale
                if error.errno not in PASSING:
                    raise StoreError(f"{path}: cannot be read ({error.strerror}); {advice(error)}") from error
                if pause_s is None:
                    raise StoreError(
                        f"{path}: cannot be read at byte {at} ({error.strerror}, {len(PAUSES_S) + 1} tries); "
                        "the file system or its disk is failing, ask its administrator"
                    ) from error
                log.warning("%s: %s at byte %d, trying again in %g s", path, error.strerror, at, pause_s)
                time.sleep(pause_s)
        if len(data) != count:
            raise ShardError(
                f"{path}: {count} bytes from byte {at} on were expected, but it ends at byte {at + len(data)}; "
                "copy the file again"
            )
        return data

    def ahead(self, file: str, at: int, count: int) -> None:
        """See Store."""
        try:
            OPEN.get(f"{self.folder}/{file}", self._owner).ahead(at, count)
        except OSError as error:
            log.debug("%s: cannot be read ahead: %s", file, error)  # `read` meets the same and says what to do


def advice(error: OSError) -> str:
    """What to do about it."""
    if error.errno == errno.ENOENT:
        return "the set is incomplete, copy it again"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files, raise `ulimit -n`"
    return "check who may read it" if error.errno in (errno.EACCES, errno.EPERM) else "run `shards check` on the set"
