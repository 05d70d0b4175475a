"""Several processes at work, one piece of plain data after the other, in no particular order.

Caller and workers share no lock, so either side may be killed at any moment without the other waiting for it: each
worker has a pipe and two numbers of its own, and a pipe that ends says that the other side is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from shards.errors import ShardError

W = TypeVar("W")
R = TypeVar("R")
POLL_S, GRACE_S = 0.1, 10.0
Count = Callable[[int], None]
"""Called by the work after every image with its bytes."""
Watch = Callable[[int, int], None]
"""Called by `run` every now and then: images and bytes so far."""


class Cancelled(Exception):
    """The caller wants no more, or is gone."""


def usable_cpus() -> int:
    """Those that this process may use: a cluster job sees its own, not the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(do: Callable[[W, Count], R], pieces: Sequence[W], *, workers: int, watch: Watch) -> Generator[R, None, None]:
    """Yields what `do(piece, count)` gives, as it becomes ready; with one worker in this process and in order.

    An exception of a piece comes up here; the other workers then stop within an image. Close the generator to stop them.
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
    with crew_of(do, min(workers, len(pieces))) as crew:
        yield from share_out(crew, iter(pieces), watch)


@dataclass(frozen=True)
class Crew:
    """The workers' ends of things."""

    processes: list[SpawnProcess]
    pipes: list[Connection]
    counts: Any
    """Shared, without a lock: images and bytes of each worker, then whether to stop."""


@contextmanager
def crew_of(do: Callable[[W, Count], R], size: int) -> Iterator[Crew]:
    """Processes that wait for pieces; gone at the end of the block."""
    context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks in whatever state
    crew = Crew([], [], context.RawArray("q", 2 * size + 1))
    try:
        resource_tracker.ensure_running()  # its own start would unblock what we block next
        # Ctrl-C reaches every process of a terminal and only the caller acts on it: workers are born with it blocked
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for number in range(size):
                ours, theirs = context.Pipe()
                process = context.Process(target=work, args=(do, theirs, crew.counts, number, os.getpid()), daemon=True)
                process.start()
                theirs.close()
                crew.processes.append(process)
                crew.pipes.append(ours)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield crew
    finally:
        crew.counts[-1] = 1
        for pipe in crew.pipes:
            pipe.close()
        for process in crew.processes:
            process.join(GRACE_S)
            process.kill()
            process.join()


def share_out(crew: Crew, pieces: Iterator[W], watch: Watch) -> Iterator[Any]:
    """Gives each worker a piece at a time."""
    busy = [pipe for pipe in crew.pipes if give_next(pipe, pieces)]
    while busy:
        ready = wait(busy, POLL_S)
        watch(sum(crew.counts[0:-1:2]), sum(crew.counts[1:-1:2]))
        for pipe in busy[:]:
            if pipe in ready:
                result = take(pipe)
                if not give_next(pipe, pieces):
                    busy.remove(pipe)
                yield result


def give_next(pipe: Connection, pieces: Iterator[W]) -> bool:
    """Whether there was one."""
    for piece in pieces:
        with gone_means_killed():
            pipe.send(piece)
        return True
    return False


def take(pipe: Connection) -> Any:
    """The result of a piece; its exception comes up."""
    with gone_means_killed():
        is_right, result = pipe.recv()
    if not is_right:
        raise result
    return result


@contextmanager
def gone_means_killed() -> Iterator[None]:
    """A pipe that ends in the middle of the work."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise ShardError(
            "a worker process was killed, perhaps for want of memory; repeat the command, with fewer --workers"
        ) from error


def work(do: Callable[[W, Count], R], pipe: Connection, counts: Any, number: int, caller: int) -> None:
    """What a worker does until there is nothing more to do."""

    def count(num_bytes: int) -> None:
        if counts[-1] or os.getppid() != caller:
            raise Cancelled
        counts[2 * number] += 1
        counts[2 * number + 1] += num_bytes

    try:
        while True:
            piece = pipe.recv()
            try:
                answer = (True, do(piece, count))
            except Cancelled:
                return
            except Exception as error:
                answer = (False, sendable(error))  # type: ignore[assignment]
            pipe.send(answer)
    except (EOFError, ConnectionError):
        return  # nobody is there any more


def sendable(error: Exception) -> Exception:
    """The error with its traceback as a note, for the caller sees no frames of ours; its words where it cannot travel.

    An exception with an __init__ of its own can often be pickled but not be made again.
    """
    said = "".join(traceback.format_exception_only(error)).strip()
    frames = "".join(traceback.format_exception(error))
    try:
        error.add_note(frames)
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(said)
        error.add_note(frames)
    return error
