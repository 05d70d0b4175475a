"""Submit the points of a sweep: on this machine one after the other, on SLURM as a job array.

All points are checked before the first is submitted. They execute the code of that moment, however late they start.
A point is a run like any other: what is done stays done, so the same command again does the rest.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from jobs.training import origin
from launcher import dry_run, following, snapshot, submission
from launcher.clusters.place import Place, find_place
from launcher.following import Ending
from launcher.looks import watch
from launcher.pipelines import deferred
from launcher.snapshot import Code
from launcher.submission import Ready, Started
from launcher.sweeps import points, search_run
from launcher.sweeps.points import Sweep
from launcher.sweeps.sweep import Point
from launcher.ticket import SlurmTicket, Ticket
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir


def submit(options: argparse.Namespace, sweep: Sweep, *, command: str) -> int:
    """The whole sweep; its exit code. Raises ValueError before anything is started."""
    place = find_place(options)
    _refuse_options(options, place)
    found = _ready(options, sweep, place)
    if sweep.search is not None:
        return search_run.submit(options, sweep, place, [one for _, one in found], command=command)
    if options.dry_run:
        return _print_points(options, sweep, found)
    runs_root = found[0][1].run.path.parent
    runs = _Runs(options, sweep, place, command, snapshot.keep(runs_root), runs_root)
    if place.cluster.scheduler == "slurm":
        return runs.side_by_side(found)
    return runs.one_after_the_other(found)


def _refuse_options(options: argparse.Namespace, place: Place) -> None:
    problems = []
    if options.print_command:
        problems.append(("--print-command", "prints one run; give the values of one point"))
    elif options.wait is False and place.cluster.scheduler != "slurm":
        instead = "leave it open (in tmux, say), or start it as `nohup python launcher/submit.py ... &`"
        problems.append(("--detach", f"this command itself starts one point after the other; {instead}"))
    if options.parallel is not None and place.cluster.scheduler != "slurm":
        problems.append(("--parallel", "is for SLURM; here the points run one after the other"))
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


def _print_points(options: argparse.Namespace, sweep: Sweep, found: list[tuple[Point, Ready]]) -> int:
    width = max(len(point.name) for point, _ in found)
    for point, one in found:
        print(f"{point.name:<{width}}  {one.run.state or 'new':<9}  {watch.shown(one.run.path)}")
    after = f", each followed by its evaluation ({sweep.then})" if sweep.then else ""
    print(f"\n{len(found)} points{after}; the first of them:\n")
    return dry_run.print_plan(options, found[0][1])


@dataclass
class _Runs:
    """What all runs of one command share, and what became of them."""

    options: argparse.Namespace
    sweep: Sweep
    place: Place
    command: str
    code: Code
    runs_root: Path
    failed: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The sweep's, as a file's name."""
        return self.sweep.name

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
        """All points into the queue as an array, and behind it their evaluations, each of which waits for its point."""
        begun = submission.start_all(
            self.options,
            [one for _, one in found],
            command=self.command,
            code=self.code,
            name=self.name,
            parallel=self.options.parallel or self.place.cluster.parallel,
            belongs_to=self._belongs_to,
        )
        to_follow = []
        for (point, one), started in zip(found, begun, strict=True):
            if started.error is not None:
                self._fail(point.name, started.error)
            if started.ticket is not None:
                to_follow.append((point.name, one.run, started))
        counts = Counter(
            "failed" if s.error else "done" if not s.ticket else "new" if s.is_ours else "active" for s in begun
        )
        _say("points: " + ", ".join(f"{count} {word}" for word, count in counts.items()))
        if self.sweep.then is not None:
            self._evaluations([(point, one, started) for (point, one), started in zip(found, begun, strict=True)])
        if not self.options.wait:
            return self._sum_up(len(found))
        for name, run, started in to_follow:
            assert started.ticket is not None
            if self._follow(name, run, started.ticket, is_ours=started.is_ours).is_interrupted:
                return 130
        return self._sum_up(len(found))

    def _evaluations(self, found: list[tuple[Point, Ready, Started]]) -> None:
        """An evaluation needs an export: what has one is submitted, the others wait in the queue for their points."""
        now: list[Ready] = []
        groups: dict[str, list[deferred.Stage]] = {}
        for point, one, started in found:
            if isinstance(started.ticket, SlurmTicket):
                stage = self._stage(point, one)
                ticket = deferred.ticket_of(stage.folder)
                if started.is_ours or ticket is None or not ticket.is_active():
                    array, _, task = started.ticket.job_id.partition("_")
                    is_aligned = bool(task) and started.is_ours
                    after = f"aftercorr:{array}" if is_aligned else f"afterok:{started.ticket.job_id}"
                    groups.setdefault(after, []).append(stage)
            elif started.error is None and (made := self._ready_evaluation(point, one.run)) is not None:
                now.append(made)
        parallel = self.options.parallel or self.place.cluster.parallel
        name = f"{self.name}-evaluation"
        for after, stages in groups.items():
            deferred.submit(stages, self.code, runs_root=self.runs_root, name=name, after=after, parallel=parallel)
        if now:
            submission.start_all(
                self.options,
                now,
                command=self.command,
                code=self.code,
                name=name,
                parallel=parallel,
                belongs_to=self._belongs_to,
            )
        waiting = sum(len(stages) for stages in groups.values())
        _say(f"evaluations: {len(now)} with an export already, {waiting} wait for their points")

    def _stage(self, point: Point, one: Ready) -> deferred.Stage:
        assert self.sweep.then is not None
        return deferred.Stage(
            folder=self.runs_root / ".stages" / self.name / f"{one.run.path.name}-evaluation",
            file=self.sweep.then,
            overrides=self.sweep.then_assignments(point.name, one.run.export),
            needs={},
            plan=one.plan,
            command=self.command,
            belongs_to=self._belongs_to,
        )

    @property
    def _belongs_to(self) -> dict[str, str]:
        return {"sweep": self.name, "sweep_file": self.sweep.where}

    # --- one run

    def _to_its_end(self, name: str, one: Ready) -> Ending:
        try:
            started = submission.start(
                self.options, one, command=self.command, code=self.code, belongs_to=self._belongs_to
            )
        except (ValueError, OSError) as error:
            self._fail(name, error)
            return Ending(1)
        if started.ticket is None:
            following.say_done(one.run)
            return Ending(0)
        return self._follow(name, one.run, started.ticket, is_ours=started.is_ours)

    def _follow(self, name: str, run: RunDir, ticket: Ticket, *, is_ours: bool) -> Ending:
        ending = following.follow(self.options, run, ticket, is_ours=is_ours)
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
        if self.failed:
            _say(f"{len(self.failed)} failed or stopped: {', '.join(self.failed)}; the same command tries them again")
            return 1
        table = shlex.join(["python", "launcher/status.py", "sweep", self.sweep.where, *self.sweep.said])
        _say(f"{count} points; their table: {table}")
        return 0


def _say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)
