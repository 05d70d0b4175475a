"""No loader: the decoding and augmentation of this package over bytes in memory. What its loader adds is the rest."""

from __future__ import annotations

from itertools import count, cycle

from jobs.peers.bare import read_all
from jobs.peers.task import Stream, Task


def open_stream(task: Task) -> Stream:
    from retrieval_train.data.config import DataConfig
    from retrieval_train.data.decode import decode

    augment = DataConfig.model_validate({"mixture": task.mixture, **task.data}).augment
    px = task.image_px
    for image, seed in zip(cycle(read_all(task)), count(task.seed)):
        image_CHW = decode(image, key="", min_side=augment.min_side_for(px, seed=seed))
        augment.apply(image_CHW, px, seed=seed)
        yield 1
