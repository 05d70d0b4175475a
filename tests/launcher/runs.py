"""Run folders as jobs leave them, without a job."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.ticket import LocalTicket, write
from retrieval_train.rundir import RunDir, write_json

DAY_S = 86400.0


def make_run(root: Path, name: str, state: str, *, error: str = "", days: float = 0, **plan: Any) -> RunDir:
    """`days`: since its state was written. `plan`: more for plan.json."""
    run = RunDir(root / name)
    run.set_state(state)  # type: ignore[arg-type]
    write_json(run.plan, {"job": "train", **plan})
    write_json(run.progress, {"stage": "train", "done": 3, "total": 10, "unit": "steps", "note": "[loss] 0.5"})
    if error:
        run.error.write_text(error)
    make_old(run.path / "state", days)
    return run


def make_old(path: Path, days: float) -> None:
    then = time.time() - days * DAY_S
    os.utime(path, (then, then))


@contextlib.contextmanager
def worked_on(*runs: RunDir) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A process for each, which its ticket names, until the block ends."""
    children = [subprocess.Popen(["/bin/sleep", "60"], start_new_session=True) for _ in runs]
    try:
        for run, child in zip(runs, children, strict=True):
            run.scheduler.mkdir(parents=True, exist_ok=True)
            write(run, LocalTicket.of(child.pid))
        yield children
    finally:
        for child in children:
            child.kill()
            child.wait()


def give_steps(run: RunDir, *, first: int, last: int, step_s: float, until: float) -> None:
    """Lines of metrics.jsonl, the newest written at `until`."""
    with run.metrics.open("w") as file:
        for step in range(first, last + 1):
            at = until - (last - step) * step_s
            file.write(f'{{"step": {step}, "loss": {5 / step}, "images_per_s": 200.4, "time": {at}}}\n')


def files_below(root: Path) -> dict[str, int]:
    """Every path below, links not followed, with its size (folders: -1)."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            is_folder = path.is_dir() and not path.is_symlink()
            found[str(path.relative_to(root))] = -1 if is_folder else path.lstat().st_size
    return found
