"""A start on a SLURM whose programs say what each test wants; on a real one: tests/slurm/test_requeue.py."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import ticket as tickets
from launcher.folder import only_one_submits
from launcher.starts import attempts, supervise
from launcher.starts.attempts import Attempt
from launcher.starts.supervise import Supervisor
from launcher.ticket import SlurmTicket
from retrieval_train.rundir import RunDir, write_json
from tests.launcher.conftest import program


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDir]:
    """Of job 7 on n1, whose limit is two seconds; `asked` has what was asked of SLURM."""
    mine = RunDir(tmp_path / "runs" / "it-1")
    mine.path.mkdir(parents=True)
    write_json(mine.plan, {"job": "train", "signal_delay_s": 60})
    tickets.write(mine, SlurmTicket("7"))
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    program(tmp_path, "scontrol", f'echo "$@" >> \'{tmp_path}/asked\'; case "$*" in *hostnames*) echo n1;; esac')
    answers(tmp_path, left="0:02")
    for name, value in {"_LAST_S": 1.6, "_ENDED_S": 0.1, "_LATE_S": 0.0}.items():
        monkeypatch.setattr(supervise, name, value)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGALRM)}
    yield mine
    for number, handler in handlers.items():
        signal.signal(number, handler)


def answers(tmp_path: Path, *, left: str) -> None:
    """What squeue says of the job, which runs."""
    program(tmp_path, "squeue", f"case \"$*\" in *%L*) echo '{left}';; *) echo 'RUNNING|None';; esac")


def requeues(tmp_path: Path) -> int:
    return (tmp_path / "asked").read_text().count("requeue")


def ranks(command: str) -> list[str]:
    return ["/bin/sh", "-c", command]


def test_who_has_not_saved_is_queued_again_before_the_limit(run: RunDir, tmp_path: Path) -> None:
    began = time.monotonic()
    assert Supervisor(run, "7").start(ranks("exec sleep 30")) is None
    assert time.monotonic() - began < 10
    (only,) = attempts.read(run)
    assert (only.kind, only.queued_again) == ("timed_out", True) and "saving took longer" in only.words
    assert requeues(tmp_path) == 1


def test_a_job_that_was_given_more_time_goes_on(run: RunDir, tmp_path: Path) -> None:
    """Its first limit comes and goes."""
    supervisor = Supervisor(run, "7")
    look = supervisor._on_alarm
    looked: list[int] = []

    def prolonged(number: int, frame: object) -> None:
        looked.append(number)
        answers(tmp_path, left="1:00:00")
        look(number, None)

    supervisor._on_alarm = prolonged  # type: ignore[method-assign]
    assert supervisor.start(ranks(f"sleep 3; echo done > '{run.path}/state'")) == 0
    assert looked == [signal.SIGALRM]
    assert [attempt.kind for attempt in attempts.read(run)] == ["done"] and requeues(tmp_path) == 0


def test_a_start_that_slurm_took_for_lost_leaves_the_run_to_the_next(run: RunDir, tmp_path: Path) -> None:
    """Its node lost the network and not its power: it lives on, and ends after another has begun."""
    later = Attempt(1, "7", ("n2",), time.time(), 0)
    line = f"from launcher.starts.attempts import *; write(RunDir(__import__('pathlib').Path({str(run.path)!r})), {later!r})"
    python = f"cd '{Path(__file__).parents[2]}' && '{sys.executable}' -c \"{line}\"; exit 1"
    answers(tmp_path, left="1:00:00")
    assert Supervisor(run, "7").start(ranks(python)) is None
    first, second = attempts.read(run)
    assert (first.kind, second) == (None, later)
    assert requeues(tmp_path) == 0


def test_a_job_without_a_ticket_waits_for_a_submit_that_is_at_it(run: RunDir) -> None:
    """That one was told that this job could not be made, and makes another."""
    run.ticket.unlink()
    code = f"""
from pathlib import Path
from launcher.starts import supervise
from retrieval_train.rundir import RunDir
supervise._TICKET_S = 0.1
print("here", flush=True)
raise SystemExit(supervise.Supervisor(RunDir(Path({str(run.path)!r})), "7").start(["true"]))
"""
    with only_one_submits(run.path.parent):
        job = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)
        assert job.stdout is not None and job.stdout.readline() == b"here\n"
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(timeout=1)
        tickets.write(run, SlurmTicket("8"))
    assert job.wait(timeout=30) == 1
    assert tickets.read(run) == SlurmTicket("8") and attempts.read(run) == []
