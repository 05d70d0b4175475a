"""When to stop before the end: a signal, Ctrl-C or the wall-clock budget, agreed by all ranks at a step boundary.

The handler only sets a flag. A collective inside a signal handler deadlocks: the signal may reach one rank in the middle
of another collective. So the ranks agree once a step, and all of them save the same step.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Literal

from retrieval_train.engine.agreement import Agreement

log = logging.getLogger(__name__)

Ending = Literal["finished", "signal", "time", "early stop", "roll back", "not finite"]

# USR2 is submitit's warning before the time limit, TERM is the scheduler's, INT the user's.
# USR1 is left alone: NCCL may catch it.
_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class Stop:
    """One a run; `listening()` installs the handlers for the time of the training loop."""

    def __init__(self, agreement: Agreement, *, max_minutes: float | None = None) -> None:
        self._agreement = agreement
        self._until = time.monotonic() + max_minutes * 60 if max_minutes else None
        self._caught: int | None = None
        agreement.ask("signal", lambda: self._caught is not None)
        agreement.ask("time", self._is_time_up)

    def is_wanted(self) -> bool:
        """Whether this rank wants to stop; the others may not know yet."""
        return self._caught is not None or self._is_time_up()

    def _is_time_up(self) -> bool:
        return self._until is not None and time.monotonic() > self._until

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        before = {number: signal.signal(number, self._catch) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self) -> Ending | None:
        """Why all ranks stop now, or None."""
        if self._agreement.says("signal"):
            return "signal"
        return "time" if self._agreement.says("time") else None

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self._caught == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt  # Ctrl-C twice: now
        self._caught = number
        log.warning("caught %s: ending after this step", signal.Signals(number).name)
