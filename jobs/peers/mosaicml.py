"""mosaicml-streaming: its own MDS format, Pillow and torchvision's transforms, its StreamingDataLoader."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset  # type: ignore[import-not-found]
from streaming.base.util import clean_stale_shared_memory  # type: ignore[import-not-found]

from jobs.peers.pillow import build_transform
from jobs.peers.task import Stream, Task

COLUMNS = {"image": "bytes", "label": "int"}
SHARD_BYTES = 8_000_000


class Images(StreamingDataset):
    """The transform is applied as a sample is read."""

    def __init__(self, folder: str, image_px: int, **options: Any) -> None:
        super().__init__(local=folder, **options)
        self._transform = build_transform(image_px)

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return self._transform(Image.open(io.BytesIO(sample["image"]))), sample["label"]


def prepare(task: Task) -> None:
    """Writes the images as MDS; what a run that crashed left in shared memory would stop this one."""
    clean_stale_shared_memory()
    folder = folder_of(task)
    if (folder / "index.json").exists():
        return
    paths = sorted(path for path in Path(task.files).rglob("*") if path.is_file())
    labels = {name: number for number, name in enumerate(sorted({path.parent.name for path in paths}))}
    with MDSWriter(out=str(folder), columns=COLUMNS, size_limit=SHARD_BYTES) as writer:
        for path in paths:
            writer.write({"image": path.read_bytes(), "label": labels[path.parent.name]})


def open_stream(task: Task) -> Stream:
    dataset = Images(str(folder_of(task)), task.image_px, shuffle=True, shuffle_seed=task.seed, batch_size=task.batch)
    loader = StreamingDataLoader(
        dataset, batch_size=task.batch, drop_last=True, num_workers=task.workers, persistent_workers=True
    )
    while True:  # an epoch
        for image_NCHW, _ in loader:
            yield len(image_NCHW)


def folder_of(task: Task) -> Path:
    return Path(task.scratch) / "mds"
