"""`--cluster allocation`: runs by srun on the nodes of a salloc, one after the other, as a user has them in a shell."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest

from launcher.starts import attempts
from retrieval_train.rundir import RunDir, read_json
from tests.launcher.conftest import Ended, Repo, wait_until

pytestmark = pytest.mark.slurm

ALLOCATION = ("launcher/submit.py", "--cluster", "allocation", "config=noop.yaml")


@pytest.fixture(scope="module")
def held(repo: Repo) -> Iterator[Repo]:
    """The repo as in the shell of a salloc of two nodes, whose -n is none of ours."""
    command = ["salloc", "--no-shell", "-N2", "-n4", "--ntasks-per-node=2"]
    told = subprocess.run(command, env=repo.env, cwd=repo.path, check=True, capture_output=True, text=True, timeout=60)
    granted = re.search(r"Granted job allocation (\d+)", told.stderr)
    assert granted, told.stderr
    job = {"SLURM_JOB_ID": granted[1], "SLURM_NTASKS": "4", "SLURM_NPROCS": "4", "SLURM_NNODES": "2"}
    node_list = subprocess.run(
        ["squeue", "-h", "-j", granted[1], "-o", "%N"], env=repo.env, check=True, capture_output=True, text=True
    ).stdout.strip()
    job |= {"SLURM_JOB_NODELIST": node_list, "SLURM_JOB_NUM_NODES": "2", "SLURM_TASKS_PER_NODE": "2(x2)"}
    yield Repo(repo.path, repo.env | job)
    subprocess.run(["scancel", granted[1]], env=repo.env, check=True, timeout=30)


def submit(held: Repo, *args: str) -> Ended:
    return held.python(*ALLOCATION, *args, timeout_s=90)


def test_two_runs_of_an_allocation_meet_on_the_nodes_that_they_ask_for(held: Repo) -> None:
    whole, part = submit(held, "run.name=whole", "sums=true"), submit(held, "run.name=part", "--nodes", "1")
    assert (whole.code, part.code) == (0, 0), whole.err + part.err
    two = [held.started(held.run("whole"), rank) for rank in range(2)]
    one = held.started(held.run("part"), 0)
    assert ([rank["host"] for rank in two], {rank["sum"] for rank in two}) == (["n1", "n2"], {3.0})
    assert (one["WORLD_SIZE"], one["LOCAL_WORLD_SIZE"], one["MASTER_ADDR"]) == ("1", "1", one["host"])
    assert one["MASTER_PORT"] != two[0]["MASTER_PORT"], "two runs of one allocation may be active at once"


def test_a_rank_that_fails_or_dies_ends_the_run_with_its_reason(held: Repo) -> None:
    failed = submit(held, "run.name=fail", "does=fail", "rank=1")
    died = submit(held, "run.name=die", "does=die", "rank=1")
    assert (failed.code, died.code) == (1, 1)
    assert "RuntimeError: the tensors of rank 1 do not fit" in failed.err
    assert "rank 1 on n2 ended without a word: Killed" in died.err
    kinds = [attempts.read(held.run(name))[-1] for name in ("fail", "die")]
    assert [(last.kind, last.queued_again) for last in kinds] == [("error", False), ("killed", False)]


def test_ctrl_c_saves_and_stops_and_the_same_command_goes_on(held: Repo) -> None:
    # longer than the wait for the signal, shorter than the test's patience
    args = (*ALLOCATION, "run.name=stop", "steps=16", "step_s=0.5")
    child = held.start(*args)
    run = _both_started(held, "stop")
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, run.state) == (1, "preempted"), err
    assert "saves and stops; Ctrl-C once more ends it at once" in err
    assert [start.kind for start in attempts.read(run)] == ["preempted"]
    assert held.python(*args, timeout_s=90).code == 0
    assert [start.kind for start in attempts.read(run)] == ["preempted", "done"]


def test_ranks_whose_srun_was_killed_are_gone_before_the_run_goes_on(held: Repo) -> None:
    child = held.start(*ALLOCATION, "run.name=lost", "steps=1000", "step_s=0.5")
    run = _both_started(held, "lost")
    os.killpg(read_json(run.ticket)["pid"], signal.SIGKILL)
    child.communicate(timeout=60)
    (left,) = _steps(held)  # SLURM lets them run on
    child = held.start(*ALLOCATION, "run.name=lost", "steps=1000", "step_s=0.5")
    wait_until(lambda: left not in _steps(held), timeout_s=30)
    assert held.status("cancel", "lost").code == 0
    child.communicate(timeout=60)


def _both_started(held: Repo, name: str) -> RunDir:
    wait_until(lambda: all((held.run(name).path / f"starts/{rank}/0.json").exists() for rank in range(2)), timeout_s=60)
    return held.run(name)


def _steps(held: Repo) -> list[str]:
    command = ["squeue", "-h", "-s", "-j", held.env["SLURM_JOB_ID"], "-o", "%i"]
    told = subprocess.run(command, env=held.env, check=True, capture_output=True, text=True, timeout=30).stdout
    return [step for step in told.split() if not step.endswith(("extern", "interactive"))]
