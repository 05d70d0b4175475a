"""Looks after the ranks of a local run: starts them, ends all of them when one dies, and writes down why.

submitit's own controller waits until every task has ended and tells nobody how: after one rank was killed, the others
would sit in a collective until its time-out. This one is the first process of a session of its own, so that the run
outlives the command, the terminal and the login that started it.

    python -m launcher.starts.controller RUN_DIR --ranks 2 -- COMMAND OF ONE RANK

SIGTERM asks the ranks to end, SIGUSR2 (and the time limit, a little before) to save and stop.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

from jobs import failure as failures
from jobs.failure import Failure, Kind
from launcher import ticket as tickets
from launcher.starts import attempts, processes
from launcher.starts.attempts import Attempt
from retrieval_train.rundir import RunDir, write_text

_FAIL_S = 1.0  # what ranks get to fail by themselves after another did, and to write their logs
_STOP_S = 10.0  # what they get to leave after the job has said that it saved and stops
_CANCEL_S = 60.0  # what they get to save when they are asked to end
_KILL_S = 5.0  # from SIGTERM to SIGKILL
_TICKET_S = 60.0  # for the submit that started us to write down whom it started


class Controller:
    def __init__(self, run: RunDir, *, limit_s: float | None = None, signal_delay_s: float = 0.0) -> None:
        self.run = run
        self.ranks: list[subprocess.Popen[bytes]] = []
        self._reason: tuple[Kind, str] | None = None
        self._is_warned = False
        self._term_at: float | None = None
        self._kill_at: float | None = None
        self._limit_at = time.monotonic() + limit_s if limit_s else None
        self._warn_at = self._limit_at - signal_delay_s if self._limit_at else None
        self._ended_by_us: set[int] = set()
        self._unexplained: int | None = None  # the rank that ended first, when it did not say why

    def start(self, command: list[str], *, num_ranks: int) -> None:
        signal.signal(signal.SIGTERM, self._cancel)
        signal.signal(signal.SIGUSR2, lambda number, frame: self._send(signal.SIGUSR2))
        job = str(os.getpid())
        for rank in range(num_ranks):
            env = dict(os.environ)
            env |= {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": job, "SUBMITIT_LOCAL_NTASKS": str(num_ranks)}
            env |= {"SUBMITIT_LOCAL_GLOBALID": str(rank), "SUBMITIT_LOCAL_LOCALID": str(rank)}
            env |= {"SUBMITIT_LOCAL_NODEID": "0", "SUBMITIT_LOCAL_JOB_NUM_NODES": "1"}
            out, err = (self.run.scheduler / f"{job}_{rank}_log.{kind}" for kind in ("out", "err"))
            with out.open("ab") as stdout, err.open("ab") as stderr:
                process = subprocess.Popen(
                    command,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    # a rank that does not listen yet would die of it
                    preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
                )
                self.ranks.append(process)

    def watch(self) -> None:
        """Until every rank has ended; then the run's state and reason are written, where the job did not."""
        while any(rank.poll() is None for rank in self.ranks):
            self._look(time.monotonic())
            time.sleep(0.05)
        processes.end([pid for pid in processes.group_members(os.getpid()) if pid != os.getpid()])
        self._write_down_why()

    def _look(self, now: float) -> None:
        if self._kill_at is None and self._one_has_failed():
            self._end(now, after_s=_FAIL_S, kill_after_s=_KILL_S)
        if self._kill_at is None and self.run.state == "preempted":
            self._end(now, after_s=_STOP_S, kill_after_s=_KILL_S)
        if self._warn_at is not None and now > self._warn_at:
            self._warn_at, self._is_warned = None, True
            self._send(signal.SIGUSR2)
        if self._limit_at is not None and now > self._limit_at:
            self._limit_at = None
            self._reason = "timed_out", "the run was not done within --time; the same command goes on with it"
            self._end(now, after_s=0.0, kill_after_s=_KILL_S)
        if self._term_at is not None and now > self._term_at:
            self._term_at = None
            self._note_who_left_no_word()
            self._send(signal.SIGTERM)
        if self._kill_at is not None and now > self._kill_at:
            self._send(signal.SIGKILL)

    def _one_has_failed(self) -> bool:
        """By exit code or, while it hangs on its way out, by the state it wrote."""
        return any(rank.poll() not in (None, 0) for rank in self.ranks) or self.run.state == "failed"

    def _end(self, now: float, *, after_s: float, kill_after_s: float) -> None:
        self._term_at = now + after_s
        self._kill_at = now + after_s + kill_after_s

    def _cancel(self, number: int, frame: FrameType | None) -> None:
        self._reason = "cancelled", "cancelled; the same command goes on with it"
        self._end(time.monotonic(), after_s=0.0, kill_after_s=_CANCEL_S)

    def _send(self, number: signal.Signals) -> None:
        for rank, process in enumerate(self.ranks):
            if process.poll() is None:
                if number != signal.SIGUSR2:
                    self._ended_by_us.add(rank)
                process.send_signal(number)

    def _note_who_left_no_word(self) -> None:
        """Before the ranks that we end put down theirs. A Python error ends with 1, and is in error.txt by now.

        Other codes are deaths outside of Python; error.txt may then tell of another rank, whose collective broke.
        """
        failed = {rank: code for rank, process in enumerate(self.ranks) if (code := process.poll())}
        mine = {rank: code for rank, code in failed.items() if rank not in self._ended_by_us}
        died = [rank for rank, code in mine.items() if code != 1]
        silent = died or ([] if self.run.error.exists() else list(mine))
        if self._unexplained is None and silent:
            self._unexplained = silent[0]

    def _write_down_why(self) -> None:
        self._note_who_left_no_word()
        state, rank = self.run.state, self._unexplained
        if state == "done" or (state == "preempted" and rank is None):
            return
        if self._reason:
            self._fail(*self._reason, rank=None)
        elif rank is not None:
            self._fail("killed", f"rank {rank} {_end_in_words(self.ranks[rank].returncode)}", rank=rank)
        elif state != "failed":
            self._fail("error", "all ranks ended, but the job did not say that it is done", rank=0)

    def _fail(self, kind: Kind, reason: str, *, rank: int | None) -> None:
        where = "" if rank is None else f"(rank {rank}; {self.run.log(rank)})\n"
        failures.tell(self.run, rank or 0, Failure(kind, reason), is_verdict=True)
        write_text(self.run.error, f"{reason}\n{where}")
        self.run.set_state("failed")

    def how_it_ended(self) -> tuple[attempts.Ending, str]:
        """Kind and words, after `watch`."""
        state = self.run.state
        if state == "done":
            return "done", ""
        if state == "preempted":
            return ("timed_out" if self._is_warned else "preempted"), "saved and stopped"
        told = failures.read(self.run)
        return (told.failure.kind, told.failure.words) if told else ("error", "no reason told")


def _end_in_words(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and did not say why"
    name = signal.Signals(-code).name
    if -code == signal.SIGKILL:
        return f"was ended by {name}: by hand, or by the kernel out of memory (`dmesg` tells; a smaller batch may help)"
    return f"was ended by {name} ({signal.strsignal(-code)})"


def _is_ours(run: RunDir) -> bool:
    """Whether the run's ticket names this process: the submit that started it may have been killed before it wrote one,
    and the next submit has then started another controller."""
    until = time.monotonic() + _TICKET_S
    while time.monotonic() < until:
        ticket = tickets.read(run)
        if ticket is not None:
            return isinstance(ticket, tickets.LocalTicket) and ticket.pid == os.getpid()
        time.sleep(0.05)
    return False


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launcher.starts.controller", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--limit-s", type=float)
    parser.add_argument("--signal-delay-s", type=float, default=0.0)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(argv)
    run = RunDir(options.run_dir)
    controller = Controller(run, limit_s=options.limit_s, signal_delay_s=options.signal_delay_s)
    if not _is_ours(run):
        return 1
    attempt = Attempt(
        len(attempts.read(run)), str(os.getpid()), (socket.gethostname(),), time.time(), attempts.step_of(run)
    )
    attempts.write(run, attempt)
    failures.clear(run)
    controller.start(options.command, num_ranks=options.ranks)
    controller.watch()
    kind, words = controller.how_it_ended()
    attempts.write(run, replace(attempt, ended=time.time(), step=attempts.step_of(run), kind=kind, words=words))
    return 0 if run.state == "done" else 1


if __name__ == "__main__":
    sys.exit(main())
