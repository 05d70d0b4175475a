"""torchvision's ImageFolder over files in class folders, with torch's DataLoader."""

from __future__ import annotations

from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from jobs.peers.pillow import build_transform
from jobs.peers.task import Stream, Task


def open_stream(task: Task) -> Stream:
    dataset = ImageFolder(task.files, build_transform(task.image_px))
    loader = DataLoader(
        dataset, task.batch, shuffle=True, drop_last=True, num_workers=task.workers, persistent_workers=True
    )
    while True:  # an epoch
        for image_NCHW, _ in loader:
            yield len(image_NCHW)
