"""Run a search: on this machine one trial after the other, on SLURM as a job array whose tasks ask when their turn comes.

The array has a task for each trial that is left; search_task.py is what happens on its node.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.job import JobConfig
from launcher import dry_run, following, snapshot, submission
from launcher import folder as folders
from launcher.clusters.place import Place
from launcher.following import Ending
from launcher.looks import activity
from launcher.pipelines import deferred
from launcher.snapshot import Code
from launcher.submission import Ready
from launcher.sweeps import search, search_task
from launcher.sweeps.points import Sweep
from launcher.sweeps.search import Outcome, Study
from retrieval_train.config import ConfigError
from retrieval_train.evaluation.metrics import METRICS

_ASK_S = 10.0


def submit(options: argparse.Namespace, sweep: Sweep, place: Place, corners: Sequence[Ready], *, command: str) -> int:
    """All trials that are left; the exit code. `corners` are points by which the search is checked. Raises ValueError
    before anything is started."""
    _refuse(options, sweep, corners[0].config)
    if options.dry_run:
        return _print_search(options, sweep, corners[0])
    code = snapshot.keep(corners[0].run.path.parent)
    runs = _Trials(options, sweep, place, command, code, corners[0])
    return runs.side_by_side() if place.cluster.scheduler == "slurm" else runs.one_after_the_other()


def _refuse(options: argparse.Namespace, sweep: Sweep, config: JobConfig) -> None:
    assert sweep.search is not None
    found, fields = list(search.problems(sweep.search)), dict(config)
    if "evaluate" in fields:
        found += _bad_metric(sweep.search.metric, fields["evaluate"])
    if found:
        raise ConfigError(sweep.where, found)
    if options.again:
        text = "a search goes on with what it knows; another search.seed begins another one"
        raise ConfigError("command line", [("--again", text)])


def _bad_metric(metric: str, judge: Any) -> list[tuple[str, str]]:
    if judge is None:
        return [("search.metric", f"nothing measures '{metric}': the base has no `evaluate`")]
    if metric.startswith(f"{judge.split}/") and metric.rpartition("/")[2] in METRICS:
        return []
    known = ", ".join(f"{judge.split}/{name}" for name in METRICS)
    return [("search.metric", f"'{metric}' is not measured by the base's `evaluate`; there are: {known}")]


def _print_search(options: argparse.Namespace, sweep: Sweep, first: Ready) -> int:
    assert sweep.search is not None
    for trial in sweep.study.trials():
        print(f"{sweep.trial(trial.number, trial.values).name}  {trial.ending or 'begun'}")
    count, left = sweep.search.count, len(sweep.study.left())
    print(f"\n{count} trials for {sweep.search.metric}, {left} of them left; one of them may be:\n")
    return dry_run.print_plan(options, first)


@dataclass
class _Trials:
    """What all trials of one command share."""

    options: argparse.Namespace
    sweep: Sweep
    place: Place
    command: str
    code: Code
    like: Ready
    """A run with the resources of all."""

    @property
    def study(self) -> Study:
        return self.sweep.study

    # --- on this machine

    def one_after_the_other(self) -> int:
        """A trial that fails is told, and the next one goes on; Ctrl-C stops the trial and starts no more."""
        assert self.sweep.search is not None
        for number in (left := self.study.left()):
            trial = self.study.begin(number)
            point = self.sweep.trial(number, trial.values)
            _say(f"trial {number} of {self.sweep.search.count}: {point.name}")
            try:
                one = submission.ready(self.options, self.place, self.sweep.config(point))
            except ConfigError as error:  # values that are no config together
                print(error, file=sys.stderr)
                self.study.tell(number, Outcome("hopeless"))
                continue
            ending = self._to_its_end(one)
            if (found := search.outcome(one.run, self.sweep.search.metric)) is not None:
                self.study.tell(number, found)
            if ending.is_interrupted:
                _say(f"stopped: {len(left) - left.index(number) - 1} trials were not begun; the same command goes on")
                return ending.code
        return self._sum_up()

    def _to_its_end(self, one: Ready) -> Ending:
        started = submission.start(self.options, one, command=self.command, code=self.code, belongs_to=self._belongs_to)
        if started.ticket is None:
            following.say_done(one.run)
            return Ending(0)
        return following.follow(self.options, one.run, started.ticket, is_ours=started.is_ours)

    # --- on SLURM

    def side_by_side(self) -> int:
        """A task for each trial that is left and in no queue yet."""
        left, runs_root = self.study.left(), self.like.run.path.parent
        with folders.only_one_submits(runs_root):
            jobs = {number: deferred.ticket_of(self.study.stage(number)) for number in left}
            known = {number: ticket.job_id for number, ticket in jobs.items() if ticket is not None}
            at_it = set(activity.active_jobs(list(known.values())))
            new = [number for number in left if known.get(number) not in at_it]
            made = self._into_the_queue(new, runs_root) if new else []
        _say(f"trials: {len(new)} new, {len(left) - len(new)} active, {self._count - len(left)} over")
        return self._wait([*at_it, *made]) if self.options.wait else self._sum_up(is_under_way=True)

    def _into_the_queue(self, numbers: Sequence[int], runs_root: Path) -> list[str]:
        stages = [
            deferred.Stage(
                folder=self.study.stage(number),
                file=Path(self.sweep.where),
                overrides=self.sweep.said,
                needs={},
                plan=self.like.plan,
                command=self.command,
                belongs_to=self._belongs_to,
                refresh_code=self.options.refresh_code,
                trial=search_task.about(self.study, number),
            )
            for number in numbers
        ]
        parallel = self.options.parallel or self.place.cluster.parallel
        name = self.sweep.name
        made = deferred.submit(stages, self.code, runs_root=runs_root, name=name, after="", parallel=parallel)
        return [ticket.job_id for ticket in made]

    def _wait(self, jobs: Sequence[str]) -> int:
        try:
            while jobs := activity.active_jobs(jobs):
                time.sleep(_ASK_S)
        except KeyboardInterrupt:
            _say(f"the search goes on: {len(jobs)} trials; the same command shows how it stands")
            return 130
        return self._sum_up()

    # --- in words

    @property
    def _count(self) -> int:
        return self.study.search.count

    @property
    def _belongs_to(self) -> dict[str, str]:
        return {"sweep": self.sweep.name, "sweep_file": self.sweep.where}

    def _sum_up(self, *, is_under_way: bool = False) -> int:
        """The exit code: 0 where nothing is left to do."""
        left = len(self.study.left())
        if (best := self.study.best()) is not None:
            name = self.sweep.trial(best.number, best.values).name
            _say(f"best so far: {name} with {self.study.search.metric} {best.value:.4f}")
        if hopeless := [trial for trial in self.study.trials() if trial.ending == "hopeless"]:
            names = ", ".join(self.sweep.trial(trial.number, trial.values).name for trial in hopeless)
            _say(f"{len(hopeless)} ended by an error of their values, and are not tried again: {names}")
        if left and not is_under_way:
            _say(f"{left} of {self._count} trials failed or stopped; the same command tries them again")
            return 1
        table = shlex.join(["python", "launcher/status.py", "sweep", self.sweep.where, *self.sweep.said])
        _say(f"{self._count} trials; their table: {table}")
        return 0


def _say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)
