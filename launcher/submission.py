"""One run from a checked config to its end: planned, handed over, followed."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from jobs import job
from jobs.job import JobConfig
from launcher import cluster as clusters
from launcher import executors, folder, watch
from launcher import options as options_of
from launcher import ticket as tickets
from launcher.cluster import Cluster, Node
from launcher.launch import Launch
from launcher.plan import Plan, There, make
from launcher.snapshot import Code
from launcher.ticket import LocalTicket, Ticket
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir, State


@dataclass(frozen=True)
class Place:
    """Where the command's runs go: asked once, however many they are."""

    cluster: Cluster
    there: There
    by_hand: bool


@dataclass(frozen=True)
class Ready:
    """A run that can be submitted: nothing of it is written yet."""

    config: JobConfig
    run: RunDir
    plan: Plan
    link: Path


@dataclass(frozen=True)
class Ending:
    """How following a run ended."""

    code: int
    """The command's exit code."""
    is_interrupted: bool = False
    """Whether by Ctrl-C."""


# --- from options and config to a plan


def find_place(options: argparse.Namespace) -> Place:
    """The cluster that the options name, or the one that answers. Raises ConfigError."""
    by_hand = options.print_command
    no_slurm = None if options.cluster == "local" or by_hand else clusters.why_no_slurm()
    name = options.cluster or ("local" if no_slurm or by_hand else "slurm")
    cluster = clusters.load(name)
    is_local = cluster.scheduler == "local" or by_hand
    node = clusters.this_machine() if is_local else _slurm_node(cluster, options, no_slurm)
    return Place(cluster, There(cluster=name, node=node, no_slurm=no_slurm), by_hand)


def ready(options: argparse.Namespace, place: Place, config: JobConfig) -> Ready:
    """The run of that config. Raises ValueError for all that does not fit."""
    run = RunDir(Path.cwd() / job.run_folder(config).path)
    request, device = options_of.request(options), config.run.device
    plan = make(
        request, place.cluster, place.there, job=config.job, device=device, run_dir=run.path, by_hand=place.by_hand
    )
    link = folder.link_of(config)
    _refuse_own_link(options, link)
    return Ready(config, run, plan, link)


def _refuse_own_link(options: argparse.Namespace, link: Path) -> None:
    """Once the link leads to the new run, the same command would begin another one from that."""
    if options.continue_from is not None and Path(options.continue_from).absolute() == link.absolute():
        run = watch.shown(link.resolve())
        problem = f"{options.continue_from} will lead to the new run, of the same name; say {run}, or another run.name"
        raise ConfigError("command line", [("--continue-from", problem)])


def _slurm_node(cluster: Cluster, options: argparse.Namespace, no_slurm: str | None) -> Node:
    """A node of the partition. Raises ConfigError where no SLURM answers."""
    asked = f"--cluster {options.cluster or 'slurm'}"
    if no_slurm:
        problem = f"there is no SLURM here ({no_slurm}); --cluster local runs on this machine"
        raise ConfigError("command line", [(asked, problem)])
    try:
        return clusters.partition_node(options.partition or cluster.partition)
    except clusters.NoAnswer as error:
        raise ConfigError("command line", [(asked, f"SLURM does not say what its nodes have: {error}")]) from error


# --- the submit


def start(
    options: argparse.Namespace, one: Ready, *, command: str, code: Code | None = None
) -> tuple[Ticket | None, bool]:
    """The run's ticket, and whether this command started it; no ticket where it is done already, or started by hand.

    `code`: what the run executes; None takes today's, if it has none.
    """
    run = one.run
    with folder.only_one_submits(run.path.parent):
        ticket = folder.active_ticket(run)
        if ticket is not None:
            _refuse_while_active(options, run, ticket)
            return ticket, False
        if run.state == "done" and not options.again:
            return None, False
        if options.again and run.state:
            print(f"the old run is kept as {watch.shown(folder.move_aside(run))}", file=sys.stderr)
        folder.prepare(run, one.config, one.plan, command=command, refresh_code=options.refresh_code, code=code)
        folder.point(one.link, run)
        if options.print_command:
            return None, True
        return _hand_over(one.plan, run), True


def _refuse_while_active(options: argparse.Namespace, run: RunDir, ticket: Ticket) -> None:
    given = [name for name in ("again", "refresh_code", "print_command") if getattr(options, name)]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise ValueError(
            f"{option}: {watch.shown(run.path)} is active ({ticket.in_words()}); first {_status('cancel', run)}"
        )
    print(f"active already, {run.state}:", file=sys.stderr)


def _hand_over(plan: Plan, run: RunDir) -> Ticket:
    run.set_state("queued")  # before it starts: from then on the state is the job's
    with _ctrl_c_waits():
        try:
            ticket = executors.submit(plan, run, Launch(plan.job, str(run.path)))
        except BaseException:
            run.set_state("planned")
            raise
        tickets.write(run, ticket)
    return ticket


@contextlib.contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """A run that was started must not be forgotten: Ctrl-C takes effect after its ticket is written."""
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    before = signal.signal(signal.SIGINT, catch)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


# --- after the submit


def follow(options: argparse.Namespace, run: RunDir, ticket: Ticket, *, is_ours: bool) -> Ending:
    """Ctrl-C stops a run of this machine that this command started; any other one goes on."""
    wait = isinstance(ticket, LocalTicket) if options.wait is None else options.wait
    how = f"follow: {_status('logs', run)} -f\ncancel: {_status('cancel', run)}"
    print(f"run {watch.shown(run.path)} ({ticket.in_words()})", file=sys.stderr)
    if not wait:
        print(how, file=sys.stderr)
        return Ending(0)
    begun, is_interrupted = time.monotonic(), False
    try:
        state = watch.follow(run, ticket)
    except KeyboardInterrupt:
        if not (is_ours and isinstance(ticket, LocalTicket)):
            print(f"\nthe run goes on: {watch.shown(run.path)} ({ticket.in_words()})\n{how}", file=sys.stderr)
            return Ending(130, is_interrupted=True)
        state, is_interrupted = _stop(run, ticket), True
    return Ending(_say_how_it_ended(run, state, time.monotonic() - begun), is_interrupted)


def _stop(run: RunDir, ticket: LocalTicket) -> State:
    """Ctrl-C: the run saves and stops; once more: it ends as it is."""
    print(f"\n{watch.shown(run.path)} saves and stops; Ctrl-C once more ends it at once", file=sys.stderr)
    ticket.cancel()
    try:
        return watch.follow(run, ticket)
    except KeyboardInterrupt:
        ticket.kill()
        return tickets.settle(run, ticket)


def _say_how_it_ended(run: RunDir, state: State, seconds: float) -> int:
    if state == "done":
        print(f"done in {seconds:.0f} s: {watch.shown(run.path)}{watch.results(run)}")
        return 0
    if state == "preempted":
        print(
            f"{watch.shown(run.path)} saved and stopped (preempted); the same command goes on with it", file=sys.stderr
        )
        return 1
    if state != "failed":
        print(f"{watch.shown(run.path)} was taken over by a newer submit, and is {state}", file=sys.stderr)
        return 1
    print(watch.failure(run), file=sys.stderr)
    return 1


def say_done(run: RunDir) -> int:
    """For a run that `start` found done; exit code 0."""
    print(
        f"done already: {watch.shown(run.path)}; --again runs it from the start and keeps this one{watch.results(run)}"
    )
    return 0


def _status(verb: str, run: RunDir) -> str:
    script = watch.shown(Path(__file__).resolve().with_name("status.py"))
    return f"python {shlex.quote(script)} {verb} {shlex.quote(watch.shown(run.path))}"
