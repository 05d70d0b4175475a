"""How much memory `shards make` takes for a million images: tiny ones, so that it is their number that counts.

The command runs as always; all its processes are looked at 20 times a second. Linux only.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from shards.bench.outcome import Goal, Outcome
from shards.bench.turns import Watch
from shards.errors import ShardError
from shards.making.output import partial_folder
from shards.pool import usable_cpus
from shards.showing.tables import Table

FOLDER_IMAGES = 1000
MOST_LINKS = 50  # folders that share one file; no file system that we know allows fewer names for a file
LOOK_S = 0.05
MOST_MB = 1000
STAGES = ("listing", "writing", "finishing")


@dataclass(slots=True)
class Stage:
    """What was seen of one stage."""

    seconds: float = 0.0
    total_mb: float = 0.0
    """The largest sum over all processes at one moment; pages that they share count for each."""
    parent_mb: float = 0.0
    worker_mb: float = 0.0
    """Of the largest worker."""


@dataclass(slots=True)
class Seen:
    """All stages."""

    stages: dict[str, Stage] = field(default_factory=lambda: {name: Stage() for name in STAGES})


def bench_memory(scratch: Path, *, count: int, watch: Watch) -> Outcome:
    """One table."""
    if sys.platform != "linux":
        raise ShardError("shards bench memory reads /proc, which only Linux has")
    write_tiny(scratch / "tiny", count)
    workers = usable_cpus()
    seen = run_make(scratch / "tiny", scratch / "set", workers, count, watch)
    rows: list[list[object]] = [
        [name, round(one.seconds, 1), round(one.total_mb), round(one.parent_mb), round(one.worker_mb)]
        for name, one in seen.stages.items()
    ]
    most, seconds = max(one.total_mb for one in seen.stages.values()), sum(one.seconds for one in seen.stages.values())
    what = f"memory of shards make, {count:,} images, {workers} workers"
    return Outcome(
        name="memory",
        notes=(
            f"shards make folder --workers {workers} on {count:,} JPEGs of 16 x 16 pixels in folders of {FOLDER_IMAGES:,}, "
            f"{count / seconds:,.0f} images/s. Resident memory in 10^6 bytes, largest sum of all processes at one moment; "
            "what they share (Python, numpy) counts for each of them.",
        ),
        tables=(Table("memory", ("stage", "seconds", "all together", "parent", "largest worker"), rows),),
        goals=(Goal(what, f"< {MOST_MB} MB", f"{most:.0f} MB", most < MOST_MB),),
        numbers={"images": count, "workers": workers, "seconds": seconds, "peak_mb": most},
    )


def write_tiny(folder: Path, count: int) -> None:
    """So many images under so many names; the files behind them are few."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (16, 16), "orange").save(stream, "JPEG")
    source = folder
    for number in range(count):
        place, at = divmod(number, FOLDER_IMAGES)
        if at == 0:
            (folder / f"class{place:06d}").mkdir(parents=True)
        path = folder / f"class{place:06d}" / f"{at:03d}.jpg"
        if number % (MOST_LINKS * FOLDER_IMAGES) == 0:
            path.write_bytes(stream.getvalue())
            source = path
        else:
            os.link(source, path)


def run_make(images: Path, out: Path, workers: int, count: int, watch: Watch) -> Seen:
    """Runs the command to its end."""
    command = [sys.executable, "-m", "shards", "make", "folder", str(images), "--out", str(out)]
    command += ["--workers", str(workers), "--train-only", "--min-images", "1"]
    seen = Seen()
    with started(command) as process:
        before = time.monotonic()
        while process.poll() is None:
            time.sleep(LOOK_S)
            name = find_stage(partial_folder(out))
            now = time.monotonic()
            look(process.pid, seen.stages[name], now - before)
            before = now
            watch(len(STAGES), STAGES.index(name), 0)
    if process.returncode:
        raise ShardError(f"shards make failed: {process.stderr.read() if process.stderr else ''}")
    return seen


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the block."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def find_stage(folder: Path) -> str:
    """By the files that are there."""
    names = os.listdir(folder) if folder.is_dir() else ["classes.tsv"]
    if "classes.tsv" in names:
        return STAGES[2]
    return STAGES[1] if any(".tar" in name for name in names) else STAGES[0]


def look(pid: int, stage: Stage, seconds: float) -> None:
    """Adds one moment to the stage."""
    parent, *others = (resident_mb(one) for one in family(pid))
    stage.seconds += seconds
    stage.total_mb = max(stage.total_mb, parent + sum(others))
    stage.parent_mb = max(stage.parent_mb, parent)
    stage.worker_mb = max(stage.worker_mb, *others, 0.0)


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    pids = [pid]
    for one in pids:
        try:
            for thread in os.listdir(f"/proc/{one}/task"):
                pids += map(int, Path(f"/proc/{one}/task/{thread}/children").read_text().split())
        except OSError:
            continue  # gone meanwhile
    return pids


def resident_mb(pid: int) -> float:
    """10^6 bytes of memory that the process holds; 0 where it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
