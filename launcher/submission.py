"""One run from a checked config to its end: planned, handed over, followed."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from jobs import failure as failures
from jobs import job
from jobs.job import JobConfig
from launcher import folder, following
from launcher import options as options_of
from launcher import ticket as tickets
from launcher.clusters.place import Place
from launcher.looks import activity, watch
from launcher.looks.activity import Activity
from launcher.plan import Plan, make
from launcher.snapshot import Code
from launcher.starts import executors, tasks
from launcher.starts.launch import Launch
from launcher.ticket import LocalTicket, SlurmTicket, Ticket
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir, read_json


@dataclass(frozen=True)
class Ready:
    """A run that can be submitted: nothing of it is written yet."""

    config: JobConfig
    run: RunDir
    plan: Plan
    link: Path


# --- from options and config to a plan


def ready(options: argparse.Namespace, place: Place, config: JobConfig) -> Ready:
    """The run of that config. Raises ValueError for all that does not fit."""
    run = RunDir(Path.cwd() / job.run_folder(config).path)
    request, device = options_of.request(options), config.run.device
    plan = make(
        request, place.cluster, place.there, job=config.job, device=device, run_dir=run.path, by_hand=place.by_hand
    )
    if problems := config.problems_with(plan.num_ranks):
        raise ConfigError("config", problems)
    link = folder.link_of(config)
    _refuse_own_link(options, link)
    return Ready(config, run, plan, link)


def _refuse_own_link(options: argparse.Namespace, link: Path) -> None:
    """Once the link leads to the new run, the same command would begin another one from that."""
    if options.continue_from is not None and Path(options.continue_from).absolute() == link.absolute():
        run = watch.shown(link.resolve())
        problem = f"{options.continue_from} will lead to the new run, of the same name; say {run}, or another run.name"
        raise ConfigError("command line", [("--continue-from", problem)])


# --- the submit


@dataclass(frozen=True)
class Started:
    """What became of one run at the submit."""

    ticket: Ticket | None
    """None where there is nothing to follow: it is done already, to be started by hand, or cannot be started."""
    is_ours: bool = False
    """Whether this command started it."""
    error: Exception | None = None
    """Why it cannot be started."""


def start(
    options: argparse.Namespace,
    one: Ready,
    *,
    command: str,
    code: Code | None = None,
    belongs_to: Mapping[str, str] | None = None,
) -> Started:
    """Submit one run. Raises ValueError for what its user has to correct.

    `code`: what the run executes; None takes today's, if it has none.
    """
    with folder.only_one_submits(one.run.path.parent):
        ticket = folder.active_ticket(one.run)
        begun = _begin(options, one, ticket, command=command, code=code, belongs_to=belongs_to)
        if ticket is not None:
            print(f"active already, {one.run.state}:", file=sys.stderr)
        if begun is not None:
            return begun
        if options.print_command:
            return Started(None, is_ours=True)
        return Started(_hand_over(one), is_ours=True)


def start_all(
    options: argparse.Namespace,
    many: Sequence[Ready],
    *,
    command: str,
    code: Code,
    name: str,
    parallel: int,
    belongs_to: Mapping[str, str],
) -> list[Started]:
    """Submit runs to SLURM as a job array `name`, `parallel` at once. Those that are active or done stay as they are."""
    found: list[Started | None] = []
    with folder.only_one_submits(many[0].run.path.parent):
        seen = activity.look([one.run for one in many])
        for one in many:
            try:
                ticket = _active_ticket(one.run, seen[one.run.path])
                found.append(_begin(options, one, ticket, command=command, code=code, belongs_to=belongs_to))
            except (ValueError, OSError) as error:
                found.append(Started(None, error=error))
        new = [one for one, begun in zip(many, found, strict=True) if begun is None]
        made = _hand_over_arrays(new, name, parallel=parallel)
    return [
        begun if begun is not None else Started(made[one.run.path], is_ours=True)
        for one, begun in zip(many, found, strict=True)
    ]


def _active_ticket(run: RunDir, seen: Activity) -> Ticket | None:
    """Raises ValueError where it cannot be seen whether the run is active."""
    if seen.is_active is None:
        raise ValueError(f"{watch.shown(run.path)} is {run.state}: {seen.words}")
    return seen.ticket if seen.is_active else None


def _begin(
    options: argparse.Namespace,
    one: Ready,
    ticket: Ticket | None,
    *,
    command: str,
    code: Code | None,
    belongs_to: Mapping[str, str] | None,
) -> Started | None:
    """Make the run folder, for a run that is to be handed over; else what there is of it."""
    run = one.run
    if ticket is not None:
        _refuse_while_active(options, run, ticket)
        return Started(ticket)
    if run.state == "done" and not options.again:
        return Started(None)
    if options.again and run.state:
        print(f"the old run is kept as {watch.shown(folder.move_aside(run))}", file=sys.stderr)
    folder.prepare(
        run,
        one.config,
        one.plan,
        command=command,
        refresh_code=options.refresh_code,
        code=code,
        belongs_to=belongs_to,
    )
    folder.point(one.link, run)
    return None


def _refuse_while_active(options: argparse.Namespace, run: RunDir, ticket: Ticket) -> None:
    given = [name for name in ("again", "refresh_code", "print_command") if getattr(options, name)]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise ValueError(
            f"{option}: {watch.shown(run.path)} is active ({ticket.in_words()}); first {following.how_to('cancel', run)}"
        )


def _hand_over(one: Ready) -> LocalTicket | SlurmTicket:
    plan, run = one.plan, one.run
    with _handing_over([run]):
        ticket = executors.submit(plan, run, Launch(plan.job, str(run.path)))
        tickets.write(run, ticket)
    return ticket


def _hand_over_arrays(many: Sequence[Ready], name: str, *, parallel: int) -> dict[Path, Ticket]:
    """One array for the runs of each code: a run that goes on keeps the code that it began with."""
    groups: dict[Path, list[Ready]] = {}
    for one in many:
        groups.setdefault(one.run.code.resolve(), []).append(one)
    made: dict[Path, Ticket] = {}
    for code, group in groups.items():
        here, runs = array_folder(group[0].run.path.parent, name), [one.run for one in group]
        tasks.write(here, runs)
        launches = [Launch(one.plan.job, str(one.run.path)) for one in group]
        with _handing_over(runs):
            found = executors.submit_array(
                group[0].plan,
                launches,
                code=code,
                folder=here,
                name=name,
                runs_root=runs[0].path.parent,
                parallel=parallel,
            )
            for run, ticket in zip(runs, found, strict=True):
                tickets.write(run, ticket, durable=False)
                made[run.path] = ticket
    return made


def array_folder(runs_root: Path, name: str) -> Path:
    """A new folder for submitit's files of one job array."""
    return runs_root / ".arrays" / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S-%f}"


@contextlib.contextmanager
def _handing_over(runs: Sequence[RunDir]) -> Iterator[None]:
    for run in runs:
        run.set_state("queued", durable=False)  # before it starts: from then on the state is the job's
    with _signals_wait():
        try:
            yield
        except BaseException:
            for run in runs:
                run.set_state("planned")
            raise


def resubmit(run: RunDir) -> Ticket:
    """Hand over a run that has ended before its end once more, with the plan and the code of its last submit."""
    with folder.only_one_submits(run.path.parent):
        if (ticket := folder.active_ticket(run)) is not None:
            raise ValueError(f"{watch.shown(run.path)} is active ({ticket.in_words()})")
        if run.state == "done":
            raise ValueError(f"{watch.shown(run.path)} is done; submit it with --again to run it from the start")
        plan = Plan.from_dict(read_json(run.plan))
        failures.clear(run)
        for stale in (run.progress, run.ticket):
            stale.unlink(missing_ok=True)
        with _handing_over([run]):
            made = executors.submit(plan, run, Launch(plan.job, str(run.path)))
            tickets.write(run, made)
        return made


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """A run that was started must not be forgotten: Ctrl-C and a lost terminal take effect after its ticket is written."""
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        os.kill(os.getpid(), caught[0])
