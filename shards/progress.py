"""A bar with images/s, MB/s and the time left, on stderr and only where somebody looks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from shards.maker import Watch


@contextmanager
def progress_bar(label: str) -> Iterator[Watch]:
    """Yields the function that make_set calls after every image."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None, speed="")
        started, images, written = time.monotonic(), 0, 0

        def watch(total: int, num_bytes: int) -> None:
            nonlocal started, images, written
            if images >= total:  # a second pass
                bar.reset(task, speed="")
                started, images, written = time.monotonic(), 0, 0
            images, written = images + 1, written + num_bytes
            seconds = max(time.monotonic() - started, 1e-6)
            speed = f"{images / seconds:,.0f} images/s {written / seconds / 1e6:,.1f} MB/s"
            bar.update(task, total=total, completed=images, speed=speed)

        yield watch
