"""Whether a run is still at it must be answered rightly after a crash of the machine, too."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher import folder, ticket
from launcher.clusters import cluster
from launcher.starts import processes
from launcher.ticket import LocalTicket, SlurmTicket
from retrieval_train.rundir import RunDir


def test_a_ticket_is_active_as_long_as_its_process_lives() -> None:
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    mine = LocalTicket.of(child.pid)
    assert mine.is_active()
    mine.cancel()
    until = time.monotonic() + 10
    while mine.is_active() and time.monotonic() < until:  # a zombie, which nobody has waited for, is not alive
        time.sleep(0.02)
    assert not mine.is_active()
    child.wait()
    assert not mine.is_active()


def test_a_stranger_under_the_same_pid_is_not_our_run() -> None:
    mine = LocalTicket.of(os.getpid())
    assert mine.is_active()
    assert not dataclasses.replace(mine, started=mine.started - 1).is_active()
    assert not dataclasses.replace(mine, boot="before the crash").is_active()


def test_a_run_whose_first_process_died_is_active_while_others_of_its_group_live() -> None:
    script = "import subprocess as s; s.Popen(['sleep', '60'], stdout=s.DEVNULL); print(flush=True); input()"
    first = subprocess.Popen(
        [sys.executable, "-c", script], start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout is not None
    first.stdout.readline()
    mine = LocalTicket.of(first.pid)
    first.kill()
    first.wait()
    assert mine.is_active()
    mine.cancel()
    assert not mine.is_active()
    assert processes.group_members(first.pid) == []


def test_a_run_of_another_machine_is_neither_started_twice_nor_called_dead(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.set_state("running")
    ticket.write(run, dataclasses.replace(LocalTicket.of(os.getpid()), host="elsewhere"))
    with pytest.raises(ValueError, match=r"is running: it was started on elsewhere.*remove .*ticket\.json"):
        folder.active_ticket(run)
    assert run.state == "running"


def test_a_slurm_that_does_not_answer_does_not_make_a_job_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run = RunDir(tmp_path / "run")
    run.set_state("queued")
    ticket.write(run, SlurmTicket("4711"))
    with pytest.raises(ValueError, match="SLURM job 4711, and SLURM does not say whether that still runs: squeue"):
        folder.active_ticket(run)
    assert run.state == "queued"


@pytest.mark.parametrize(
    ("answer", "active"),
    [("PENDING|Priority", True), ("COMPLETING|None", True), ("TIMEOUT|TimeLimit", False), ("", False)],
)
def test_a_slurm_job_is_active_until_slurm_says_how_it_ended(
    answer: str, active: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ask", lambda command: answer)
    assert SlurmTicket("7").is_active() is active


def test_a_run_that_died_without_a_word_has_failed_and_says_what_slurm_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ask", lambda command: "NODE_FAIL|NodeDown")
    run = RunDir(tmp_path / "run")
    run.set_state("running")
    ticket.write(run, SlurmTicket("8"))
    assert ticket.settle(run, SlurmTicket("7")) == "running", "a newer submit has it"
    ticket.write(run, SlurmTicket("7"))
    assert ticket.settle(run, SlurmTicket("7")) == "failed"
    assert run.error.read_text() == "the run ended without a word: SLURM job 7 ended as NODE_FAIL (NodeDown)\n"


def test_a_run_that_is_worked_on_by_hand_is_not_started_beside_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.set_state("running")
    with pytest.raises(ValueError, match=r"seems to run, started by hand: it wrote \d s ago"):
        folder.active_ticket(run)
    long_ago = time.time() - 600
    os.utime(run.path / "state", (long_ago, long_ago))
    assert folder.active_ticket(run) is None
