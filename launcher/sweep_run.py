"""Submit the points of a sweep: on this machine one after the other, on SLURM each as a job of its own.

All points are checked before the first is submitted. They execute the code of that moment, however late they start.
A point is a run like any other: what is done stays done, so the same command again does the rest.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass, field

from jobs.training import origin
from launcher import executors, points, snapshot, submission, watch
from launcher.plan import describe
from launcher.points import Sweep
from launcher.snapshot import Code
from launcher.submission import Ending, Place, Ready
from launcher.sweep import Point
from launcher.ticket import Ticket
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir


def submit(options: argparse.Namespace, sweep: Sweep, *, command: str) -> int:
    """The whole sweep; its exit code. Raises ValueError before anything is started."""
    place = submission.find_place(options)
    _refuse_options(options, place)
    found = _ready(options, sweep, place)
    if options.dry_run:
        return _print_points(sweep, found)
    with snapshot.held() as code:
        runs = _Runs(options, sweep, place, command, code)
        if place.cluster.scheduler == "local":
            return runs.one_after_the_other(found)
        return runs.side_by_side(found)


def _refuse_options(options: argparse.Namespace, place: Place) -> None:
    problems = []
    if options.print_command:
        problems.append(("--print-command", "prints one run; give the values of one point"))
    elif options.wait is False and place.cluster.scheduler == "local":
        instead = "leave it open (in tmux, say), or start it as `nohup python launcher/submit.py ... &`"
        problems.append(("--detach", f"this command itself starts one point after the other; {instead}"))
    if problems:
        raise ConfigError("command line", problems)


def _ready(options: argparse.Namespace, sweep: Sweep, place: Place) -> list[tuple[Point, Ready]]:
    """Every point as a run that can be submitted. Raises ConfigError with every problem, each told once."""
    found: list[tuple[Point, Ready]] = []
    problems: dict[tuple[str, str], None] = {}
    told: set[str] = set()
    for point, config in points.checked(sweep):
        if (changes := origin.told(config)) and changes not in told:
            told.add(changes)
            print(changes, file=sys.stderr)
        try:
            found.append((point, submission.ready(options, place, config)))
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError("command line", list(problems))
    return found


def _print_points(sweep: Sweep, found: list[tuple[Point, Ready]]) -> int:
    width = max(len(point.name) for point, _ in found)
    for point, one in found:
        print(f"{point.name:<{width}}  {one.run.state or 'new':<9}  {watch.shown(one.run.path)}")
    after = f", each followed by its evaluation ({sweep.then})" if sweep.then else ""
    print(f"\n{len(found)} points{after}; the first of them:\n")
    first = found[0][1]
    sbatch = executors.sbatch_text(first.plan, first.run) if first.plan.scheduler == "slurm" else None
    print(describe(first.plan, state=first.run.state, command=executors.rank_command(first.run), sbatch=sbatch))
    return 0


@dataclass
class _Runs:
    """What all runs of one command share, and what became of them."""

    options: argparse.Namespace
    sweep: Sweep
    place: Place
    command: str
    code: Code
    failed: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)

    def one_after_the_other(self, found: list[tuple[Point, Ready]]) -> int:
        """A point that fails is told, and the next one goes on; Ctrl-C stops the point and starts no more."""
        for number, (point, one) in enumerate(found, start=1):
            _say(f"point {number} of {len(found)}: {point.name}")
            ending = self._to_its_end(point.name, one)
            if ending.code == 0 and self.sweep.then is not None:
                _say(f"point {number} of {len(found)}: evaluation of {point.name}")
                ending = self._evaluation(point, one.run)
            if ending.is_interrupted:
                left = len(found) - number
                _say(f"stopped: {left} of {len(found)} points were not begun; the same command goes on")
                return ending.code
        return self._sum_up(len(found))

    def side_by_side(self, found: list[tuple[Point, Ready]]) -> int:
        """All points into the queue. An evaluation needs its export: it follows when that is there."""
        points_started = [(point, one, *self._start(point.name, one)) for point, one in found]
        evaluations = []
        for point, one, ticket, is_ours in points_started:
            if ticket is not None and self._follow(point.name, one.run, ticket, is_ours=is_ours).is_interrupted:
                return 130
            if self.sweep.then is not None and one.run.state == "done":
                if (made := self._ready_evaluation(point, one.run)) is not None:
                    evaluations.append((made, *self._start(made.config.run.name, made)))
            elif self.sweep.then is not None and point.name not in self.failed:
                self.waiting.append(point.name)
        for made, ticket, is_ours in evaluations:
            name = made.config.run.name
            if ticket is not None and self._follow(name, made.run, ticket, is_ours=is_ours).is_interrupted:
                return 130
        return self._sum_up(len(found))

    # --- one run

    def _to_its_end(self, name: str, one: Ready) -> Ending:
        ticket, is_ours = self._start(name, one)
        if ticket is None:
            return Ending(1 if name in self.failed else 0)
        return self._follow(name, one.run, ticket, is_ours=is_ours)

    def _start(self, name: str, one: Ready) -> tuple[Ticket | None, bool]:
        """None where there is nothing to follow: the run is done already, or it cannot be started."""
        try:
            ticket, is_ours = submission.start(self.options, one, command=self.command, code=self.code)
        except (ValueError, OSError) as error:
            self._fail(name, error)
            return None, False
        if ticket is None:
            submission.say_done(one.run)
        return ticket, is_ours

    def _follow(self, name: str, run: RunDir, ticket: Ticket, *, is_ours: bool) -> Ending:
        ending = submission.follow(self.options, run, ticket, is_ours=is_ours)
        if ending.code:
            self.failed.append(name)
        return ending

    def _evaluation(self, point: Point, run: RunDir) -> Ending:
        made = self._ready_evaluation(point, run)
        return Ending(1) if made is None else self._to_its_end(made.config.run.name, made)

    def _ready_evaluation(self, point: Point, run: RunDir) -> Ready | None:
        try:
            return submission.ready(self.options, self.place, self.sweep.evaluation(point, run))
        except (ValueError, OSError) as error:
            self._fail(f"{point.name}-evaluation", error)
            return None

    def _fail(self, name: str, error: Exception) -> None:
        print(error, file=sys.stderr)
        self.failed.append(name)

    def _sum_up(self, count: int) -> int:
        if self.waiting:
            _say(
                f"{len(self.waiting)} evaluations wait for exports: the same command, later or with --wait, submits them"
            )
        if self.failed:
            _say(f"{len(self.failed)} failed or stopped: {', '.join(self.failed)}; the same command tries them again")
            return 1
        table = shlex.join(["python", "launcher/status.py", "sweep", self.sweep.where, *self.sweep.said])
        _say(f"{count} points; their table: {table}")
        return 0


def _say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)
