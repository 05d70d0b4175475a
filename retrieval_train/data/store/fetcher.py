"""Threads of one process that fetch what was asked for, in that order, each thing once; started when first needed.

A fork has no threads: whoever keeps a Fetcher makes a new one where the process id has changed.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from shards.manifest import ShardError

Key = TypeVar("Key", bound=Hashable)
log = logging.getLogger(__name__)

MOST_WAITING = 256
IDLE_S = 5.0  # between two calls of `rest` by a thread without work


class Fetcher(Generic[Key]):
    """`fetch(key)` for each key that is asked for, by up to `threads` threads; what it raises, it has taken care of."""

    def __init__(self, fetch: Callable[[Key], None], rest: Callable[[], None] = lambda: None, *, threads: int) -> None:
        self._fetch, self._rest, self._most = fetch, rest, threads
        self._waiting: deque[Key] = deque()
        self._running: set[Key] = set()
        self._num_threads = self._num_idle = 0
        self._changed = threading.Condition()

    def ask(self, key: Key) -> bool:
        """Puts it on the list once; whether it is there: not where the list is full or a thread is still at it."""
        with self._changed:
            if key in self._waiting:
                return True
            if key in self._running or len(self._waiting) >= MOST_WAITING:
                return False
            self._waiting.append(key)
            if len(self._waiting) > self._num_idle and self._num_threads < self._most:
                self._start_thread()
            if not self._num_threads:
                self._waiting.clear()
            self._changed.notify()
            return self._num_threads > 0

    def is_near(self, key: Key) -> bool:
        """Whether it is being fetched, or will be at once."""
        with self._changed:
            return key in self._running or (key in self._waiting and len(self._waiting) <= self._num_idle)

    def _start_thread(self) -> None:
        try:  # a daemon: the end of the process waits for no copy, which the next process starts over
            threading.Thread(target=self._work, name="fetch", daemon=True).start()
        except RuntimeError as error:
            log.warning("no thread to read ahead with (%s); raise `ulimit -u`", error)
            self._most = self._num_threads  # what is not fetched ahead is read when it is needed
            return
        self._num_threads += 1
        self._num_idle += 1

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if not self._changed.wait(IDLE_S):
                        break
                key = self._waiting.popleft() if self._waiting else None
                if key is not None:
                    self._running.add(key)
                    self._num_idle -= 1
            if key is None:
                self._rest()
                continue
            try:
                self._fetch(key)
            except ShardError as error:
                log.debug("%s: %s", key, error)  # whoever reads it is told the same
            except Exception:
                log.exception("%s: could not be fetched ahead", key)  # a mistake of ours; reading goes on without
            with self._changed:
                self._running.discard(key)
                self._num_idle += 1
