"""What one may tell runs after their submit: to end (`cancel`), or to go back into the queue (`requeue`)."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher import ticket as tickets
from launcher.clusters import cluster
from launcher.looks import activity, lookup, watch
from launcher.starts import attempts
from launcher.ticket import LocalTicket, SlurmTicket, Ticket
from retrieval_train.rundir import RunDir, write_text

_CANCEL_S = 90.0
_AGAIN_S = 10.0
_WAITS = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")
_TOLD = "; the same submit goes on with it"

Named = tuple[RunDir, str | None]
"""A run, and the sweep or pipeline by whose name it was asked for."""


def cancel(named: Sequence[Named], runs_root: Path) -> int:
    """End those that are active and wait for it; an exit code. Raises ValueError where none is.

    By the name of a sweep or pipeline also what waits there for its turn, and has no run folder yet.
    """
    groups = sorted({group for _, group in named if group is not None})
    problems, num_stages = _cancel_stages(groups, runs_root)
    seen = activity.look([run for run, _ in named])
    active: list[tuple[RunDir, Ticket]] = []
    odd = []
    for run, group in named:
        at = seen[run.path]
        if at.is_active and at.ticket is not None:
            active.append((run, at.ticket))
        elif at.is_active is None:
            odd.append(f"{watch.shown(run.path)} is {run.state}: {at.words}. {_gone_for_good(run)}")
        elif group is None:
            odd.append(f"{watch.shown(run.path)} is not active: {run.state}")
    if not active and not num_stages:
        raise ValueError("\n".join(odd or [f"no run of {', '.join(groups)} is active"]))
    for text in odd:
        print(text, file=sys.stderr)
    odd += [*problems, *_tell(active)]
    left = _wait(active)
    for run, ticket in left:
        print(f"{watch.shown(run.path)} ({ticket.in_words()}) still runs after {_CANCEL_S:g} s", file=sys.stderr)
    return 1 if left or odd else 0


def _gone_for_good(run: RunDir) -> str:
    return f"If it is gone for good, remove {run.ticket}"


def _cancel_stages(groups: Sequence[str], runs_root: Path) -> tuple[list[str], int]:
    """Problems, and how many were told to end."""
    tickets_of = [ticket for group in groups for ticket in lookup.waiting(group, runs_root)]
    active = activity.active_jobs([ticket.job_id for ticket in tickets_of])
    problems = []
    for job_id in active:
        try:
            cluster.cancel(job_id)
            print(f"ended SLURM job {job_id}, which had not begun", file=sys.stderr)
        except cluster.NoAnswer as error:
            problems.append(f"SLURM job {job_id}: SLURM does not end it: {error}")
            print(problems[-1], file=sys.stderr)
    return problems, len(active)


def _tell(active: Sequence[tuple[RunDir, Ticket]]) -> list[str]:
    problems = []
    for run, ticket in active:
        try:
            ticket.cancel()
        except cluster.NoAnswer as error:
            problems.append(f"{watch.shown(run.path)}: SLURM does not end it: {error}")
            print(problems[-1], file=sys.stderr)
        else:
            print(f"told {ticket.in_words()} to end ({watch.shown(run.path)}); it may save first", file=sys.stderr)
    return problems


def _wait(active: Sequence[tuple[RunDir, Ticket]]) -> list[tuple[RunDir, Ticket]]:
    """Those that have not ended in time; of each other, what became of it is printed."""
    is_local = all(isinstance(ticket, LocalTicket) for _, ticket in active)
    left, until, again_at = list(active), time.monotonic() + _CANCEL_S, time.monotonic() + _AGAIN_S
    while left and time.monotonic() < until:
        seen = activity.look([run for run, _ in left])
        for run, ticket in left:
            if seen[run.path].is_active is False:
                _say_how_it_ended(run, ticket)
        left = [(run, ticket) for run, ticket in left if seen[run.path].is_active is not False]
        if left:
            time.sleep(0.2 if is_local else 1.0)
        if time.monotonic() > again_at:
            again_at += _AGAIN_S
            _cancel_again(left)
    return left


def _cancel_again(left: Sequence[tuple[RunDir, Ticket]]) -> None:
    """Whose supervisor was just queueing the run again came back to life."""
    for _, ticket in left:
        if isinstance(ticket, SlurmTicket):
            with contextlib.suppress(cluster.NoAnswer):  # it is on its way out by the first one
                ticket.cancel()


def _say_how_it_ended(run: RunDir, ticket: Ticket) -> None:
    state = tickets.settle(run, ticket, patience_s=10.0)
    if state == "failed":  # instead of the words of whichever rank was ended first
        write_text(run.error, "cancelled; the same command goes on with it\n")
        _close_the_last_start(run)
    print(f"{watch.shown(run.path)} has ended: {state}{_TOLD}", flush=True)


def _close_the_last_start(run: RunDir) -> None:
    """Its supervisor was ended with it."""
    starts = attempts.read(run)
    if starts and starts[-1].kind is None:
        attempts.write(run, replace(starts[-1], kind="cancelled", ended=time.time(), words="status.py cancel"))


# --- requeue


def requeue(named: Sequence[Named]) -> int:
    """Each: saved and back into the queue where it runs on SLURM, submitted again where it has ended; an exit code.

    Of a sweep or pipeline only those that did not end well. Raises ValueError where nothing is to be done.
    """
    seen = activity.look([run for run, _ in named])
    done, problems = 0, []
    for run, group in named:
        if group is not None and (run.state == "done" or seen[run.path].is_active is not False):
            continue
        try:
            print(f"{watch.shown(run.path)}: {_requeue(run, seen[run.path])}", flush=True)
            done += 1
        except (ValueError, cluster.NoAnswer, OSError) as error:
            problems.append(f"{watch.shown(run.path)}: {error}")
    if not done:
        raise ValueError("\n".join(problems or ["nothing to queue again: all of them are done or active"]))
    for text in problems:
        print(text, file=sys.stderr)
    return 2 if problems else 0


def _requeue(run: RunDir, seen: activity.Activity) -> str:
    """What was done, in words. Raises ValueError."""
    if seen.is_active is None:
        raise ValueError(f"{run.state}: {seen.words}. {_gone_for_good(run)}")
    if seen.is_active and seen.ticket is not None:
        return _back_into_the_queue(run, seen.ticket, seen.job_state)
    if run.state == "done":
        raise ValueError("is done; `submit.py --again` with its config runs it from the start")
    from launcher import submission

    ticket = submission.resubmit(run)
    return f"submitted again with its own code, {ticket.in_words()}"


def _back_into_the_queue(run: RunDir, ticket: Ticket, job_state: str) -> str:
    """The ranks get the signal that a preemption would send: they save, and the supervisor queues the run again.

    By SLURM's word for the job: the run's own state is behind it while the job starts or ends. Raises ValueError.
    """
    if not isinstance(ticket, SlurmTicket):
        raise ValueError(
            f"is active as {ticket.in_words()}, and this machine has no queue: cancel it, then submit again"
        )
    if job_state in _WAITS:
        raise ValueError(f"waits in the queue already ({ticket.in_words()})")
    if job_state != "RUNNING" or (run.state == "queued" and not _has_ranks(ticket)):
        raise ValueError(f"{ticket.in_words()} is {job_state}, and there is no rank to tell; ask again in a moment")
    cluster.ask(["scancel", "--signal=USR2", ticket.job_id], timeout_s=60)  # to the steps, not the batch script
    return f"told {ticket.in_words()} to save and go back into the queue"


def _has_ranks(ticket: SlurmTicket) -> bool:
    """Whether the job has a step beside that of its script."""
    steps = cluster.ask(["squeue", "-h", "-s", "-j", ticket.job_id, "-o", "%i"], timeout_s=60).split()
    return any(step.rpartition(".")[2].isdecimal() for step in steps)
