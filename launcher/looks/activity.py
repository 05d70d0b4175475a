"""Which runs are alive: one question to SLURM for all of them, however many there are."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher import folder
from launcher import ticket as tickets
from launcher.clusters import cluster
from launcher.ticket import LocalTicket, SlurmTicket, Ticket
from retrieval_train.rundir import RunDir

_AT_IT = ("queued", "running")
_SEEN_S = 60.0
"""So long a shared file system may show here what was there before a node wrote `done`."""
_ASK_S = 10.0  # a client of a dead SLURM tries again for a minute


@dataclass(frozen=True)
class Activity:
    """What is known of a run's processes at one moment."""

    ticket: Ticket | None
    is_active: bool | None
    """None: it cannot be seen from here, and `words` say why."""
    words: str = ""
    """SLURM's reason why the job waits; of one that has its nodes, that it starts."""
    nodes: str = ""
    """As SLURM writes them: n[1-4]."""
    job_state: str = ""
    """SLURM's word; empty where there is no job."""
    is_settled: bool = True
    """False: it has just ended, and its last words may not be seen here yet."""


@dataclass(frozen=True)
class _Job:
    state: str
    reason: str
    nodes: str
    ended: str
    """By SLURM's clock, as 2026-01-31T12:00:00; of a job that is not over when it will be, or N/A."""


def look(runs: Sequence[RunDir], *, believe_ended: bool = False) -> dict[Path, Activity]:
    """By the run's path. A run that died under its ticket is settled: it has failed, and says so. One whose job of SLURM
    ended within the last minute keeps its state until then.

    `believe_ended`: a state that says that the run is over is taken at its word, although its processes may be on their
    way out, or back into the queue.
    """
    held = {run.path: _ticket_of(run) for run in runs}
    asked = [run for run in runs if not believe_ended or run.state in _AT_IT]
    ids = {ticket.job_id for run in asked if isinstance(ticket := held[run.path], SlurmTicket)}
    jobs, silence = _ask_slurm(sorted(ids))
    found = {run.path: _given_up(held[run.path]) for run in runs}
    found |= {run.path: _activity(run, held[run.path], jobs, silence) for run in asked}
    for run in asked:
        seen = found[run.path]
        if seen.ticket is None or seen.is_active is not False or not seen.is_settled:
            continue
        if run.state in _AT_IT:  # read again: it may have ended meanwhile
            tickets.settle(run, seen.ticket)
    return found


def active_jobs(ids: Sequence[str]) -> list[str]:
    """Those of the SLURM jobs that wait or run. Raises ValueError where SLURM does not answer."""
    jobs, silence = _ask_slurm(ids)
    if silence:
        raise ValueError(f"SLURM does not answer: {silence}")
    return [number for number in ids if number in jobs and jobs[number].state in tickets.ACTIVE]


def _given_up(ticket: Ticket | str | None) -> Activity:
    return Activity(None if isinstance(ticket, str) else ticket, False)


def _ticket_of(run: RunDir) -> Ticket | str | None:
    """A ticket, or why there is none that can be read."""
    try:
        return tickets.read(run)
    except (ValueError, TypeError, OSError) as error:
        return f"{run.ticket} cannot be read: {error}"


def _activity(run: RunDir, ticket: Ticket | str | None, jobs: dict[str, _Job], silence: str) -> Activity:
    if isinstance(ticket, str):
        return Activity(None, None, ticket)
    if isinstance(ticket, SlurmTicket):
        if silence:
            return Activity(ticket, None, f"SLURM does not answer: {silence}")
        job = jobs.get(ticket.job_id)
        if job is None:
            return Activity(ticket, False)
        is_active = job.state in tickets.ACTIVE
        return Activity(ticket, is_active, _waits_for(job), job.nodes, job.state, not _has_just_ended(job))
    try:
        if ticket is None:
            folder.active_ticket(run)  # raises where it seems to be run by hand
            return Activity(None, False)
        return Activity(ticket, not _is_surely_gone(ticket) and ticket.is_active())
    except ValueError as error:
        return Activity(ticket, None, str(error))


def _waits_for(job: _Job) -> str:
    return job.reason or ("starting" if job.state == "RUNNING" else "")


def _has_just_ended(job: _Job) -> bool:
    """False of one that never had a node: it has no last words."""
    ended = cluster.seconds_of(job.ended)
    return bool(job.nodes) and ended is not None and time.time() - ended < _SEEN_S


def _is_surely_gone(ticket: Ticket) -> bool:
    """One system call, where `is_active` reads all of /proc: clean asks it of hundreds that ended long ago."""
    if not isinstance(ticket, LocalTicket) or ticket.host != socket.gethostname():
        return False
    try:
        os.killpg(ticket.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # a stranger's by now, or another user's
        return False
    return False


def _ask_slurm(ids: Sequence[str]) -> tuple[dict[str, _Job], str]:
    """Jobs by id, without those that SLURM has forgotten; and its words where it does not answer."""
    if not ids:
        return {}, ""
    # -r: elements of an array that wait would share one line; a name may hold anything, these fields hold no bar
    command = ["squeue", "-h", "-r", "-t", "all", "-j", ",".join(ids), "-o", "%i|%T|%r|%N|%e"]
    try:
        answer = cluster.ask(command, timeout_s=_ASK_S)
    except cluster.NoAnswer as error:
        # it says so of a single job; of several it leaves out those that it does not know
        return {}, "" if "Invalid job id" in str(error) else str(error)
    jobs = {}
    for line in answer.splitlines():
        number, state, reason, nodes, ended = line.split("|", 4)
        jobs[number] = _Job(state, "" if reason == "None" else reason, nodes, ended)
    return jobs, ""
