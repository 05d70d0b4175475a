"""Steps whose loss or gradient is not finite: left out, counted, explained; the run goes back when there are too many.

faults/skipped.jsonl    step, why, and what a second look found: rank, layer, sample keys
                        (of the steps that stay: those that are done again leave nothing there)
roll_backs.jsonl        from which step to which, and the last look's words; every line lowers the learning rate by
                        `lr_factor`, also after a resume. Checkpoints have the lines too: for a run that goes on from a
                        mirror, where the file is not
"""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from retrieval_train.config import Section, place
from retrieval_train.engine.engine import Engine, Report
from retrieval_train.lines import Lines
from retrieval_train.rundir import RunDir, write_text

if TYPE_CHECKING:
    from retrieval_train.data.batch import Batch
    from retrieval_train.engine.stop import Ending
    from retrieval_train.learner import Learner
    from retrieval_train.world import World

log = logging.getLogger(__name__)

_EXPLAINED = 3  # faults in a row that get a second look, which costs a forward and a backward


class FaultsConfig(Section):
    """What happens when the loss or a gradient is not a finite number."""

    skip: int = Field(default=10, ge=0)
    """Steps in a row that are left out before the run goes back to its last checkpoint."""
    roll_backs: int = Field(default=2, ge=0)
    """How often it may go back before it ends as failed."""
    lr_factor: float = Field(default=0.5, gt=0, le=1)
    """What all learning rates are multiplied by at each going back: the same steps with the same rates would fail again."""
    compare_every: int = Field(default=100, ge=0, json_schema_extra=place())
    """Steps between two looks whether replicated weights are equal, to the bit, on all ranks; 0 never looks."""


class Faults:
    """Watches one run. Methods are collective."""

    def __init__(self, config: FaultsConfig, engine: Engine, learner: Learner, run: RunDir, world: World) -> None:
        self._config, self._engine, self._learner, self._run, self._world = config, engine, learner, run, world
        self._micro_batches: Sequence[Batch] = ()
        self._in_row = 0
        self.skipped = 0
        """Since the run began, roll-backs apart."""
        self.last = ""
        """What the last second look found."""
        self._skipped_lines: Lines | None = None
        self.roll_backs: list[str] = world.from_first(self._read_roll_backs())
        """The lines of roll_backs.jsonl, for the checkpoint; the same on all ranks, whatever becomes of the file."""
        self._lower_rates()

    def take_roll_backs(self, saved: list[str]) -> None:
        """Those of a checkpoint of this run, where the file has fewer: it was lost, or could not be written."""
        if len(saved) > len(self.roll_backs):
            self.roll_backs = list(saved)
            self._write_roll_backs()
            self._lower_rates()

    def watched(self, draws: Iterable[list[Batch]]) -> Generator[list[Batch], None, None]:
        """`draws` as they are; the last one is looked at again when its step was a fault."""
        for micro_batches in draws:
            self._micro_batches = micro_batches
            yield micro_batches

    def after(self, report: Report) -> Ending | None:
        if not report.skipped:
            self._in_row = 0
            return None
        if report.skipped == "overflow":
            log.info(
                "step %d overflowed fp16 and was left out; the loss scale is now %g", report.step, report.loss_scale
            )
            return None
        self._in_row += 1
        self.skipped += 1
        if self._in_row <= _EXPLAINED:
            self._explain(report)
        if self._in_row <= self._config.skip:
            return None
        can_go_back = self._world.from_first(len(self.roll_backs) < self._config.roll_backs and self._has_checkpoint())
        return "roll back" if can_go_back else "not finite"

    def roll_back(self, *, to_step: int, from_step: int) -> None:
        """Note it down, and lower the learning rate: the engine has just loaded the checkpoint of `to_step`."""
        self.roll_backs.append(json.dumps({"from": from_step, "to": to_step, "found": self.last}))
        self._write_roll_backs()
        self._in_row = 0
        self._skipped_lines = None  # what waits there for room is of steps that are done again
        self._lower_rates()
        log.warning("went back from step %d to %d; learning rates x %g", from_step, to_step, self._engine.lr_scale)

    def _explain(self, report: Report) -> None:
        from retrieval_train.engine.diagnosis import look_again

        found = [
            text for text in self._world.every(look_again(self._engine, self._learner, self._micro_batches)) if text
        ]
        self.last = "; ".join(found) or "a second look at the same rows found nothing: it may have been the machine"
        log.warning("step %d was left out, its %s is not finite: %s", report.step, report.skipped, self.last)
        if self._world.rank == 0:
            # `step` counts from 0 there, as in bad/
            self._write_skipped(json.dumps({"step": report.step - 1, "of": report.skipped, "found": self.last}) + "\n")

    def _write_skipped(self, line: str) -> None:
        """Rank 0 alone: a full disk must not end it, the others would wait for it."""
        try:
            self._skipped_lines = self._skipped_lines or Lines(self._run.faults)
        except OSError as error:  # the folder cannot be made; the line is in the log
            log.warning("%s cannot be written: %s", self._run.faults, error)
        else:
            self._skipped_lines.write(line)

    def _read_roll_backs(self) -> list[str]:
        return self._run.roll_backs.read_text().splitlines() if self._run.roll_backs.is_file() else []

    def _write_roll_backs(self) -> None:
        """All of them, so that a line for which there was no room comes with the next."""
        if self._world.rank != 0:
            return
        try:
            write_text(self._run.roll_backs, "".join(line + "\n" for line in self.roll_backs))
        except OSError as error:
            log.warning(
                "%s cannot be written: %s; the lowered learning rate holds, and the next checkpoint has it too",
                self._run.roll_backs,
                error,
            )

    def _lower_rates(self) -> None:
        self._engine.lr_scale = self._config.lr_factor ** len(self.roll_backs)

    def _has_checkpoint(self) -> bool:
        return self._run.latest_checkpoint() is not None
