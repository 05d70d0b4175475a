"""Locks between the processes of a node: flock, which the kernel drops however its holder ends. There are no stale ones."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.manifest import ShardError

POLL_S = 0.02
_held: set[int] = set()  # descriptors of this process


def _drop_inherited() -> None:
    """A forked worker holds its parent's locks too, and would keep them alive when the parent is killed."""
    for fd in _held:
        os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_drop_inherited)


@contextmanager
def locked(path: Path, *, wait_s: float = 0.0, is_kept: bool = False) -> Iterator[bool]:
    """Whether this thread alone holds the lock of that name, after trying for `wait_s`.

    The file is removed with the lock unless `is_kept`: who waited for it sees that, and takes a new one.
    """
    fd = _acquire(path, time.monotonic() + wait_s)
    if fd is None:
        yield False
        return
    owner = os.getpid()
    try:
        yield True
    finally:
        if owner == os.getpid() and fd in _held:  # a fork in between has closed its copy
            if not is_kept:
                path.unlink(missing_ok=True)
            _release(fd)


def is_locked(path: Path) -> bool:
    """Whether some process holds it now."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    _held.add(fd)
    try:
        return not _flock(fd, path)
    finally:
        _release(fd)


def _acquire(path: Path, deadline: float) -> int | None:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _held.add(fd)
        try:
            if _flock(fd, path) and os.fstat(fd).st_nlink:  # 0: its last holder removed the file meanwhile
                return fd
        except BaseException:
            _release(fd)
            raise
        _release(fd)
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL_S)


def _release(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_UN)  # closing would leave it to a child that has just been forked
    _held.discard(fd)
    os.close(fd)


def _flock(fd: int, path: Path) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise ShardError(
            f"{path}: this file system has no locks ({error.strerror}); set data.store.scratch to a folder on the "
            "node's own disk"
        ) from error
