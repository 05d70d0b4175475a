"""webdataset with the fastest decoding that fits into its pipeline: simplejpeg at the scale that is just large enough,
the crop resized as uint8 by torch; batches stay uint8, to be normalised on the device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import webdataset as wds

from jobs.peers.bare import crop_and_resize, decode_scaled
from jobs.peers.task import Stream, Task

if TYPE_CHECKING:
    from torch import Tensor

IMAGE = ("jpg", "jpeg", "png", "webp")


def open_stream(task: Task) -> Stream:
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(task.tars, seed=task.seed),
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.shuffle(bufsize=5000, initial=1000),
        partial(prepared, image_px=task.image_px),
        wds.batched(task.batch, collation_fn=stacked, partial=False),
    ).repeat()
    loader = wds.WebLoader(pipeline, batch_size=None, shuffle=False, num_workers=task.workers)
    for image_NCHW, _ in loader:
        yield len(image_NCHW)


def prepared(samples: Iterator[dict[str, Any]], *, image_px: int) -> Iterator[tuple[Tensor, bytes]]:
    for sample in samples:
        image = next(sample[extension] for extension in IMAGE if extension in sample)
        yield crop_and_resize(decode_scaled(image, image_px), image_px), sample["json"]


def stacked(samples: list[tuple[Tensor, bytes]]) -> tuple[Tensor, list[bytes]]:
    import torch

    return torch.stack([image for image, _ in samples]), [meta for _, meta in samples]
