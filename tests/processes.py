"""Real ranks for tests: fresh processes with a gloo group between them."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

_CHILD = """
import importlib, pickle, sys, torch
torch.set_num_threads(1)
from retrieval_train.world import open_world
module, function, args, out = pickle.load(open(sys.argv[1], "rb"))
with open_world("cpu", timeout_min=2) as world:
    result = getattr(importlib.import_module(module), function)(world, *args)
    pickle.dump(result, open(f"{out}.{world.rank}", "wb"))
"""


def run_ranks(function: Any, ranks: int, *args: Any, timeout_s: float = 300) -> list[Any]:
    """`function(world, *args)` in `ranks` processes; what each returned. Fails with the ranks' output."""
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task"
        task.write_bytes(pickle.dumps((function.__module__, function.__qualname__, args, str(task))))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        children = []
        for rank in range(ranks):
            env = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
            env |= {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
                "LOCAL_WORLD_SIZE": str(ranks),
            }
            log = (Path(folder) / f"log.{rank}").open("w+")
            child = subprocess.Popen(
                [sys.executable, "-c", _CHILD, str(task)], env=env, cwd=ROOT, stdout=log, stderr=log
            )
            children.append((child, log))
        try:
            codes = [child.wait(timeout_s) for child, _ in children]
        finally:
            for child, _ in children:
                child.kill()
        told = []
        for rank, code in enumerate(codes):
            log = children[rank][1]
            log.seek(0)
            told.append(f"--- rank {rank} ended with {code}:\n{log.read()[-2500:]}")
        assert not any(codes), "\n".join(told)
        return [pickle.loads((Path(folder) / f"task.{rank}").read_bytes()) for rank in range(ranks)]
