"""Real ranks for tests: processes with a gloo group between them.

They are forked from one process that has imported what they need, which saves each of them 10 seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

_ranks = multiprocessing.get_context("forkserver")
_ranks.set_forkserver_preload(["tests.preloaded"])


def run_ranks(function: Any, ranks: int, *args: Any, timeout_s: float = 300) -> list[Any]:
    """`function(world, *args)` in `ranks` processes; what each returned. Fails with the ranks' output."""
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        children: list[Any] = []
        for rank in range(ranks):
            env = dict(os.environ) | {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": str(ranks)}
            env |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
            # not a daemon: a rank has data workers of its own
            child = _ranks.Process(target=_rank, args=(Path(folder), rank, env, function, args), daemon=False)
            child.start()
            children.append(child)
        until = time.monotonic() + timeout_s
        try:
            for child in children:
                child.join(max(0.0, until - time.monotonic()))
        finally:
            for child in children:
                child.kill()
                child.join()
        codes = [child.exitcode for child in children]
        logs = [(Path(folder) / f"log.{rank}").read_text(errors="replace")[-2500:] for rank in range(ranks)]
        told = [
            f"--- rank {rank} ended with {code}:\n{log}"
            for rank, (code, log) in enumerate(zip(codes, logs, strict=True))
        ]
        assert not any(codes), "\n".join(told)
        return [pickle.loads((Path(folder) / f"result.{rank}").read_bytes()) for rank in range(ranks)]


def _rank(folder: Path, rank: int, env: dict[str, str], function: Any, args: tuple[Any, ...]) -> None:
    import torch

    from retrieval_train.world import open_world

    log = os.open(folder / f"log.{rank}", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    try:
        with open_world("cpu", timeout_min=2) as world:
            result = function(world, *args)
            (folder / f"result.{rank}").write_bytes(pickle.dumps(result))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)
