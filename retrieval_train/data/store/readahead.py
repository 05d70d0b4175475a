"""Byte ranges that one process asked for before it needs them: many requests at a time, since each takes its time to answer.

Kept in memory until they are read or others take their room. A range that failed is forgotten: who needs it asks again, and
is told why.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from retrieval_train.data.store.fetcher import Fetcher

Range = tuple[str, int, int]
"""File, first byte, number of bytes."""


class Readahead:
    """`read(file, at, count)` for ranges that were asked for, by up to `threads` threads, in `max_bytes` of memory."""

    def __init__(self, read: Callable[[str, int, int], bytes], *, threads: int, max_bytes: int) -> None:
        self._read, self._max_bytes = read, max_bytes
        self._ranges: dict[Range, bytes | None] = {}  # None: on its way; the oldest first
        self._num_bytes = 0
        self._changed = threading.Condition()
        self._fetcher: Fetcher[Range] = Fetcher(self._fetch, threads=threads)

    def ask(self, wanted: Range) -> None:
        """Has it fetched, unless it is too large or there is no room beside what is on its way."""
        with self._changed:
            if self._covering(wanted) or not self._make_room(wanted[2]):
                return
            self._ranges[wanted] = None
            self._num_bytes += wanted[2]
        if not self._fetcher.ask(wanted):
            self._forget(wanted)

    def take(self, wanted: Range) -> bytes | None:
        """Its bytes, after waiting for them; None where nobody asked for them or the request failed."""
        with self._changed:
            while (found := self._covering(wanted)) is not None:
                data = self._ranges[found]
                if data is None:
                    self._changed.wait()
                    continue
                if found == wanted:  # a sample, which is needed once
                    self._drop(found)
                first = wanted[1] - found[1]
                return data[first : first + wanted[2]]
        return None

    def _fetch(self, wanted: Range) -> None:
        try:
            data = self._read(*wanted)
        except BaseException:
            self._forget(wanted)
            raise
        with self._changed:
            self._ranges[wanted] = data
            self._changed.notify_all()

    def _covering(self, wanted: Range) -> Range | None:
        file, at, count = wanted
        if wanted in self._ranges:
            return wanted
        return next((r for r in self._ranges if r[0] == file and r[1] <= at and at + count <= r[1] + r[2]), None)

    def _make_room(self, num_bytes: int) -> bool:
        for old in [old for old, data in self._ranges.items() if data is not None]:
            if self._num_bytes + num_bytes <= self._max_bytes:
                break
            self._drop(old)
        return self._num_bytes + num_bytes <= self._max_bytes

    def _drop(self, old: Range) -> None:
        del self._ranges[old]
        self._num_bytes -= old[2]

    def _forget(self, failed: Range) -> None:
        with self._changed:
            self._drop(failed)
            self._changed.notify_all()
