"""A contestant's process: opens its stream when told, and says how many images a second come out of it.

    python -m jobs.peers.process jobs.peers.imagefolder

One JSON object a line in, one out: {"do": "hello"}, {"do": "open", "task": ...}, {"do": "turn", "seconds": 4},
{"do": "close"}. It ends with its input. Runs under any Python that has torch and the contestant's library.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.peers.task import Stream, Task, stay_on


class Contestant:
    """One stream at a time."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._stream: Stream | None = None

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        do = asked["do"]
        if do == "hello":
            missing = imported(self._module, "torch", "torch.utils.data", "torchvision.transforms.v2")
            if not missing:
                importlib.import_module("torch").set_num_threads(1)
            return missing
        if do == "open":
            values = asked["task"]
            return self._open(Task(**{**values, "cores": tuple(values["cores"])}))
        if do == "turn":
            assert self._stream is not None, "turn before open"
            return take_turn(self._stream, asked["seconds"])
        assert do == "close", do
        self._close()
        return {}

    def _open(self, task: Task) -> dict[str, Any]:
        self._close()
        stay_on(task.cores)
        module = importlib.import_module(self._module)
        if hasattr(module, "prepare"):
            module.prepare(task)
        started = time.perf_counter()
        self._stream = module.open_stream(task)
        next(self._stream)
        return {"first_batch_s": time.perf_counter() - started}

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def imported(*modules: str) -> dict[str, Any]:
    """What takes seconds and is no part of opening; says which library is missing, if any is."""
    try:
        for module in modules:
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        return {"missing": error.name}
    return {}


def take_turn(stream: Stream, seconds: float) -> dict[str, float]:
    """Images a second of wall-clock and of CPU time over whole batches, for so long or a little longer."""
    next(stream)  # begun before the turn
    started, cpu_before = time.perf_counter(), family_cpu_s()
    images, elapsed = 0, 0.0
    while not images or elapsed < seconds:
        images += next(stream)
        elapsed = time.perf_counter() - started
    cpu_s = max(family_cpu_s() - cpu_before, 1e-9)
    return {"images": images, "images_per_s": images / elapsed, "images_per_cpu_s": images / cpu_s}


def family_cpu_s() -> float:
    """CPU seconds so far of this process and of all that it started and that still live."""
    pids, ticks = [os.getpid()], 0
    for pid in pids:  # grows while it is read
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                pids += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
    return ticks / os.sysconf("SC_CLK_TCK")


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer what comes in, line by line, until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to the log
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # told to whoever asked, who decides; the log has the traceback
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


def main() -> None:
    contestant = Contestant(sys.argv[1])
    serve(contestant.answer)
    contestant.answer({"do": "close"})


if __name__ == "__main__":
    main()
