"""A contestant's process, one a rank: builds its step when told, measures its memory and takes turns.

    python -m jobs.peers.head.process jobs.peers.head.partial_fc

One JSON object a line in, one out: {"do": "hello"}, {"do": "open", "task": ...}, {"do": "turn", "steps": 2},
{"do": "close"}. It ends with its input. Runs under any Python that has torch and the contestant's library; ranks find each
other by torch.distributed's variables.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
import time
from pathlib import Path
from typing import Any

from jobs.peers.head.task import Step, Task
from jobs.peers.process import imported, serve
from jobs.peers.task import stay_on

TINY = 64
"""Classes of the step that loads and starts whatever a step needs."""


class Contestant:
    """One step at a time."""

    def __init__(self, module: str, ranks: contextlib.ExitStack) -> None:
        self._module, self._ranks = module, ranks
        self._step: Step | None = None
        self._world: Any = None

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        do = asked["do"]
        if do == "hello":
            return imported(self._module, "torch")
        if do == "open":
            values = asked["task"]
            return self._open(Task(**{**values, "cores": tuple(values["cores"])}))
        if do == "turn":
            assert self._step is not None, "turn before open"
            return take_turn(self._step, asked["steps"])
        assert do == "close", do
        self._step = None
        return {}

    def _open(self, task: Task) -> dict[str, Any]:
        """Megabytes of the steps' high-water mark: over what the process had before, and over what stays between steps."""
        import torch

        self._step = None
        stay_on(task.cores)
        torch.set_num_threads(task.threads)
        if self._world is None:
            self._world = self._ranks.enter_context(_ranks(task.ranks))
        build = importlib.import_module(self._module).build
        build(dataclasses.replace(task, classes=TINY * task.ranks), self._world)()
        before = resident("VmRSS")
        step = self._step = build(task, self._world)
        losses = [step()]  # makes the optimizer's moments
        stays = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        losses += [step(), step()]
        peak = resident("VmHWM")
        return {"memory_mb": (peak - before) / 1e6, "step_mb": (peak - stays) / 1e6, "losses": losses}


@contextlib.contextmanager
def _ranks(count: int) -> Any:
    from retrieval_train.world import Alone, open_world

    if count == 1:
        yield Alone()
        return
    with open_world("cpu") as world:
        yield world


def take_turn(step: Step, steps: int) -> dict[str, float]:
    """Seconds a step of wall-clock and of this process's CPU time."""
    step()  # what the pause has cooled down
    started, cpu_before = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    elapsed, cpu_s = time.perf_counter() - started, time.process_time() - cpu_before
    return {"step_s": elapsed / steps, "cpu_s": cpu_s / steps}


def resident(field: str) -> int:
    """Bytes of this process that are in memory: VmRSS now, VmHWM the most there were."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main() -> None:
    with contextlib.ExitStack() as ranks:
        serve(Contestant(sys.argv[1], ranks).answer)


if __name__ == "__main__":
    main()
