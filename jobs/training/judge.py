"""Evaluation during training: what the evaluate job would say of an export of this step, without stopping the stream.

All ranks embed and search the evaluation set with the weights as they stand. The best step's checkpoint is kept; a run whose
metric gets no better for `patience` evaluations ends. What was seen so far is in every checkpoint: a run that is resumed
stops at the same step as one that never stopped.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from jobs.evaluate import EvaluationData, embedding_shown, source_of
from jobs.job import Progress
from retrieval_train.config import place
from retrieval_train.evaluation.embed import Config as Embed
from retrieval_train.evaluation.embed import NotFiniteVector, NotJoined
from retrieval_train.evaluation.index import Config as Index
from retrieval_train.evaluation.metrics import MERGED, METRICS

if TYPE_CHECKING:
    from jobs.training.halving import Halving
    from retrieval_train.data.view import View
    from retrieval_train.engine.engine import Engine, Report
    from retrieval_train.engine.stop import Ending
    from retrieval_train.evaluation.metrics import Scores
    from retrieval_train.rundir import RunDir
    from retrieval_train.world import World

log = logging.getLogger(__name__)


class Config(EvaluationData):
    """Evaluate on the way, keep the best step, and stop when nothing gets better."""

    every_steps: int = Field(default=500, ge=1)
    """Steps between two evaluations; the last step always has one."""
    metric: str = "mMP@5"
    """What is to get better, over all domains in one index."""
    patience: int | None = Field(default=None, ge=1)
    """The run stops after so many evaluations in a row that were no better than the best; null: never before its length."""
    min_delta: float = Field(default=0.0, ge=0)
    """Better means: by more than this."""
    first: bool = Field(default=True, json_schema_extra=place())
    """Evaluate before the first step too: where training started from, which is never the best."""
    embed: Embed = Embed()
    """How images become vectors; in the engine's precision."""
    index: Index = Index()
    """How vectors are searched."""

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError(f"'{metric}' is no metric; there are: {', '.join(METRICS)}")
        return metric


class _Stopping(Exception):
    """This rank is to stop before its share is embedded."""


@dataclass(frozen=True)
class Model:
    """What is evaluated, and how it sees images."""

    engine: Engine
    view: View
    image_px: int


class Judge:
    """A watcher before the one that writes the figures. Methods are collective, but for `figures` and `state`."""

    def __init__(
        self,
        config: Config,
        model: Model,
        run: RunDir,
        world: World,
        *,
        shards_root: Path,
        num_steps: int,
        save: Callable[[], None],
        is_stopping: Callable[[], bool] = lambda: False,
        beat: Callable[[str], None] = lambda phase: None,
        halving: Halving | None = None,
    ) -> None:
        """`save` makes a checkpoint of this step. An evaluation is given up when a rank `is_stopping`, for the time that
        a preempted run has is short; the next start makes up for it. `beat` is told that evaluation goes on. `halving`
        compares with the other runs of a sweep."""
        self._config, self._model, self._run, self._world = config, model, run, world
        self._retrieval = config.open(shards_root)
        self._num_steps, self._save, self._is_stopping, self._beat = num_steps, save, is_stopping, beat
        self._halving = halving
        self._figures: dict[str, float] = {}
        self._history: list[tuple[int, float]] = []
        self._best: tuple[int, float] | None = None
        self._in_vain = 0
        self._is_put_off = False
        """Whether an evaluation waits for a step that is no fault."""

    # --- judging

    def start(self) -> None:
        """Before the first step of a start: judge what training begins from, or the step that an earlier start gave up."""
        step = self._model.engine.step
        is_due = self._config.first if step == 0 else self._is_due(step)
        if is_due and step not in dict(self._history) and not self._is_put_off:
            self._evaluate(step)
            self._figures.pop("evaluate_s", None)  # it is no part of the next step's time

    def after(self, report: Report) -> None:
        """A step that is a fault is not judged but the last: what led to it may be in the weights, and the run may go back.
        The next good one is, in its place."""
        is_due = self._is_put_off or self._is_due(report.step)
        is_fault = report.skipped in ("loss", "gradient") and report.step < self._num_steps
        self._is_put_off = is_due and is_fault
        if is_due and not is_fault:
            self._evaluate(report.step)

    def figures(self) -> dict[str, float]:
        """Of an evaluation of this step, for the tracker; {} after that."""
        figures, self._figures = self._figures, {}
        return figures

    @property
    def curve(self) -> tuple[list[int], list[float]]:
        """Steps, and the metric's value after each."""
        return [step for step, _ in self._history], [value for _, value in self._history]

    @property
    def best(self) -> Path | None:
        """The checkpoint of the best step, for the export."""
        return self._run.checkpoint(self._best[0]) if self._best else None

    @property
    def has_seen_enough(self) -> bool:
        """Whether patience is used up, or other runs of the sweep are better."""
        if self._halving and self._halving.verdict:
            return True
        return self._config.patience is not None and self._in_vain >= self._config.patience

    def _is_due(self, step: int) -> bool:
        return step > 0 and (step % self._config.every_steps == 0 or step == self._num_steps)

    def _evaluate(self, step: int) -> None:
        began = time.perf_counter()
        scores = self._scores(step)
        if step:  # the tracker's first line is the first step's
            self._figures = {"evaluate_s": round(time.perf_counter() - began, 3)}
        if scores is None:
            return
        split, metric, value = self._config.split, self._config.metric, scores[MERGED][self._config.metric]
        self._history.append((step, value))
        if step:
            self._figures |= {f"{split}/{name}": number for name, number in scores[MERGED].items()}
            of_domain = {name: numbers[metric] for name, numbers in scores.items() if name != MERGED}
            self._figures |= {f"{split}/{name}/{metric}": number for name, number in of_domain.items()}
        log.info("step %d  %s %s %.4f, in %.1f s", step, split, metric, value, time.perf_counter() - began)
        if step:
            self._compare(step, value)
            self._halve()

    def _halve(self) -> None:
        if self._halving:
            self._halving.look(self._history)
            self._figures |= self._halving.figures()

    def _scores(self, step: int) -> Scores | None:
        """Of the weights as they stand, on all ranks; None where it is given up: a rank is to stop, has no room on its disk
        or finds a vector that is not finite, which is for the next steps' losses to say and for `Faults` to mend."""
        from retrieval_train.evaluation import metrics

        retrieval, folder, world = self._retrieval, self._run.embeddings, self._world
        if world.rank == 0:  # what a start left behind that was killed
            shutil.rmtree(folder, ignore_errors=True)
        world.barrier()
        progress = Progress(self._run, world, f"evaluate step {step}", total=len(retrieval), unit="images")
        show = embedding_shown(progress, retrieval, world)
        problem = ""
        # nothing collective in this block but the forwards, which the engine sees to
        with self._model.engine.embedding() as embed:
            source = source_of(embed, self._model.view, self._model.image_px)
            try:
                retrieval.embed(source, folder, world, self._config.embed, shown=partial(self._shown, show))
            except _Stopping:
                problem = "it is to stop; the next start does it"
            except NotFiniteVector as error:
                problem = str(error)
            except OSError as error:
                problem = f"{type(error).__name__}: {error}"
        problems = [f"rank {rank}: {problem}" for rank, problem in enumerate(world.every(problem)) if problem]
        scores = None
        try:
            if not problems:
                hits = retrieval.search(folder, world, self._config.index)
                scores = world.from_first(metrics.evaluate(hits, retrieval.truth) if world.rank == 0 else None)
        except NotJoined as error:  # on all ranks
            problems = [str(error)]
        if problems:
            log.warning("step %d: the evaluation is given up; %s", step, problems[0])
        if world.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        return scores

    def _shown(self, show: Callable[[int], None], done: int) -> None:
        self._beat("Judge")
        show(done)
        if (
            self._is_stopping() and self._model.engine.step < self._num_steps
        ):  # after the last step there is no next start
            raise _Stopping

    def _compare(self, step: int, value: float) -> None:
        """Keep the checkpoint of a step that is better than all before."""
        from retrieval_train.engine.saving import NotSaved

        best, in_vain = self._best, self._in_vain + 1
        if best is not None and value <= best[1] + self._config.min_delta:
            self._in_vain = in_vain
            return
        self._best, self._in_vain = (step, value), 0  # before saving: the checkpoint shall say that it is the best
        try:
            self._save()
            problem = self._name_best()
        except NotSaved as error:  # on all ranks
            problem = str(error)
        if problem:
            self._best, self._in_vain = best, in_vain
            log.warning("step %d is the best so far and cannot be kept: %s", step, problem)

    def _name_best(self) -> str:
        """Else it would be removed in time. What went wrong, on all ranks."""
        problem = ""
        if self._world.rank == 0 and self.best is not None:
            try:
                self._run.set_best(self.best)
            except OSError as error:
                problem = f"cannot be named: {type(error).__name__}: {error}"
        return self._world.from_first(problem)

    # --- state

    def state(self) -> dict[str, Any]:
        """For the checkpoint, which is written while training goes on: a copy."""
        return {
            "history": [*self._history],
            "best": self._best,
            "in_vain": self._in_vain,
            "put_off": self._is_put_off,
        }

    def take_state(self, state: Mapping[str, Any]) -> None:
        self._figures = {}
        self._history = [(step, value) for step, value in state.get("history", [])]
        self._best = tuple(state["best"]) if state.get("best") else None
        self._in_vain, self._is_put_off = state.get("in_vain", 0), state.get("put_off", False)
        if self._halving:
            self._halving.look(self._history)
        if self.best is None:
            return
        is_there = self._world.from_first((self.best / "state.json").is_file())
        # named again: a kill may have come between the checkpoint and its name
        if problem := self._name_best() if is_there else "is gone":
            log.warning("%s, the best so far, %s; the best of what follows is kept", self.best, problem)
            self._best, self._in_vain = None, 0


class Patience:
    """Ends the run when the judge has seen enough: a watcher of its own, the last, so that the others see this step too."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def after(self, report: Report) -> Ending | None:
        return "early stop" if self._judge.has_seen_enough else None
