"""What a contestant is asked to stream. Standard library only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CROP_SCALE = (0.9, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
"""Every contestant crops like the open_clip recipe; nothing else is random."""

Stream = Generator[int, None, None]
"""The number of images of each batch as it is ready, without end; closing it ends its workers."""


@dataclass(frozen=True)
class Task:
    """All paths are absolute."""

    shards_root: str
    """Folder of shard sets."""
    mixture: dict[str, float]
    """Sets to read; only our own loader reads several."""
    files: str = ""
    """The same images as files in class folders; JPEGs and others."""
    scratch: str = ""
    """An empty folder, for a format of one's own."""
    image_px: int = 224
    batch: int = 32
    workers: int = 1
    cores: tuple[int, ...] = ()
    """The CPUs on which all its processes run; empty leaves them alone."""
    first_step: int = 0
    """Only our own loader starts in the middle."""
    data: dict[str, Any] = field(default_factory=dict)
    """More keys of our own loader's DataConfig."""
    seed: int = 0

    @property
    def tars(self) -> list[str]:
        """The training shards of the sets."""
        return sorted(str(path) for name in self.mixture for path in Path(self.shards_root, name).glob("train-*.tar"))


def stay_on(cores: tuple[int, ...]) -> None:
    """Keeps this process, its threads and whatever it starts on these CPUs."""
    for thread in os.listdir("/proc/self/task") if cores else ():
        with contextlib.suppress(ProcessLookupError):  # ended meanwhile
            os.sched_setaffinity(int(thread), cores)
