"""A bar with images/s, MB/s and the time left, on stderr and only where somebody looks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from shards.making.maker import Watch


@contextmanager
def progress_bar(label: str, *, unit: str = "images") -> Iterator[Watch]:
    """Yields the function to call with images to do, images done and bytes done."""
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
        task = bar.add_task(f"{label}: listing", total=None, speed="")
        started, before = 0.0, 0

        def watch(total: int, images: int, num_bytes: int) -> None:
            nonlocal started, before
            if not started:  # what an earlier run did is no speed of ours
                started, before = time.monotonic(), images
            seconds = max(time.monotonic() - started, 1e-6)
            speed = f"{(images - before) / seconds:,.0f} {unit}/s"
            speed += f" {num_bytes / seconds / 1e6:,.1f} MB/s" if num_bytes else ""
            bar.update(task, description=label, total=total, completed=images, speed=speed)

        yield watch
