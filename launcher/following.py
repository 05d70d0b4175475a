"""After the submit: a run is followed to its end, or left to itself, and its user is told how it ended."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from launcher import ticket as tickets
from launcher.looks import tracked, watch
from launcher.ticket import LocalTicket, Ticket
from retrieval_train.rundir import RunDir, State


@dataclass(frozen=True)
class Ending:
    """How following a run ended."""

    code: int
    """The command's exit code."""
    is_interrupted: bool = False
    """Whether by Ctrl-C."""


def follow(options: argparse.Namespace, run: RunDir, ticket: Ticket, *, is_ours: bool) -> Ending:
    """Ctrl-C stops a run of this machine that this command started; any other one goes on."""
    wait = isinstance(ticket, LocalTicket) if options.wait is None else options.wait
    how = f"follow: {how_to('logs', run)} -f\ncancel: {how_to('cancel', run)}"
    about = [f"run {watch.shown(run.path)} ({ticket.in_words()})", *tracked.lines(run)]
    print("\n".join(about), file=sys.stderr)
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
    code = _say_how_it_ended(run, state, time.monotonic() - begun)
    for line in tracked.uploads(run):
        print(line, file=sys.stderr)
    return Ending(code, is_interrupted)


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


def how_to(verb: str, run: RunDir) -> str:
    """A command line of status.py."""
    script = watch.shown(Path(__file__).resolve().with_name("status.py"))
    return f"python {shlex.quote(script)} {verb} {shlex.quote(watch.shown(run.path))}"
