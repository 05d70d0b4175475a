"""An adaptive search: what each trial tries follows from how the others did, by Optuna. The only file that knows it.

There is no controller: whoever begins a trial, a task of a job array or the loop of a local submit, asks the study for
values, and tells it in the end what they reached. Both are lines in a file that all nodes see.

    <folder>/study-<digest>.log                   Optuna's journal: JSON lines
    <folder>/trial-<digest>-0003/trial.json       the values of trial 3 and, in the end, what it reached

<digest> is that of the base and of what is drawn how: a search that was changed begins anew.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jobs import failure as failures
from launcher import folder as folders
from launcher.sweeps.draws import Draw
from retrieval_train.config import Section
from retrieval_train.rundir import RunDir, read_json, write_json

if TYPE_CHECKING:
    import optuna

# all tasks of an array may ask at the same moment, one after the other, and each reads all trials
_PATIENCE_S, _PATIENCE_PER_TRIAL_S = 300.0, 5.0
_ADAPTIVE_TRIES, _TRIES = 20, 100  # how often values that were tried already are thrown away; then, more freely
_HOPELESS = ("user_error", "not_finite")
"""Kinds of failures that another start would only repeat."""

Ending = Literal["done", "halved", "hopeless", "failed"]
"""`failed` may be tried again: its process died, say."""


class Search(Section):
    """Trials whose values follow from how the others did."""

    count: int = Field(ge=1)
    """How many trials in all."""
    metric: str = Field(min_length=1)
    """What is to grow: a key of the runs' `metrics.jsonl`, as dev/mMP@5; its last value there counts."""
    draws: dict[str, Draw] = Field(min_length=1)
    """Key -> which values there are; as in `random`."""
    sampler: Literal["tpe", "random"] = "tpe"
    """tpe: Optuna's Tree-structured Parzen Estimator; random: what it is to be compared with."""
    seed: int = 0
    """Another one, other trials."""

    def corners(self) -> list[tuple[int, dict[str, Any]]]:
        """Points by which a config can be checked before anything is asked: both ends and the middle of each range, and
        each choice."""
        number = max([3, *(len(draw.choice or ()) for draw in self.draws.values())])
        rows = [{key: _corner(draw, at) for key, draw in self.draws.items()} for at in range(number)]
        return [(at, row) for at, row in enumerate(rows) if row not in rows[:at]]

    @property
    def num_points(self) -> float:
        """How many different points there are."""
        return math.prod(_num_values(draw) for draw in self.draws.values())


@dataclass(frozen=True)
class Trial:
    """One point of the search."""

    number: int
    """From 0."""
    asked: int
    """Its number in Optuna's study."""
    values: Mapping[str, Any]
    ending: Ending | None = None
    """None: it has not ended yet."""
    value: float | None = None
    """What its run reached."""

    @property
    def is_over(self) -> bool:
        """Whether no start is to follow."""
        return self.ending in ("done", "halved", "hopeless")


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    ending: Ending
    value: float | None = None
    step: int = 0
    """Where it had the value."""


def outcome(run: RunDir, metric: str) -> Outcome | None:
    """None while it is not over. Raises ValueError where the run is done and never had the metric."""
    state = run.state
    if state == "done":
        return _reached(run, metric)
    if state == "failed":
        told = failures.read(run)
        return Outcome("hopeless" if told is not None and told.failure.kind in _HOPELESS else "failed")
    return Outcome("failed") if state == "preempted" else None


def _reached(run: RunDir, metric: str) -> Outcome:
    text = run.metrics.read_text(encoding="utf-8") if run.metrics.is_file() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    found = [line for line in lines if metric in line]
    if not found:
        known = ", ".join(sorted({key for line in lines for key in line} - {"step"})) or "none"
        raise ValueError(f"{run.metrics} has no '{metric}', which the search is for; there are: {known}")
    is_halved = any("halved_at" in line for line in lines)
    return Outcome("halved" if is_halved else "done", float(found[-1][metric]), int(found[-1].get("step", 0)))


@dataclass(frozen=True)
class Study:
    """The trials of one search and what they reached. Safe to use from many nodes at once."""

    folder: Path
    digest: str
    search: Search

    def stage(self, number: int) -> Path:
        """The folder of a trial."""
        return self.folder / f"trial-{self.digest}-{number:04d}"

    def trials(self) -> list[Trial]:
        """Those that have begun, by number."""
        files = sorted(self.folder.glob(f"trial-{self.digest}-*/trial.json"))
        return [Trial(**read_json(file)) for file in files]

    def left(self) -> list[int]:
        """Numbers of the trials that have not begun or may be tried again."""
        over = {trial.number for trial in self.trials() if trial.is_over}
        return [number for number in range(self.search.count) if number not in over]

    def best(self) -> Trial | None:
        """Of those that came to their end."""
        known = [trial for trial in self.trials() if trial.ending == "done" and trial.value is not None]
        return max(known, key=lambda trial: trial.value or 0.0, default=None)

    def begin(self, number: int) -> Trial:
        """The trial with its values: those that it was given before, or new ones. Raises ValueError where there are no
        more."""
        with self._alone():
            begun = self.trials()
            mine = next((trial for trial in begun if trial.number == number), None)
            if mine is None:
                mine = self._ask(number, taken={_key(trial.values) for trial in begun})
                self._write(mine)
            return mine

    def tell(self, number: int, found: Outcome) -> Trial:
        """The trial after its run has ended. What was told before stays, unless the trial could be tried again."""
        with self._alone():
            trial = next(trial for trial in self.trials() if trial.number == number)
            if not trial.is_over and found.ending != trial.ending:
                self._tell(trial, found)
                trial = replace(trial, ending=found.ending, value=found.value)
                self._write(trial)
            return trial

    def _write(self, trial: Trial) -> None:
        write_json(self.stage(trial.number) / "trial.json", asdict(trial))

    # --- Optuna

    def _ask(self, number: int, *, taken: set[str]) -> Trial:
        from optuna.trial import TrialState

        study = self._open()
        for attempt in range(_TRIES):
            asked = study.ask()
            study.sampler = self._sampler(asked.number, is_adaptive=attempt < _ADAPTIVE_TRIES)
            values = {key: _suggested(draw, key, asked) for key, draw in self.search.draws.items()}
            if _key(values) not in taken:
                return Trial(number, asked.number, values)
            study.tell(asked, state=TrialState.FAIL)
        raise ValueError(f"trial {number}: {_TRIES} times only values that were tried already; lower search.count")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One asks or tells at a time. Raises ValueError after minutes."""
        import optuna  # noqa: F401 - takes seconds, in which the others need not wait

        patience_s = _PATIENCE_S + _PATIENCE_PER_TRIAL_S * self.search.count
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(folders.only_one_submits(self.folder, patience_s=patience_s))
            except ValueError as error:
                raise ValueError(
                    f"other trials of this search have held {self.folder} for {patience_s:g} s: is its file system slow, "
                    "or one of them stuck? Submitting again goes on with the trials that are left"
                ) from error
            yield

    def _tell(self, trial: Trial, found: Outcome) -> None:
        from optuna.trial import TrialState, create_trial

        study = self._open()
        asked = study.get_trials(deepcopy=False)[trial.asked]
        is_new = not asked.state.is_finished()  # else it failed at an earlier start
        if is_new and found.ending == "done":
            study.tell(trial.asked, found.value)
            return
        if is_new:
            study.tell(trial.asked, state=TrialState.FAIL)
        if found.ending != "failed":  # Optuna leaves failures aside; what is bad or hopeless is to be avoided
            is_done = found.ending == "done"
            again = create_trial(
                state=TrialState.COMPLETE if is_done else TrialState.PRUNED,
                value=found.value if is_done else None,
                params=asked.params,
                distributions=asked.distributions,
                intermediate_values={found.step: found.value} if found.value is not None else {},
            )
            study.add_trial(again)

    def _open(self) -> optuna.Study:
        """At every use anew, so that a trial depends on what was told before it and on nothing that a process keeps."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder.mkdir(parents=True, exist_ok=True)
        # its own lock, by a symbolic link, holds on NFS, too
        storage = JournalStorage(JournalFileBackend(str(self.folder / f"study-{self.digest}.log")))
        return optuna.create_study(
            storage=storage,
            study_name=self.digest,
            direction="maximize",
            load_if_exists=True,
            sampler=self._sampler(0, is_adaptive=True),
        )

    def _sampler(self, number: int, *, is_adaptive: bool) -> optuna.samplers.BaseSampler:
        """Of one trial: with one seed for all, processes that ask for a trial each would get the same values."""
        import optuna

        seed = random.Random(f"{self.search.seed}/{number}").getrandbits(31)
        if self.search.sampler == "random" or not is_adaptive:
            return optuna.samplers.RandomSampler(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # a trial at work counts as a bad one, so that those beside it look elsewhere
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def problems(search: Search) -> Iterator[tuple[str, str]]:
    """Why it cannot begin here."""
    if find_spec("optuna") is None:
        yield "search", "needs Optuna, which is not installed: pip install 'retrieval-train[search]'"
    if search.count > search.num_points:
        yield "search.count", f"{search.count} is more than the {search.num_points:g} points that there are; use grid"


# --- values


def _suggested(draw: Draw, key: str, trial: optuna.Trial) -> Any:
    if draw.choice is not None:  # as text: an option may be a section
        return json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in draw.choice]))
    if draw.int is not None:
        return trial.suggest_int(key, *draw.int, log=bool(draw.log))
    low, high = _ends(draw)
    return draw.rounded(trial.suggest_float(key, low, high, log=draw.uniform is None))


def _ends(draw: Draw) -> tuple[float, float]:
    ends = draw.uniform or draw.log
    assert isinstance(ends, tuple), "the validator of Draw sees to it"
    return ends


def _corner(draw: Draw, at: int) -> Any:
    if draw.choice is not None:
        return draw.choice[at % len(draw.choice)]
    return draw.at([0.0, math.nextafter(1.0, 0.0), 0.5][at % 3])


def _num_values(draw: Draw) -> float:
    if draw.choice is not None:
        return len({json.dumps(value, sort_keys=True) for value in draw.choice})
    return draw.int[1] - draw.int[0] + 1 if draw.int is not None else math.inf


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
