"""The batch step of a SLURM job, on its first node: starts the ranks by srun, says why they ended, and queues the run again.

    python -m launcher.starts.supervise FOLDER [--srun OPTION ...] -- COMMAND OF ONE RANK

Nobody waits on the login node: this process decides, by `attempts.decide`, and SLURM's own requeue brings it back. Of an
end that took this process along (a lost node, a preemption without warning) the next start finds the open attempt, and
asks SLURM what became of it. The ranks themselves save and leave; they know nothing of the queue.

Imports no torch: it must not cost the ranks a core.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from jobs import failure as failures
from jobs.failure import Failure
from launcher import ticket as tickets
from launcher.clusters.cluster import NoAnswer
from launcher.starts import attempts, bad_nodes, slurm_job, tasks, verdict
from launcher.starts.attempts import Attempt, Requeue
from launcher.starts.bad_nodes import Incident
from launcher.starts.verdict import Death, Seen
from launcher.ticket import LocalTicket, SlurmTicket
from retrieval_train.config import check
from retrieval_train.rundir import RunDir, read_json, write_text

log = logging.getLogger("launcher.starts.supervise")

_TICKET_S = 60.0  # for the submit to write down which job it got
_ENDED_S = 120.0  # after a requeue SLURM ends the job's processes well within this
_EXCLUDE_S = 20.0  # SLURM takes other nodes for a job only while that waits, which it does a moment after the requeue
_CANCEL_S = 60  # what the ranks get to save when their user cancels a run of an allocation
_LATE_S = 75.0  # SLURM warns up to a minute early
_LAST_S = 20.0  # before the time limit: who has not saved by then is queued again unsaved, since afterwards nobody can
_ASK_AGAIN_S = 600.0  # for the time limit, where SLURM has named none


class _OutOfTime(Exception):
    """Raised where the supervisor waits for srun."""


class Supervisor:
    def __init__(self, run: RunDir, job_id: str, *, in_queue: bool = True) -> None:
        """`job_id` is what SLURM calls this job; `in_queue`: it is a job of sbatch, which can be queued again."""
        plan = read_json(run.plan)
        self._run, self._job_id, self._in_queue = run, job_id, in_queue
        self._budgets = check(Requeue, plan.get("requeue", {}), where=str(run.plan))
        self._signal_delay_s = float(plan["signal_delay_s"])
        self._counts_steps = plan["job"] == "train"
        self._sbatch: Mapping[str, object] = plan.get("sbatch", {})
        self._srun: subprocess.Popen[str] | None = None
        self._lost: tuple[str, ...] = ()
        self._terminated = False
        self._has_limit = False

    # --- one start

    def start(self, srun: Sequence[str]) -> int | None:
        """The exit code of the batch step, 0 only when the run is done; None where another start is to follow."""
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGUSR2, self._on_usr2)
        if self._run.state == "done":  # a stage that somebody else has done meanwhile
            return 0
        if not self._is_mine():
            return 1
        nodes = slurm_job.my_nodes()
        if (stop := self._account_for_the_start_before()) is not None:
            return self._give_up(stop)
        history = attempts.read(self._run)
        number = history[-1].number + 1 if history else 0
        attempt = Attempt(number, self._job_id, nodes, time.time(), attempts.step_of(self._run))
        if self._in_queue and (unwanted := sorted(set(nodes) & set(self._to_leave_out()))):
            words = f"SLURM gave {', '.join(unwanted)}, which failed before (`status.py nodes`)"
            ended = replace(attempt, ended=time.time(), kind="bad_node", words=words)
            return self._follow_up(attempts.decide(self._of_this_submit(history), ended, self._budgets))
        attempts.write(self._run, attempt)
        self._run.set_state("queued")
        failures.clear(self._run)
        log.info("start %d of %s on %s", number, self._run.path.name, ", ".join(nodes))
        seen = self._watch(srun, nodes)
        if any(later.number > number for later in attempts.read(self._run)):
            log.info("SLURM took this start for lost, and another one has the run now: this one leaves it alone")
            return None
        is_over = self._run.state in ("done", "preempted") or seen.ran_out
        if self._in_queue and self._terminated and not is_over:
            log.info("ended by SLURM: cancelled, out of time, or a node is lost; who comes next will know")
            if seen.lost:
                attempts.write(self._run, replace(attempt, at_fault=seen.lost))
            self._run.set_state("queued")
            failures.clear(self._run)
            return None
        ended = verdict.of(self._run, attempt, seen, signal_delay_s=self._signal_delay_s)
        ended = replace(ended, step=verdict.step_of(self._run, counts_steps=self._counts_steps))
        ended = attempts.decide(self._of_this_submit(history), ended, self._budgets) if self._in_queue else ended
        return self._follow_up(ended)

    def _follow_up(self, ended: Attempt) -> int | None:
        attempts.write(self._run, ended)
        self._remember(ended)
        log.info("start %d ended: %s%s", ended.number, ended.kind, f": {ended.words}" if ended.words else "")
        if ended.kind == "done":
            return 0
        return self._back_into_the_queue(ended) if ended.queued_again else self._give_up(ended)

    def _is_mine(self) -> bool:
        """Whether the run's ticket names this job: the command that submitted it may have been killed, or been told that
        sbatch failed when it had not, and a later one have started another job. Without any ticket the run is ours.
        """
        until = time.monotonic() + _TICKET_S
        while (ticket := tickets.read(self._run)) is None and time.monotonic() < until:
            time.sleep(0.5)
        if ticket is None:
            from launcher import folder

            with folder.only_one_submits(self._run.path.parent, patience_s=600):  # who is at it will have a ticket
                if (ticket := tickets.read(self._run)) is None:
                    tickets.write(self._run, SlurmTicket(self._job_id))
                    return True
        if isinstance(ticket, LocalTicket):
            is_mine = not self._in_queue and ticket.pid == os.getpid()
        else:
            is_mine = self._in_queue and ticket == SlurmTicket(self._job_id)
        if not is_mine:
            log.info("the run belongs to %s: this job leaves it alone", ticket.in_words())
        return is_mine

    def _watch(self, srun: Sequence[str], nodes: Sequence[str]) -> Seen:
        """Until srun has ended, or the time limit is too near; its messages go to the log."""
        death: Death | None = None
        ran_out = False
        try:
            self._call_before_the_limit()
            self._srun = subprocess.Popen(
                srun, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
            )
            assert self._srun.stderr is not None
            is_ending = False
            for line in self._srun.stderr:
                log.info("%s", line.rstrip())
                is_ending = is_ending or "Terminating" in line  # after it srun ends the others, who are not to blame
                if not is_ending and (death is None or not death.is_silent):
                    death = verdict.death_of(line) or death
                self._lost = tuple(dict.fromkeys((*self._lost, *slurm_job.lost(line, nodes))))
            self._srun.wait()
        except _OutOfTime:
            ran_out = self._run.state not in ("done", "preempted")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        is_cancelled = self._terminated and not self._in_queue
        return Seen(death, self._lost, self._is_late(), ran_out, is_cancelled)

    def _call_before_the_limit(self) -> None:
        """A job that SLURM has ended for its time cannot be queued again by anybody."""
        signal.signal(signal.SIGALRM, self._on_alarm)
        if self._in_queue:
            self._set_alarm(slurm_job.seconds_left(self._job_id))

    def _set_alarm(self, left_s: float | None) -> None:
        if left_s is None:
            signal.setitimer(signal.ITIMER_REAL, _ASK_AGAIN_S)
        elif left_s:
            self._has_limit = True
            signal.setitimer(signal.ITIMER_REAL, max(left_s - _LAST_S, 0.9 * left_s))

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        """SLURM itself tells every process of a job in the queue; in an allocation the user means this run alone."""
        self._terminated = True
        if not self._in_queue:
            self._tell_ranks(signal.SIGUSR2)  # srun passes it on; by SIGTERM it would kill them after SLURM's KillWait
            signal.alarm(_CANCEL_S)

    def _on_usr2(self, number: int, frame: FrameType | None) -> None:
        if not self._in_queue:
            self._tell_ranks(signal.SIGUSR2)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if not self._in_queue:
            self._tell_ranks(signal.SIGTERM)
            return
        left_s = slurm_job.seconds_left(self._job_id, timeout_s=_LAST_S / 4)
        if self._has_limit if left_s is None else left_s < 1.5 * _LAST_S:
            raise _OutOfTime
        self._set_alarm(left_s)  # an admin has given more

    def _tell_ranks(self, number: signal.Signals) -> None:
        if self._srun is not None:
            self._srun.send_signal(number)

    def _is_late(self) -> bool:
        """Whether the time limit of this start is as good as reached."""
        left_s = slurm_job.seconds_left(self._job_id) if self._in_queue else None
        return left_s is not None and left_s <= self._signal_delay_s + _LATE_S

    # --- the starts before

    def _account_for_the_start_before(self) -> Attempt | None:
        """Close an attempt that ended together with its supervisor; it, if it was the last one that the budget allows."""
        known = attempts.read(self._run)
        if not known or known[-1].kind is not None:
            return None
        *history, last = known
        if not self._in_queue:
            slurm_job.end_steps(self._job_id, self._run.path.name)
        is_mine = self._in_queue and last.job_id == self._job_id  # else somebody has submitted the run again since
        step = verdict.step_of(self._run, counts_steps=self._counts_steps)
        ended = verdict.of_the_start_before(last, step=step, is_recent=is_mine)
        ended = attempts.decide(self._of_this_submit(history), ended, self._budgets) if is_mine else ended
        attempts.write(self._run, ended)
        self._remember(ended)
        log.info("start %d before this one: %s: %s", ended.number, ended.kind, ended.words)
        return ended if is_mine and not ended.queued_again else None

    def _of_this_submit(self, history: Sequence[Attempt]) -> list[Attempt]:
        """A new submit has new budgets: its user has seen how the one before ended."""
        return [attempt for attempt in history if attempt.job_id == self._job_id]

    def _remember(self, ended: Attempt) -> None:
        if ended.at_fault and ended.kind in ("node_failure", "bad_node"):
            incident = Incident(time.time(), self._run.path.name, ended.kind, ended.words)
            bad_nodes.note(self._run.path.parent, ended.at_fault, incident)

    def _to_leave_out(self) -> tuple[str, ...]:
        """None where the user named the nodes: SLURM takes no others."""
        if "nodelist" in self._sbatch:
            return ()
        runs_root = self._run.path.parent
        starts = self._of_this_submit(attempts.read(self._run))
        certain = {node for attempt in starts if attempt.kind == "bad_node" for node in attempt.at_fault}
        return tuple(sorted({*bad_nodes.to_leave_out(runs_root), *(certain & set(bad_nodes.read(runs_root)))}))

    # --- what follows

    def _back_into_the_queue(self, ended: Attempt) -> int | None:
        self._run.set_state("queued")
        failures.clear(self._run)
        try:
            instead = slurm_job.requeue(self._job_id)
        except NoAnswer as error:
            instead = f"not to be reached: {error}"
        if instead:
            is_cancelled = self._terminated and ended.kind == "preempted"
            words = f"{ended.words}; not queued again: SLURM job {self._job_id} is {instead}"
            ended = replace(ended, kind="cancelled" if is_cancelled else ended.kind, words=words, queued_again=False)
            attempts.write(self._run, ended)
            return self._give_up(ended)
        log.info("queued again")
        if leave_out := self._to_leave_out():
            unwanted = [str(self._sbatch["exclude"])] if "exclude" in self._sbatch else []
            is_told = slurm_job.leave_out(self._job_id, (*unwanted, *leave_out), timeout_s=_EXCLUDE_S)
            log.info("%s %s", "without" if is_told else "SLURM does not leave out", ", ".join(leave_out))
        until = time.monotonic() + _ENDED_S
        while not self._terminated and time.monotonic() < until:
            time.sleep(0.2)
        return None

    def _give_up(self, ended: Attempt) -> int:
        """The words are the ranks' own, where they had some; SLURM cancels what depends on this job."""
        run = self._run
        has_saved = run.state == "preempted" or ended.kind in ("preempted", "timed_out")
        if not has_saved and failures.read(run) is None and ended.kind is not None and ended.kind != "done":
            failures.tell(run, 0, Failure(ended.kind, ended.words, ended.at_fault), is_verdict=True)
        run.set_state("preempted" if has_saved else "failed")
        if not run.error.exists():
            write_text(run.error, f"{ended.words}\nThe same command goes on with it.\n")
        elif "not queued again" in ended.words:
            first, _, rest = run.error.read_text(encoding="utf-8").partition("\n")
            write_text(run.error, f"{first}\nnot queued again{ended.words.partition('not queued again')[2]}\n{rest}")
        return 1


def srun_command(run: RunDir, srun: Sequence[str], command: Sequence[str]) -> list[str]:
    """Each task's output lies in the folder of its run, also where the job is an array of many."""
    output = str(run.scheduler / f"{tasks.job_id()}_%t_log")
    return [
        *("srun", "--unbuffered", f"--output={output}.out", f"--error={output}.err", "--open-mode=append"),
        *("--kill-on-bad-exit=1", f"--job-name={run.path.name}", *srun, *command),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launcher.starts.supervise", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--srun", action="append", default=[], metavar="OPTION")
    parser.add_argument("--allocation", action="store_true", help="the job is not ours: it cannot be queued again")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(argv)
    try:
        run = tasks.mine(options.folder)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    run.scheduler.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.StreamHandler(sys.stderr), logging.FileHandler(run.scheduler / "supervisor.log")],
    )
    supervisor = Supervisor(run, tasks.job_id(), in_queue=not options.allocation)
    os.environ |= {"SUBMITIT_EXECUTOR": "slurm", "LAUNCHER_RUN": str(run.path)}
    try:
        code = supervisor.start(srun_command(run, options.srun, options.command))
    except Exception as error:  # it must not end a run without a word
        log.error("%s", "".join(traceback.format_exception(error)))
        if not run.error.exists():
            write_text(
                run.error, f"the supervisor failed: {type(error).__name__}: {error}\nThe same command goes on.\n"
            )
        run.set_state("failed")
        code = 1
    if code is not None:
        tasks.ended(options.folder, run)
    return 1 if code is None else code


if __name__ == "__main__":
    sys.exit(main())
