"""What all tests rely on."""

from __future__ import annotations

import signal

# A background job of a shell ignores Ctrl-C, and so would every process that a test starts and then interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
