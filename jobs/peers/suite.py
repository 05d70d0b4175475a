"""The loader of this package, as a training run uses it, on one rank."""

from __future__ import annotations

import contextlib
from pathlib import Path

from jobs.peers.task import Stream, Task


def open_stream(task: Task) -> Stream:
    from retrieval_train.data.config import DataConfig
    from retrieval_train.data.loader import build_loader
    from retrieval_train.world import Alone

    values = {"batch": task.batch, "mixture": task.mixture, **task.data, "workers": task.workers}
    config = DataConfig.model_validate(values)
    root, px = Path(task.shards_root), task.image_px
    loader = build_loader(config, root, Alone(), image_px=px, accumulate=1, seed=task.seed)
    with contextlib.closing(loader.draws(task.first_step, 2**40)) as draws:
        for micro_batches in draws:
            yield sum(len(batch.label_N) for batch in micro_batches)
