"""A file that lines are appended to, on a disk that may be full for a while: they wait in memory, and none is lost or torn.

A few hundred bytes a step: what waits is small beside a batch.
"""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)


class Lines:
    """Every line is on its way to the disk when `write` returns: a killed process keeps what it reported.

    The file is opened for each: after a roll-back another one lies under its name.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._waiting = path, b""

    def write(self, text: str) -> None:
        had_room, self._waiting = not self._waiting, self._waiting + text.encode()
        try:
            self._flush()
        except OSError as error:
            if had_room:
                log.warning("%s cannot be written: %s; its lines wait in memory until there is room", self._path, error)

    def close(self) -> None:
        """Raises OSError when there is no room for the lines that wait."""
        self._flush()

    def _flush(self) -> None:
        with self._path.open("ab", buffering=0) as file:
            while self._waiting:
                self._waiting = self._waiting[file.write(self._waiting) or 0 :]
