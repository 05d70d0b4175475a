"""Tars behind a URL that fsspec opens: ranged requests, with pauses that grow where the server is in trouble."""

from __future__ import annotations

import logging
import os
import time
from random import Random

from retrieval_train.data.store.readahead import Readahead
from retrieval_train.data.store.store import StoreError
from shards.files import below, cause_of, is_final, open_system, readable, shown
from shards.manifest import ShardError

log = logging.getLogger(__name__)

PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # before each further try, longer or shorter by up to a half
BEYOND_THE_END = 416  # what a web server says to a range that begins there
THREADS = 8  # requests at a time of one process
AHEAD_BYTES = 2**26  # kept in the memory of one process
_random = Random()  # our own: nobody's random numbers may depend on a server


def read_range(url: str, at: int, count: int | None) -> bytes:
    """These bytes, or all from `at` on. Raises StoreError that says what the server said, and no secrets, and ShardError
    for a file that ends before."""
    data = ask(url, at, None if count is None else at + count)
    if count is not None and len(data) != count:
        expected = f"{shown(url)}: {count} bytes from byte {at} on were expected, but"
        if len(data) > count:
            raise StoreError(f"{expected} the server gives whole files only")
        raise ShardError(f"{expected} it ends at byte {at + len(data)}; copy the file again")
    return data


def ask(url: str, start: int, end: int | None) -> bytes:
    """What the server gives for this range, after some tries."""
    for pause_s in (*PAUSES_S, None):
        try:
            system, path = open_system(url)
            data: bytes = system.cat_file(path, start=start or None, end=end)
            return data
        except ShardError as error:  # no such protocol, or its package is missing
            raise StoreError(str(error)) from error
        except Exception as error:  # every protocol has errors of its own
            cause = cause_of(error)
            said = readable(cause)
            text = shown(said.strerror or said)
            if pause_s is None or is_final(cause):
                tries = "" if pause_s is not None else f" after {len(PAUSES_S) + 1} tries"
                if getattr(cause, "status", None) == BEYOND_THE_END:
                    raise ShardError(f"{shown(url)}: ends before byte {start}; copy the file again") from error
                raise StoreError(f"{shown(url)}: {text}{tries}; check the location and who may read it") from error
            pause_s *= _random.uniform(0.5, 1.5)  # thousands of readers must not come back all at once
            log.warning("%s: %s, trying again in %.1f s", shown(url), text, pause_s)
            time.sleep(pause_s)
    raise AssertionError("the last try returns or raises")


class RemoteStore:
    """The tars below one URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._forget()

    def __getstate__(self) -> dict[str, object]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.url = state["url"]
        self._forget()

    def read(self, file: str, at: int, count: int) -> bytes:
        """See Store."""
        data = self._mine().take((file, at, count))
        return self._read(file, at, count) if data is None else data

    def ahead(self, file: str, at: int, count: int) -> None:
        """See Store. Kept in the memory of the process that asks, so ask for the samples of a batch, not of an epoch."""
        self._mine().ask((file, at, count))

    def _read(self, file: str, at: int, count: int) -> bytes:
        return read_range(below(self.url, file), at, count)

    def _mine(self) -> Readahead:
        if self._pid != os.getpid():  # a fork has no threads
            self._forget()
        return self._ready

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._ready = Readahead(self._read, threads=THREADS, max_bytes=AHEAD_BYTES)
