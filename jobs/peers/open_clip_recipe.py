"""Training data as open_clip streams it: webdataset, Pillow, torchvision's transforms, batches made in the worker.

Written from the recipe: shard list, split by worker, tar to samples, a shuffle buffer of 5,000 that begins at 1,000,
decode to Pillow RGB, transform, batch. Its text becomes the sample's label here.
"""

from __future__ import annotations

from typing import Any

import webdataset as wds

from jobs.peers.pillow import build_transform
from jobs.peers.task import Stream, Task


def open_stream(task: Task) -> Stream:
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(task.tars, seed=task.seed),
        wds.split_by_worker,
        wds.tarfile_to_samples(handler=wds.warn_and_continue),
        wds.shuffle(bufsize=5000, initial=1000),
        wds.decode("pilrgb", handler=wds.warn_and_continue),
        wds.rename(image="jpg;png;jpeg;webp", label="json"),
        wds.map_dict(image=build_transform(task.image_px), label=read_label),
        wds.to_tuple("image", "label"),
        wds.batched(task.batch, partial=False),
    ).repeat()
    loader = wds.WebLoader(pipeline, batch_size=None, shuffle=False, num_workers=task.workers)
    for image_NCHW, _ in loader:
        yield len(image_NCHW)


def read_label(meta: dict[str, Any]) -> str:
    return str(meta["label"])
