"""Sends checkpoints to a mirror from a thread, while the training goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from retrieval_train.engine.mirror import Mirror, MirrorError

log = logging.getLogger(__name__)

_SLICE_S = 1.0  # between two beats while waiting


class Uploads:
    """Sends checkpoints from a thread, one at a time; of those that wait, only the newest and the best are sent."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._waiting: list[Path] = []
        self._sending: Path | None = None
        self._failed: str | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        # a daemon: a server that hangs must not keep a process that wants to end
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def submit(self, folder: Path) -> None:
        """Have a sealed checkpoint sent; one that still waits gives way to it unless it is the best. Never blocks."""
        with self._changed:
            assert not self._is_closed, f"{folder} was submitted after close"
            best = self._mirror.best()
            self._waiting = [*(waiting for waiting in self._waiting if waiting == best != folder), folder]
            self._changed.notify_all()

    def holds(self) -> set[Path]:
        """The folders that must not be removed now. Ask from where `submit` is called: between those it only shrinks."""
        with self._changed:
            return {*self._waiting, *([self._sending] if self._sending else [])}

    def failed(self) -> str | None:
        """Why the last upload failed, or None when it did not."""
        with self._changed:
            return self._failed

    def close(self, wait_s: float, beat: Callable[[], None] = lambda: None) -> None:
        """No more to come: wait for what is on its way, up to `wait_s`; `beat` is told now and then that this goes on."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        until = time.monotonic() + wait_s
        while self._thread.is_alive() and (left_s := until - time.monotonic()) > 0:
            self._thread.join(min(left_s, _SLICE_S))
            beat()
        if left := sorted(folder.name for folder in self.holds()):
            log.warning(
                "%s: not at the mirror after %.0f s, which then has an older checkpoint", ", ".join(left), wait_s
            )

    def _work(self) -> None:
        while (folder := self._next()) is not None:
            try:
                self._mirror.put(folder)
                failed = None
            except Exception as error:  # told; a mirror in trouble must not end a run
                failed = str(error) if isinstance(error, MirrorError) else f"{type(error).__name__}: {error}"
            if failed and not self._failed:
                log.warning("%s. The run goes on, and sends its next checkpoint when it has one", failed)
            elif self._failed and not failed:
                log.info("%s is at the mirror: it works again", folder.name)
            with self._changed:
                self._sending, self._failed = None, failed

    def _next(self) -> Path | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._is_closed)
            self._sending = self._waiting.pop(0) if self._waiting else None
            return self._sending
