"""A run is a folder. This is the only file that knows the names inside it.

Every file but logs and metrics.jsonl, which grow, is written aside and renamed: a reader never sees half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

State = Literal["planned", "queued", "running", "preempted", "failed", "done"]


@dataclass(frozen=True)
class RunDir:
    """The layout of one run's folder; `path` need not exist yet."""

    path: Path

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def code(self) -> Path:
        return self.path / "code"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def log(self, rank: int) -> Path:
        return self.logs / f"{rank}.log"

    @property
    def scheduler(self) -> Path:
        """What the scheduler and submitit write: stdout and stderr of each task, the pickled `Launch`."""
        return self.path / "logs" / "scheduler"

    @property
    def ticket(self) -> Path:
        """Which process or SLURM job the last submit made of the run."""
        return self.scheduler / "ticket.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def sets(self) -> Path:
        """The shard sets with which the run began: name -> digest."""
        return self.path / "sets.json"

    @property
    def bad(self) -> Path:
        """Samples that could not be read, a file a rank."""
        return self.path / "bad"

    @property
    def ledger(self) -> Path:
        """Which sample was in which row of which step, a file a rank; on demand."""
        return self.path / "ledger"

    @property
    def faults(self) -> Path:
        """Steps that were left out, as JSON lines: step, why, and where it was found."""
        return self.path / "faults" / "skipped.jsonl"

    @property
    def roll_backs(self) -> Path:
        """How often the run went back to a checkpoint, as JSON lines."""
        return self.path / "roll_backs.jsonl"

    @property
    def preflight(self) -> Path:
        """What the last start's nodes looked like before it began."""
        return self.path / "preflight.json"

    @property
    def stacks(self) -> Path:
        """Where each rank was when the run hung."""
        return self.path / "logs" / "stacks"

    @property
    def tracker_id(self) -> Path:
        """The id of the run's W&B run, from its submit on: a run killed before its first checkpoint keeps it."""
        return self.path / "tracker_id"

    @property
    def progress(self) -> Path:
        """One JSON object, rewritten by rank 0: what the waiting `submit` draws its bar from."""
        return self.path / "progress.json"

    @property
    def error(self) -> Path:
        """Why the run failed, in the words for its user."""
        return self.path / "error.txt"

    @property
    def failures(self) -> Path:
        """The same for the launcher, a file a rank: kind, host and nodes at fault."""
        return self.path / "failures"

    @property
    def attempts(self) -> Path:
        """Each start of the run and how it ended, as JSON lines."""
        return self.path / "attempts.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    @property
    def origin(self) -> Path:
        """Another run's checkpoint that was brought from a URL, from which this run went on."""
        return self.path / "origin"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def embeddings(self) -> Path:
        return self.path / "embeddings"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def page(self) -> Path:
        return self.path / "report.html"

    @property
    def text(self) -> Path:
        """The report for a terminal."""
        return self.path / "report.txt"

    @property
    def state(self) -> State | None:
        """One word, or None for a folder that is no run."""
        try:
            word = (self.path / "state").read_text().strip()
        except FileNotFoundError:
            return None
        assert word in get_args(State), f"{self.path / 'state'} holds {word!r}"
        return word  # type: ignore[return-value]

    def set_state(self, state: State, *, durable: bool = True) -> None:
        write_text(self.path / "state", state + "\n", durable=durable)

    def latest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint: what `latest` names or, when that is gone, the newest folder."""
        with contextlib.suppress(FileNotFoundError):
            named = self.checkpoints / (self.checkpoints / "latest").read_text().strip()
            if (named / "state.json").is_file():
                return named
        whole = sorted(folder for folder in self.checkpoints.glob("step-*") if (folder / "state.json").is_file())
        return whole[-1] if whole else None

    def best_checkpoint(self) -> Path | None:
        """The one that was judged best, where training is judged on the way."""
        with contextlib.suppress(FileNotFoundError):
            return self.checkpoints / (self.checkpoints / "best").read_text().strip()
        return None

    def set_best(self, folder: Path) -> None:
        write_text(self.checkpoints / "best", folder.name + "\n")

    def set_latest(self, folder: Path) -> None:
        write_text(self.checkpoints / "latest", folder.name + "\n")


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace `path` by a file that holds `text`, in one step; `durable`: on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        raise


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", durable=durable)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_names(path: Path, names: Iterable[str]) -> None:
    """One name a line; a line break inside a name is escaped."""
    lines = (name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r") for name in names)
    write_text(path, "".join(line + "\n" for line in lines))


def read_names(path: Path) -> list[str]:
    plain = {"n": "\n", "r": "\r", "\\": "\\"}
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [re.sub(r"\\(.)", lambda found: plain[found[1]], line) for line in lines]


def sampled_digest(path: Path) -> str:
    """sha256 of a file's size and of 256 blocks spread over it: tells two large files apart in milliseconds."""
    size, block = path.stat().st_size, 1 << 16
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for at in sorted({size * part // 256 for part in range(256)} | {max(size - block, 0)}):
            file.seek(at)
            digest.update(file.read(block))
    return digest.hexdigest()


@contextlib.contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place when the block ends well, and vanishes when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        os.chmod(aside, 0o755)
        yield aside
        put_in_place(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def put_in_place(aside: Path, folder: Path) -> None:
    """Rename `aside` to `folder`; what was there before is removed only after that."""
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, old)
    os.rename(aside, folder)
    shutil.rmtree(old, ignore_errors=True)
