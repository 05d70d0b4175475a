"""The controller of a local run, with ranks that are small scripts."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher import ticket as tickets
from launcher.starts import processes
from retrieval_train.rundir import RunDir
from tests.launcher.conftest import ROOT

# patience of a test, not of a training
_MAIN = (
    "import sys; from launcher.starts import controller; controller._STOP_S = controller._FAIL_S = controller._KILL_S = 0.3; "
    "sys.exit(controller.main(sys.argv[1:]))"
)
_RANK = (
    "import os, pathlib, signal, sys, time; rank = int(os.environ['SUBMITIT_LOCAL_GLOBALID']); "
    "run = pathlib.Path(sys.argv[1]); state = (run / 'state').write_text; error = (run / 'error.txt').write_text; "
)
_STUBBORN = "[signal.signal(n, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGINT)]; time.sleep(60)"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.scheduler.mkdir(parents=True)
    run.set_state("queued")
    return run


def control(run: RunDir, script: str, *options: str, ranks: int = 2) -> float:
    """Run the ranks under a controller; how many seconds it took."""
    rank = [sys.executable, "-c", _RANK + script, str(run.path)]
    command = [sys.executable, "-c", _MAIN, str(run.path), "--ranks", str(ranks), *options, "--", *rank]
    begun = time.monotonic()
    controller = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    tickets.write(run, tickets.LocalTicket.of(controller.pid))
    controller.wait(30)
    return time.monotonic() - begun


def test_a_controller_that_is_not_the_runs_own_starts_nothing(run: RunDir) -> None:
    """Its submit was killed before it wrote the ticket, and the next one has started another."""
    tickets.write(run, tickets.LocalTicket.of(1))
    rank = [sys.executable, "-c", _RANK + "(run / 'started').touch()", str(run.path)]
    command = [sys.executable, "-m", "launcher.starts.controller", str(run.path), "--ranks", "1", "--", *rank]
    assert subprocess.run(command, cwd=ROOT, start_new_session=True, timeout=30, check=False).returncode == 1
    assert (run.state, (run.path / "started").exists()) == ("queued", False)


def test_a_rank_that_neither_ends_nor_listens_is_killed_when_another_failed(run: RunDir) -> None:
    seconds = control(run, f"rank or (error('no space\\n'), state('failed'), sys.exit(1)); {_STUBBORN}")
    assert seconds < 10
    assert (run.state, run.error.read_text()) == ("failed", "no space\n")


def test_a_rank_that_hangs_after_it_said_that_it_failed_is_ended(run: RunDir) -> None:
    assert control(run, f"error('no space\\n'); state('failed'); {_STUBBORN}", ranks=1) < 10
    assert (run.state, run.error.read_text()) == ("failed", "no space\n")


def test_a_rank_that_stays_when_the_job_has_stopped_is_ended_and_the_run_can_go_on(run: RunDir) -> None:
    assert control(run, f"rank or (state('preempted'), sys.exit(0)); {_STUBBORN}") < 10
    assert (run.state, run.error.exists()) == ("preempted", False)


def test_the_one_that_died_is_named_and_not_the_one_whose_collective_broke(run: RunDir) -> None:
    broke = "time.sleep(0.1), error('connection closed\\n(rank 0; x)\\n'), state('failed'), sys.exit(1)"
    control(run, f"rank and os.kill(os.getpid(), signal.SIGSEGV); {broke}")
    assert run.error.read_text().startswith("rank 1 was ended by SIGSEGV (Segmentation fault)\n(rank 1; ")


def test_the_time_limit_warns_first_and_then_ends_the_run(run: RunDir) -> None:
    tell = "signal.signal(signal.SIGUSR2, lambda *_: (run / 'warned').touch())"
    assert control(run, f"{tell}; time.sleep(60)", "--limit-s", "1.5", "--signal-delay-s", "0.8", ranks=1) < 10
    assert (run.path / "warned").exists()
    assert (run.state, run.error.read_text()) == (
        "failed",
        "the run was not done within --time; the same command goes on with it\n",
    )


def test_ranks_that_end_well_without_a_word_are_no_success(run: RunDir) -> None:
    control(run, "pass")
    assert (run.state, run.error.read_text().partition("\n")[0]) == (
        "failed",
        "all ranks ended, but the job did not say that it is done",
    )


def test_what_ranks_leave_behind_ends_with_them(run: RunDir) -> None:
    script = "import subprocess; child = subprocess.Popen(['sleep', '60']); (run / 'pid').write_text(str(child.pid)); "
    control(run, script + "state('done')", ranks=1)
    assert run.state == "done"
    assert processes.started(int((run.path / "pid").read_text())) is None
