"""What all tests rely on."""

from __future__ import annotations

import gc
import signal

# A background job of a shell ignores Ctrl-C, and so would every process that a test starts and then interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Half a million objects of torch and timm stay: to look through them for cycles as often as by default is 5% of the tests.
gc.set_threshold(200_000, 20, 50)
