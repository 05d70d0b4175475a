"""Submit the stages of a pipeline: on this machine in turn, on SLURM all at once, each waiting for those that it needs.

All stages are checked before the first is submitted. They execute the code of that moment, however late they start. A
stage is a run like any other: what is done stays done, so the same command again goes on with the first that is not.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.job import JobConfig
from jobs.training import origin
from launcher import dry_run, folder, following, snapshot, submission
from launcher.following import Ending
from launcher.looks import watch
from launcher.pipelines import deferred, pipeline_places, pipeline_stages
from launcher.pipelines.pipeline import Pipeline, Step
from launcher.pipelines.pipeline_places import Where
from launcher.pipelines.pipeline_stages import Stage
from launcher.plan import Plan, describe
from launcher.snapshot import Code
from launcher.starts import executors
from launcher.submission import Ready, Started
from launcher.ticket import SlurmTicket
from retrieval_train.rundir import RunDir

_ASK_S = 10.0


def submit(options: argparse.Namespace, found: Pipeline, *, command: str) -> int:
    """The whole pipeline; its exit code. Raises ValueError before anything is started."""
    stages = pipeline_stages.look(found, again=options.again)
    wheres = pipeline_places.of_all(options, found)
    pipeline_places.refuse_options(options, wheres)
    planned = pipeline_places.plans_of(found, stages, wheres)
    if options.dry_run:
        return _print_stages(stages, planned, wheres)
    code = snapshot.keep(pipeline_stages.runs_root(stages[0].values))
    runs = _Runs(found, wheres, planned, command, code, is_again=options.again)
    if next(iter(wheres.values())).place.cluster.scheduler == "slurm":
        return runs.side_by_side(stages, wait=bool(options.wait))
    return runs.one_after_the_other(stages)


def _print_stages(stages: Sequence[Stage], planned: Mapping[str, Plan], wheres: Mapping[str, Where]) -> int:
    print(pipeline_stages.table(stages))
    first = next((stage for stage in stages if stage.run is not None and not stage.is_done), None)
    if first is not None and first.run is not None:
        print(f"\nthe first that is to run, {first.step.name}:\n")
        plan = planned[first.step.name]
        sbatch = executors.sbatch_text(plan, first.run) if plan.scheduler == "slurm" else None
        print(describe(plan, state=first.run.state, command=executors.rank_command(plan, first.run), sbatch=sbatch))
    for stage in stages:
        name = stage.step.name
        if stage.is_done or stage.values["job"] != "train":
            continue
        if words := _needs(stage, planned[name], wheres[name].options):
            print(f"\nstage {name}:\n{words}")
    return 0


def _needs(stage: Stage, plan: Plan, options: argparse.Namespace) -> str:
    """What a stage needs that is not done, as far as its config is known."""
    config = pipeline_stages.config_so_far(stage)
    if config is None:
        return f"no estimate before {', '.join(stage.needs)} is done"
    return dry_run.needs_of(options, config, plan, refuse=False)


@dataclass
class _Runs:
    """What all stages of one command share, and what became of them."""

    pipeline: Pipeline
    wheres: Mapping[str, Where]
    planned: Mapping[str, Plan]
    command: str
    code: Code
    is_again: bool
    failed: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Stage that was not begun -> the one that it needs."""

    # --- on this machine

    def one_after_the_other(self, stages: Sequence[Stage]) -> int:
        """A stage that fails takes along what needs it, and the others go on; Ctrl-C stops the stage and begins no more."""
        done: dict[str, Path] = {}
        for number, stage in enumerate(stages, start=1):
            name = stage.step.name
            _say(f"stage {number} of {len(stages)}: {name}")
            missing = next((need for need in stage.step.needs if need not in done), None)
            if missing is not None:
                self.left_out[name] = missing
                _say(f"{name} is not begun: it needs {self._root(missing)}")
                continue
            ending, run = self._to_its_end(stage, done)
            if ending.is_interrupted:
                _say(
                    f"stopped: {len(stages) - number} of {len(stages)} stages were not begun; the same command goes on"
                )
                return ending.code
            if ending.code == 0 and run is not None:
                done[name] = run.path
        return self._sum_up(len(stages))

    def _to_its_end(self, stage: Stage, done: Mapping[str, Path]) -> tuple[Ending, RunDir | None]:
        try:
            config = pipeline_stages.complete(stage.step, stage.values, done)
            one, started = self._start(stage, config)
        except (ValueError, OSError) as error:
            self._fail(stage.step, error)
            return Ending(1), None
        if started.ticket is None:
            following.say_done(one.run)
            return Ending(0), one.run
        options = self.wheres[stage.step.name].options
        ending = following.follow(options, one.run, started.ticket, is_ours=started.is_ours)
        if ending.code:
            self.failed.append(stage.step.name)
        return ending, one.run

    def _start(self, stage: Stage, config: JobConfig) -> tuple[Ready, Started]:
        if changes := origin.told(config):
            print(changes, file=sys.stderr)
        where, belongs_to = self.wheres[stage.step.name], self._belongs_to(stage)
        one = submission.ready(where.options, where.place, config)
        return one, submission.start(where.options, one, command=self.command, code=self.code, belongs_to=belongs_to)

    # --- on SLURM

    def side_by_side(self, stages: Sequence[Stage], *, wait: bool) -> int:
        """Whatever is not done into the queue, each behind the jobs of those that it needs."""
        jobs: dict[str, SlurmTicket] = {}
        for stage in stages:
            missing = next((n for n in stage.step.needs if n in self.failed or n in self.left_out), None)
            if missing is not None:
                self.left_out[stage.step.name] = missing
                continue
            try:
                ticket = self._into_the_queue(stage, {name: jobs[name] for name in stage.step.needs if name in jobs})
            except (ValueError, OSError) as error:
                self._fail(stage.step, error)
                continue
            if ticket is not None:
                jobs[stage.step.name] = ticket
        if wait:
            return self._wait(stages, jobs)
        print(pipeline_stages.table(pipeline_stages.look(self.pipeline)))
        return self._sum_up(len(stages))

    def _into_the_queue(self, stage: Stage, before: Mapping[str, SlurmTicket]) -> SlurmTicket | None:
        """The job of the stage, made now or before; None for one that is done."""
        with folder.only_one_submits(pipeline_stages.runs_root(stage.values)):
            if (ticket := self._waits_already(stage, before)) is not None:
                return ticket
            if stage.config is None:
                return self._defer(stage, before)
        one, started = self._start(stage, stage.config)
        if started.ticket is not None and not isinstance(started.ticket, SlurmTicket):
            raise ValueError(f"{watch.shown(one.run.path)} runs on this machine; submit again when it has ended")
        return started.ticket

    def _waits_already(self, stage: Stage, before: Mapping[str, SlurmTicket]) -> SlurmTicket | None:
        """The stage's job from an earlier submit. One behind jobs that have failed since is never begun: it is cancelled."""
        ticket = deferred.ticket_of(stage.folder)
        if ticket is None or not ticket.is_active():
            return None
        if self.is_again or self.wheres[stage.step.name].options.refresh_code:
            given = "--again" if self.is_again else "--refresh-code"
            raise ValueError(f"{given}: stage {stage.step.name} waits or works as {ticket.in_words()}; first cancel it")
        if {one.job_id for one in before.values()} <= set(deferred.after(stage.folder)):
            _say(f"{stage.step.name} waits or works already ({ticket.in_words()})")
            return ticket
        ticket.cancel()
        return None

    def _defer(self, stage: Stage, before: Mapping[str, SlurmTicket]) -> SlurmTicket:
        options = self.wheres[stage.step.name].options
        waiting = deferred.Stage(
            folder=stage.folder,
            file=stage.step.file,
            overrides=stage.step.overrides,
            needs={name: need.run.path if need.run else need.folder for name, need in stage.needs.items()},
            plan=self.planned[stage.step.name],
            command=self.command,
            belongs_to=self._belongs_to(stage),
            values=stage.values,
            again=self.is_again,
            refresh_code=options.refresh_code,
        )
        name = f"{self.pipeline.name}-{stage.step.name}"
        root = pipeline_stages.runs_root(stage.values)
        return deferred.submit([waiting], self.code, runs_root=root, name=name, after=_all_done(before))[0]

    def _wait(self, stages: Sequence[Stage], jobs: Mapping[str, SlurmTicket]) -> int:
        for stage in stages:
            if (ticket := jobs.get(stage.step.name)) is None:
                continue
            _say(f"stage {stage.step.name} ({ticket.in_words()})")
            run = stage.run if stage.config is not None else _wait_for_the_run(stage, ticket)
            if run is None:
                continue
            options = self.wheres[stage.step.name].options
            if following.follow(options, run, ticket, is_ours=False).is_interrupted:
                return 130
        now = pipeline_stages.look(self.pipeline)
        print(pipeline_stages.table(now))
        words = pipeline_stages.states(now)
        self.failed = [name for name, word in words.items() if word != "done" and not word.startswith("not begun")]
        self.left_out |= {name: "" for name, word in words.items() if word.startswith("not begun")}
        return self._sum_up(len(stages))

    # --- in words

    def _belongs_to(self, stage: Stage) -> dict[str, str]:
        return {"pipeline": self.pipeline.name, "stage": stage.step.name, "pipeline_file": self.pipeline.where}

    def _root(self, name: str) -> str:
        """The stage that failed, of which `name` may only be a victim."""
        while name in self.left_out:
            name = self.left_out[name]
        return f"{name}, which failed or stopped"

    def _fail(self, step: Step, error: Exception) -> None:
        print(f"stage {step.name}: {error}", file=sys.stderr)
        self.failed.append(step.name)

    def _sum_up(self, count: int) -> int:
        if self.failed or self.left_out:
            told = [f"failed or stopped: {', '.join(self.failed)}"] if self.failed else []
            told += [f"not begun, because they need it: {', '.join(self.left_out)}"] if self.left_out else []
            _say(f"{'; '.join(told)}; the same command goes on")
            return 1
        table = shlex.join(["python", "launcher/status.py", "pipeline", self.pipeline.where, *self.pipeline.said])
        _say(f"{count} stages; how they stand: {table}")
        return 0


def _all_done(jobs: Mapping[str, SlurmTicket]) -> str:
    """As sbatch's --dependency has it; empty where what was needed has come to its end since it was looked at."""
    return ":".join(["afterok", *(one.job_id for one in jobs.values())]) if jobs else ""


def _wait_for_the_run(stage: Stage, ticket: SlurmTicket) -> RunDir | None:
    """None where its job ended before there was one."""
    while (run := deferred.run_of(stage.folder)) is None:
        if not ticket.is_active():
            return deferred.run_of(stage.folder)
        time.sleep(_ASK_S)
    return run


def _say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)
