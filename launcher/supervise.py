"""The batch step of a SLURM job, on its first node: starts the ranks by srun, says why they ended, and queues the run again.

    python -m launcher.supervise FOLDER [--srun OPTION ...] -- COMMAND OF ONE RANK

Nobody waits on the login node: this process decides, by `attempts.decide`, and SLURM's own requeue brings it back. Of an
end that took this process along (a lost node, a preemption without warning) the next start finds the open attempt, and
asks SLURM what became of it. The ranks themselves save and leave; they know nothing of the queue.

Imports no torch: it must not cost the ranks a core.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from launcher import attempts, bad_nodes, slurm_job, tasks
from launcher.attempts import Attempt, Requeue
from launcher.bad_nodes import Incident
from launcher.cluster import NoAnswer
from retrieval_train.config import check
from retrieval_train.rundir import RunDir, read_json, write_text

log = logging.getLogger("launcher.supervise")

_REQUEUED_S = 120.0  # after a requeue SLURM ends the job's processes well within this
_EXCLUDE_S = 20.0  # SLURM takes other nodes for a job only while that waits, which it does a moment after the requeue
_CANCEL_S = 60  # what the ranks get to save when their user cancels a run of an allocation
_LATE_S = 75.0  # SLURM warns up to a minute early
_WORDS: dict[str, attempts.Ending] = {  # SLURM's, for the end of a start that nobody else wrote down
    "CANCELLED": "cancelled",
    "NODE_FAIL": "node_failure",
    "OUT_OF_MEMORY": "out_of_memory",
    "TIMEOUT": "timed_out",
}
_GONE = re.compile(r"srun: error: (?P<node>\S+): tasks? (?P<task>\d+)[^:]*: (?P<how>.*)")


@dataclass(frozen=True)
class Death:
    """The first task that srun saw end badly."""

    node: str
    rank: int
    how: str
    """srun's words: Killed, Segmentation fault, Exited with exit code 1."""

    @property
    def is_silent(self) -> bool:
        """Whether it could not say why: Python's own errors end with a code."""
        return not self.how.startswith("Exited with exit code")

    @property
    def was_told(self) -> bool:
        """Whether the warning ended it: the rank was not yet far enough to listen."""
        return self.how == "User defined signal 2"


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

    # --- one start

    def start(self, srun: Sequence[str]) -> int:
        """The exit code of the batch step: 0 only when the run is done."""
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGUSR2, self._on_usr2)
        signal.signal(signal.SIGALRM, self._on_alarm)
        if self._run.state == "done":  # a stage that somebody else has done meanwhile
            return 0
        nodes = slurm_job.my_nodes()
        if (stop := self._account_for_the_last_start()) is not None:
            return self._give_up(stop)
        if self._in_queue and (unwanted := set(nodes) & set(self._to_leave_out())):
            log.info("this job got %s, which failed before: back into the queue", ", ".join(sorted(unwanted)))
            return self._back_into_the_queue(None)
        history = attempts.read(self._run)
        number = history[-1].number + 1 if history else 0
        attempt = Attempt(number, self._job_id, nodes, time.time(), attempts.step_of(self._run))
        attempts.write(self._run, attempt)
        log.info("start %d of %s on %s", number, self._run.path.name, ", ".join(nodes))
        death = self._watch(srun, nodes)
        is_over = self._run.state in ("done", "preempted")
        if self._in_queue and self._terminated and not is_over and not self._is_late():
            log.info("ended by SLURM: cancelled, or a node is lost; who comes next will know")
            if self._lost:
                attempts.write(self._run, replace(attempt, at_fault=self._lost))
            return 1
        ended = self._ended(attempt, death)
        ended = attempts.decide(self._of_this_submit(history), ended, self._budgets) if self._in_queue else ended
        attempts.write(self._run, ended)
        self._remember(ended)
        log.info("start %d ended: %s%s", number, ended.kind, f": {ended.words}" if ended.words else "")
        if ended.kind == "done":
            return 0
        return self._back_into_the_queue(ended) if ended.queued_again else self._give_up(ended)

    def _watch(self, srun: Sequence[str], nodes: Sequence[str]) -> Death | None:
        """Until srun has ended; its messages go to the log."""
        self._srun = subprocess.Popen(srun, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert self._srun.stderr is not None
        death, is_ending = None, False
        for line in self._srun.stderr:
            log.info("%s", line.rstrip())
            is_ending = is_ending or "Terminating" in line  # after it srun ends the others, who are not to blame
            if (found := _GONE.match(line)) and not is_ending and (death is None or not death.is_silent):
                death = Death(found["node"], int(found["task"]), found["how"].strip())
            self._lost = tuple(dict.fromkeys((*self._lost, *slurm_job.lost(line, nodes))))
        self._srun.wait()
        return death

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
        self._tell_ranks(signal.SIGTERM)

    def _tell_ranks(self, number: signal.Signals) -> None:
        if self._srun is not None:
            self._srun.send_signal(number)

    # --- why it ended

    def _ended(self, attempt: Attempt, death: Death | None) -> Attempt:
        step = attempts.step_of(self._run) if self._counts_steps else None
        attempt = replace(attempt, ended=time.time(), step=step)
        state = self._run.state
        if state == "done":
            return replace(attempt, kind="done")
        if state == "preempted":
            return replace(attempt, kind="timed_out" if self._is_late() else "preempted", words="saved and stopped")
        if self._terminated and not self._in_queue:
            return replace(attempt, kind="cancelled", words="cancelled")
        if death is not None and death.was_told:
            words = "told to stop before it had begun"
            return replace(attempt, kind="timed_out" if self._is_late() else "preempted", words=words)
        told = read_json(self._run.failure) if self._run.failure.exists() and self._run.error.exists() else None
        is_odd = told is None or told["kind"] in ("error", "lost_rank")  # what the others say of a rank that is gone
        if self._lost and is_odd:
            words = f"lost {', '.join(self._lost)}"
            return replace(attempt, kind="node_failure", words=words, at_fault=self._lost)
        if death is not None and death.is_silent and is_odd:
            words = f"rank {death.rank} on {death.node} ended without a word: {death.how}"
            kind: attempts.Ending = "out_of_memory" if "memory" in death.how.lower() else "killed"
            return replace(attempt, kind=kind, words=words)
        if told is not None:
            return replace(attempt, kind=told["kind"], words=told["words"], at_fault=tuple(told["nodes"]))
        if self._terminated and self._is_late():
            return replace(attempt, kind="timed_out", words="the time limit came before it had saved")
        words = f"rank {death.rank} on {death.node}: {death.how}" if death else "srun ended, and no rank said why"
        return replace(attempt, kind="error", words=words)

    def _is_late(self) -> bool:
        """Whether the time limit of this start is as good as reached."""
        left_s = slurm_job.seconds_left(self._job_id) if self._in_queue else None
        return left_s is not None and left_s <= self._signal_delay_s + _LATE_S

    def _account_for_the_last_start(self) -> Attempt | None:
        """Close an attempt that ended together with its supervisor; it, if it was the last one that the budget allows."""
        known = attempts.read(self._run)
        if not known or known[-1].kind is not None:
            return None
        *history, last = known
        if not self._in_queue:
            slurm_job.end_steps(self._job_id, self._run.path.name)
        state, lost = slurm_job.how_the_last_start_ended(last.job_id, last.nodes)
        kind = _WORDS.get(state, "node_failure" if lost else "preempted")
        lost = (last.at_fault or lost) if kind == "node_failure" else ()
        words = (
            f"lost {', '.join(lost)}" if lost else f"ended by SLURM{f' as {state}' if state else ''} without warning"
        )
        step = attempts.step_of(self._run) if self._counts_steps else None
        ended = replace(last, ended=time.time(), step=step, kind=kind, words=words, at_fault=lost)
        is_mine = self._in_queue and last.job_id == self._job_id  # else somebody has submitted the run again since
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
        certain = [node for a in attempts.read(self._run) if a.kind == "bad_node" for node in a.at_fault]
        return tuple(sorted({*bad_nodes.to_leave_out(self._run.path.parent), *certain}))

    # --- what follows

    def _back_into_the_queue(self, ended: Attempt | None) -> int:
        self._run.set_state("queued")
        for stale in (self._run.error, self._run.failure):
            stale.unlink(missing_ok=True)
        try:
            slurm_job.requeue(self._job_id)
        except NoAnswer as error:
            words = f"SLURM job {self._job_id} is not queued again: {error}"
            return self._give_up(replace(ended, words=f"{ended.words}; {words}", queued_again=False) if ended else None)
        log.info("queued again")
        if leave_out := self._to_leave_out():
            unwanted = [str(self._sbatch["exclude"])] if "exclude" in self._sbatch else []
            is_told = slurm_job.leave_out(self._job_id, (*unwanted, *leave_out), timeout_s=_EXCLUDE_S)
            log.info("%s %s", "without" if is_told else "SLURM does not leave out", ", ".join(leave_out))
        time.sleep(_REQUEUED_S)
        raise SystemExit(f"not ended within {_REQUEUED_S:g} s of the requeue")

    def _give_up(self, ended: Attempt | None) -> int:
        """The words are the ranks' own, where they had some; what depends on this job is cancelled by whoever waits."""
        run = self._run
        if ended is not None and ended.kind not in ("done", "preempted", "timed_out"):
            run.set_state("failed")
        elif run.state in ("queued", "running"):
            run.set_state("preempted")
        words = ended.words if ended else "not queued again"
        if not run.error.exists():
            write_text(run.error, f"{words}\nThe same command goes on with it.\n")
        elif "not queued again" in words:
            first, _, rest = run.error.read_text(encoding="utf-8").partition("\n")
            write_text(run.error, f"{first}\nnot queued again{words.partition('not queued again')[2]}\n{rest}")
        return 1


def srun_command(run: RunDir, srun: Sequence[str], command: Sequence[str]) -> list[str]:
    """Each task's output lies in the folder of its run, also where the job is an array of many."""
    output = str(run.scheduler / f"{tasks.job_id()}_%t_log")
    return [
        *("srun", "--unbuffered", f"--output={output}.out", f"--error={output}.err", "--open-mode=append"),
        *("--kill-on-bad-exit=1", f"--job-name={run.path.name}", *srun, *command),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launcher.supervise", description=__doc__)
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
    code = supervisor.start(srun_command(run, options.srun, options.command))
    tasks.ended(options.folder, run)
    return code


if __name__ == "__main__":
    sys.exit(main())
