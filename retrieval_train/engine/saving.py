"""When checkpoints are written, and which stay. Writing happens beside the training: a step waits only for the copy.

    snapshot    all ranks, between two steps: tensors whole, copied to the CPU
    write       a thread of each rank, files into `.step-N`, no collective
    settle      all ranks, at the first step boundary after the last thread is done: sums, `state.json`, rename, `latest`

A checkpoint that cannot be written costs a warning: the one before stays, the run goes on.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from retrieval_train.config import Section, place
from retrieval_train.engine.engine import Engine, Report
from retrieval_train.rundir import RunDir, put_in_place

if TYPE_CHECKING:
    from retrieval_train.engine.agreement import Agreement
    from retrieval_train.engine.snapshot import Snapshot
    from retrieval_train.world import World

log = logging.getLogger(__name__)


class CheckpointConfig(Section):
    """How often the training state is saved, and how many are kept."""

    every_steps: int = Field(default=500, ge=1, json_schema_extra=place())
    """Steps between two checkpoints; the last step always has one."""
    every_minutes: float | None = Field(default=None, gt=0, json_schema_extra=place())
    """Minutes after which there is one more, whatever the step."""
    keep: int = Field(default=2, ge=1, json_schema_extra=place())
    """How many of the newest stay."""
    keep_every: int | None = Field(default=None, ge=1, json_schema_extra=place())
    """Those of every n-th step stay for good; null keeps none for good. The best of `evaluate` always stays."""
    mirror: str | None = Field(default=None, json_schema_extra=place())
    """A URL (s3://bucket/runs, fsspec) or another folder to which every checkpoint is copied, and from which a run without
    one goes on: for machines without a lasting disk."""


class NotSaved(ValueError):
    """The state that a run must not lose could not be written."""


@dataclass
class Writing:
    """A checkpoint on its way to the disk."""

    folder: Path
    snapshot: Snapshot
    thread: threading.Thread = field(init=False)
    sums: dict[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def aside(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}")

    def start(self) -> None:
        self.thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)
        self.thread.start()

    def _write(self) -> None:
        try:
            self.sums = self.snapshot.write(self.aside)
        except Exception as error:  # of any kind: told at the next step boundary, on all ranks
            self.error = f"{type(error).__name__}: {error}"


class Checkpoints:
    """Methods are collective."""

    def __init__(
        self,
        engine: Engine,
        run: RunDir,
        world: World,
        config: CheckpointConfig,
        agreement: Agreement,
        *,
        extra: Callable[[], dict[str, Any]],
        sealed: Callable[[Path], None] = lambda folder: None,
        held: Callable[[], set[Path]] = set,
    ) -> None:
        """`extra` is saved along; `sealed` is told, on rank 0, each folder that is whole; what is `held` is not removed."""
        self._engine, self._run, self._world, self._config = engine, run, world, config
        self._agreement, self._extra, self._sealed, self._held = agreement, extra, sealed, held
        self._writing: Writing | None = None
        self._saved = world.from_first(run.latest_checkpoint())
        self._begun_at, self._is_due = time.monotonic(), False
        self._problem = ""
        self.num_failed, self.stall_s = 0, 0.0
        """How often one could not be written, and how long the last one held the step up."""
        agreement.ask("checkpoint still writing", self._is_writing)
        agreement.ask("checkpoint due by the clock", self._is_due_by_clock)

    def after(self, report: Report) -> None:
        if self._writing is not None and not self._agreement.says("checkpoint still writing"):
            self._settle()
        by_clock = self._agreement.says("checkpoint due by the clock")
        is_fault = report.skipped in ("loss", "gradient")  # what led to it may be in the weights already
        self._is_due = self._is_due or by_clock or report.step % self._config.every_steps == 0
        if self._is_due and not is_fault:
            self._is_due = False
            self.begin()

    def went_back_to(self, folder: Path) -> None:
        """The engine has loaded that one: what was saved after it is of a future that will be another."""
        self._saved, self._is_due = folder, False

    def begin(self) -> None:
        """Start to write this step's, unless it is saved or on its way."""
        folder = self._run.checkpoint(self._engine.step)
        if self._saved == folder or (self._writing and self._writing.folder == folder):
            return
        self.finish()
        began = self._begun_at = time.monotonic()  # also of one that fails: the next is as far away
        snapshot = self._engine.snapshot(self._extra())
        writing = Writing(folder, snapshot)
        if problem := self._on_first(lambda: self._make_room(writing)):
            self._give_up(writing, problem)
            return
        writing.start()
        self._writing, self.stall_s = writing, time.monotonic() - began

    def finish(self) -> None:
        """Wait until the one on its way is whole, or given up."""
        if self._writing is not None:
            self._settle()

    def save(self) -> None:
        """Save this step now. Raises NotSaved on all ranks when that fails."""
        self.begin()
        self.finish()
        if self._saved != self._run.checkpoint(self._engine.step):
            kept = f"{self._saved} is whole" if self._saved else "there is no earlier one"
            raise NotSaved(
                f"step {self._engine.step} could not be saved ({self._problem}); {kept}. Make room, then repeat the command"
            )

    def _settle(self) -> None:
        """When all ranks' threads are done: seal the folder, or give it up. No barrier but the two exchanges of words."""
        writing, self._writing = self._writing, None
        assert writing is not None, "called when one is on its way"
        writing.thread.join()
        of_ranks = self._world.every((writing.sums, writing.error))
        problem = next((f"rank {rank}: {error}" for rank, (_, error) in enumerate(of_ranks) if error), "")
        sums = {name: digest for sums, _ in of_ranks for name, digest in sums.items()}
        if problem := problem or self._on_first(lambda: self._seal(writing, sums)):
            self._give_up(writing, problem)
            return
        self._saved, self._problem = writing.folder, ""
        log.info("saved %s", writing.folder)

    def _on_first(self, act: Callable[[], None]) -> str:
        """Rank 0 does it; what went wrong, on every rank."""
        problem = ""
        if self._world.rank == 0:
            try:
                act()
            except OSError as error:
                problem = f"rank 0: {type(error).__name__}: {error}"
        return self._world.from_first(problem)

    def _make_room(self, writing: Writing) -> None:
        shutil.rmtree(writing.aside, ignore_errors=True)
        writing.aside.mkdir(parents=True)

    def _seal(self, writing: Writing, sums: dict[str, str]) -> None:
        from retrieval_train.engine.snapshot import seal

        seal(writing.aside, sums, writing.snapshot.state)
        put_in_place(writing.aside, writing.folder)
        self._run.set_latest(writing.folder)
        self._prune()
        self._sealed(writing.folder)

    def _give_up(self, writing: Writing, problem: str) -> None:
        self.num_failed, self._problem = self.num_failed + 1, problem
        if self._world.rank == 0:
            shutil.rmtree(writing.aside, ignore_errors=True)
        kept = f"{self._saved} stays good" if self._saved else "there is none yet"
        log.warning("%s could not be written, %s; the run goes on. %s", writing.folder.name, kept, problem)

    def _prune(self) -> None:
        folders = sorted(self._run.checkpoints.glob("step-*"))
        stay = {*folders[-self._config.keep :], *self._held(), self._run.best_checkpoint()}
        leftovers = [
            path for path in self._run.checkpoints.iterdir() if re.match(r"\.(step-\d|latest\.|best\.)", path.name)
        ]
        for folder in (*(folder for folder in folders if folder not in stay and not self._is_kept(folder)), *leftovers):
            if folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)
            else:
                folder.unlink(missing_ok=True)

    def _is_kept(self, folder: Path) -> bool:
        every = self._config.keep_every
        return every is not None and int(folder.name.rpartition("-")[2]) % every == 0

    def _is_writing(self) -> bool:
        return self._writing is not None and self._writing.thread.is_alive()

    def _is_due_by_clock(self) -> bool:
        every, since_s = self._config.every_minutes, time.monotonic() - self._begun_at
        return every is not None and self._world.rank == 0 and since_s > every * 60
