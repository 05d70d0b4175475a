"""Several processes at work, one piece of plain data after the other, in no particular order.

The caller counts what they do while they do it. Workers never outlive the caller: they leave when it is gone, however
it went, and stop within an image when it is interrupted.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext
from typing import Any, TypeVar

from shards.errors import ShardError

W = TypeVar("W")
R = TypeVar("R")
POLL_S = 0.1
PR_SET_PDEATHSIG = 1
Count = Callable[[int], None]
"""Called by the work after every image with its bytes."""
Watch = Callable[[int, int], None]
"""Called by `run` every now and then: images and bytes so far."""


class Cancelled(Exception):
    """The caller is gone or wants no more."""


def usable_cpus() -> int:
    """Those that this process may use: a cluster job sees its own, not the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(do: Callable[[W, Count], R], pieces: Sequence[W], *, workers: int, watch: Watch) -> Generator[R, None, None]:
    """Yields what `do(piece, count)` gives, as it becomes ready; with one worker in this process and in order.

    An exception of a piece comes up here; the other workers then stop. Close the iterator to stop them early.
    """
    if workers <= 1 or len(pieces) <= 1:
        images = written = 0

        def count(num_bytes: int) -> None:
            nonlocal images, written
            images, written = images + 1, written + num_bytes
            watch(images, written)

        for piece in pieces:
            yield do(piece, count)
        return
    yield from run_in_processes(do, pieces, workers=min(workers, len(pieces)), watch=watch)


def run_in_processes(do: Callable[[W, Count], R], pieces: Sequence[W], *, workers: int, watch: Watch) -> Iterator[R]:
    """See `run`."""
    context: SpawnContext = multiprocessing.get_context("spawn")  # a fork would copy threads' locks in whatever state
    counts = context.Array("q", 2)
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(counts, stop, os.getpid()))
    waiting: set[Future[R]] = set()
    rest = iter(pieces)
    try:
        while True:
            while len(waiting) <= workers and (piece := next(rest, None)) is not None:
                waiting.add(pool.submit(call, do, piece))
            if not waiting:
                return
            ready, waiting = wait(waiting, POLL_S, FIRST_COMPLETED)
            watch(counts[0], counts[1])
            for future in ready:
                yield future.result()
    except BrokenProcessPool as error:
        raise ShardError(
            "a worker process was killed, perhaps for want of memory; repeat the command to go on, with fewer --workers"
        ) from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


class Worker:
    """What a worker process knows of its caller."""

    counts: Any = None
    stop: Any = None
    caller = 0


def start_worker(counts: Any, stop: Any, caller: int) -> None:
    """Ctrl-C reaches all processes of a terminal: only the caller acts on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(
            PR_SET_PDEATHSIG, signal.SIGKILL
        )  # an idle worker would wait for a killed caller forever
    Worker.counts, Worker.stop, Worker.caller = counts, stop, caller


def call(do: Callable[[W, Count], R], piece: W) -> R:
    """One piece, in a worker."""
    return do(piece, count_one)


def count_one(num_bytes: int) -> None:
    """Adds to the shared counts; leaves where nobody is interested any more."""
    if Worker.stop.is_set() or os.getppid() != Worker.caller:
        raise Cancelled
    with Worker.counts.get_lock():
        Worker.counts[0] += 1
        Worker.counts[1] += num_bytes
