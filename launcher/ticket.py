"""What the scheduler gave us for a submitted run: a process on this machine or a SLURM job. Is it still at it? End it.

A ticket outlives the command that submitted, and may be older than the machine's last start: a pid counts only together
with the time when its process began.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import time
from dataclasses import dataclass
from typing import Protocol

from launcher.clusters import cluster
from launcher.starts import processes
from retrieval_train.rundir import RunDir, State, read_json, write_json, write_text

ENDED: tuple[State, ...] = ("preempted", "failed", "done")
# SLURM's words for a job that is not over; a requeued one is COMPLETING for a while before it is PENDING again
ACTIVE = {
    *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"),
    *("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
}


class Ticket(Protocol):
    def is_active(self) -> bool:
        """Whether the run still waits or works. Raises ValueError when that cannot be seen from here."""
        ...

    def cancel(self) -> None:
        """Ask the run to end; it may save first."""
        ...

    def last_words(self) -> str:
        """Why it is no longer active, as far as the scheduler knows."""
        ...

    def in_words(self) -> str: ...


@dataclass(frozen=True)
class LocalTicket:
    """The controller of a local run: the first process of a session and group of its own."""

    pid: int
    started: int
    boot: str
    host: str

    @classmethod
    def of(cls, pid: int) -> LocalTicket:
        return cls(pid, processes.started(pid) or 0, processes.boot_id(), socket.gethostname())

    def is_active(self) -> bool:
        if self.host != socket.gethostname():
            raise ValueError(f"it was started on {self.host}, and only there one can see whether it still runs")
        if self.boot != processes.boot_id():
            return False
        begun = processes.started(self.pid)
        # a pid is not given again while its group lives: a stranger under this pid means that all of ours are gone
        return begun == self.started if begun is not None else bool(processes.group_members(self.pid))

    def cancel(self) -> None:
        if not self.is_active():
            return
        if processes.started(self.pid) is not None:
            os.kill(self.pid, signal.SIGTERM)  # the controller passes it on, and sees to it
        else:
            processes.end(processes.group_members(self.pid), patience_s=30)

    def kill(self) -> None:
        """End all its processes at once."""
        if self.is_active():
            processes.end(processes.group_members(self.pid), patience_s=0)

    def last_words(self) -> str:
        reboot = " and the machine was started again since" if self.boot != processes.boot_id() else ""
        return f"{self.in_words()} is gone{reboot}"

    def in_words(self) -> str:
        return f"pid {self.pid} on {self.host}"


@dataclass(frozen=True)
class SlurmTicket:
    job_id: str

    def is_active(self) -> bool:
        try:
            state = cluster.job_state(self.job_id)
        except cluster.NoAnswer as error:
            raise ValueError(
                f"it is {self.in_words()}, and SLURM does not say whether that still runs: {error}"
            ) from error
        return state is not None and state[0] in ACTIVE

    def cancel(self) -> None:
        cluster.cancel(self.job_id)

    def last_words(self) -> str:
        """SLURM forgets jobs after minutes; its accounting, where there is one, does not."""
        with contextlib.suppress(cluster.NoAnswer):
            if (state := cluster.job_state(self.job_id)) is not None:
                return f"{self.in_words()} ended as {state[0]}" + (f" ({state[1]})" if state[1] else "")
        recorded = cluster.recorded_state(self.job_id)
        return f"{self.in_words()} ended as {recorded}" if recorded else f"SLURM has forgotten {self.in_words()}"

    def in_words(self) -> str:
        return f"SLURM job {self.job_id}"


def write(run: RunDir, ticket: LocalTicket | SlurmTicket, *, durable: bool = True) -> None:
    write_json(run.ticket, dataclasses.asdict(ticket), durable=durable)


def read(run: RunDir) -> Ticket | None:
    """The ticket of the run's last submit."""
    try:
        values = read_json(run.ticket)
    except FileNotFoundError:
        return None
    return SlurmTicket(**values) if "job_id" in values else LocalTicket(**values)


def settle(run: RunDir, ticket: Ticket, *, patience_s: float = 0.0) -> State:
    """The state of a run that is no longer active. Who died without a word has failed, and `error.txt` says so.

    `patience_s`: how long a shared file system may take to show here what was written on a node.
    """
    until = time.monotonic() + patience_s
    while (state := run.state) not in ENDED and time.monotonic() < until:
        time.sleep(0.5)
    if state in ENDED:
        assert state is not None
        return state
    if read(run) != ticket:  # a newer submit's by now
        return state or "failed"
    if not run.error.exists():
        write_text(run.error, f"the run ended without a word: {ticket.last_words()}\n")
    run.set_state("failed")
    return "failed"
