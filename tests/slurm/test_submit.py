"""The launcher on a real SLURM: everything that a mock would only repeat after us."""

from __future__ import annotations

import subprocess

import pytest

from retrieval_train.rundir import RunDir, read_json
from tests.launcher.conftest import Repo, wait_until

pytestmark = pytest.mark.slurm


def tell_slurm(repo: Repo, *command: str) -> str:
    return subprocess.run(command, env=repo.env, check=True, capture_output=True, text=True, timeout=30).stdout


def job_of(run: RunDir) -> str:
    return str(read_json(run.ticket)["job_id"])


def test_two_nodes_meet_through_gloo_and_run_the_code_of_the_run(repo: Repo) -> None:
    ended = repo.submit("--wait", "--nodes", "2", "run.name=two", "sums=true", "note=a 'b'", timeout_s=120)
    run = repo.run("two")
    assert (ended.code, run.state) == (0, "done"), ended.err
    told = [repo.started(run, rank) for rank in range(2)]
    assert [rank["host"] for rank in told] == ["n1", "n2"]
    assert [(rank["RANK"], rank["LOCAL_RANK"], rank["WORLD_SIZE"], rank["LOCAL_WORLD_SIZE"]) for rank in told] == [
        ("0", "0", "2", "1"),
        ("1", "0", "2", "1"),
    ]
    assert {rank["sum"] for rank in told} == {3.0}
    assert {rank["MASTER_ADDR"] for rank in told} == {"n1"}
    assert {rank["code"] for rank in told} == {str((run.code / "jobs/noop.py").resolve())}
    assert {rank["cwd"] for rank in told} == {str(repo.path)}
    assert f"SLURM job {job_of(run)}" in ended.err
    assert "words on stdout" in (run.scheduler / f"{job_of(run)}_1_log.out").read_text()


def test_a_dry_run_shows_the_sbatch_text_with_the_gpus_that_the_partition_has(repo: Repo) -> None:
    ended = repo.submit("--dry-run", "--nodes", "2", "--time", "30", "run.device=auto", "run.name=dry")
    assert ended.code == 0, ended.err
    assert "ranks    4 = 2 node(s) x 2, 2 GPUs per node" in ended.out
    wanted = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=4", "--time=30")
    for line in (*wanted, "--signal=USR2@120", "--requeue"):
        assert f"#SBATCH {line}\n" in ended.out
    assert not list(repo.path.glob("runs/dry*"))


def test_a_job_that_saved_and_stopped_is_queued_again_and_goes_on(repo: Repo) -> None:
    ended = repo.submit("--wait", "--nodes", "2", "run.name=once", "does=stop_once", "sums=true", timeout_s=180)
    run = repo.run("once")
    assert (ended.code, run.state) == (0, "done"), ended.err
    first, second = (repo.started(run, rank=1, start=start) for start in range(2))
    assert first["SLURM_JOB_ID"] == second["SLURM_JOB_ID"] == job_of(run)
    assert first["MASTER_PORT"] != second["MASTER_PORT"]
    assert second["sum"] == 3.0


def test_a_job_that_does_not_listen_is_queued_again_by_usr2_and_ended_by_cancel(repo: Repo) -> None:
    command = ("--nodes", "2", "run.name=signal", "does=wait")
    submitted = repo.submit(*command)
    assert submitted.code == 0, submitted.err
    run = repo.run("signal")
    assert f"run runs/{run.path.name} (SLURM job {job_of(run)})" in submitted.err
    assert f"cancel: python launcher/status.py cancel runs/{run.path.name}" in submitted.err
    wait_until(lambda: (run.path / "starts/1/0.json").exists(), timeout_s=60)

    tell_slurm(repo, "scancel", "--signal=USR2", job_of(run))
    wait_until(lambda: run.state == "queued", timeout_s=30)
    repeated = repo.submit(*command)
    assert repeated.code == 0
    assert f"active already, queued:\nrun runs/{run.path.name} (SLURM job {job_of(run)})" in repeated.err
    wait_until(lambda: (run.path / "starts/1/1.json").exists(), timeout_s=60)

    ended = repo.status("cancel", "signal")
    assert ended.code == 0, ended.err
    assert (run.state, run.error.read_text()) == ("failed", "cancelled; the same command goes on with it\n")
    assert "CANCELLED" in tell_slurm(repo, "squeue", "-h", "-t", "all", "-j", job_of(run), "-o", "%T")


def test_a_job_is_queued_again_before_its_time_limit_whatever_it_does_then(repo: Repo) -> None:
    """SLURM itself sends the warning, together with SIGCONT, up to a minute early; it looks twice a minute."""
    submitted = repo.submit("--nodes", "2", "--time", "1", "run.name=limit", "does=wait")
    assert submitted.code == 0, submitted.err
    run = repo.run("limit")
    wait_until(lambda: (run.path / "starts/1/1.json").exists(), timeout_s=150)
    assert repo.status("cancel", "limit").code == 0


def test_a_failed_job_shows_why(repo: Repo) -> None:
    ended = repo.submit("--wait", "--nodes", "2", "run.name=fail", "does=fail", "rank=1", timeout_s=120)
    run = repo.run("fail")
    assert (ended.code, run.state) == (1, "failed")
    assert f"runs/{run.path.name} failed:\n  RuntimeError: the tensors of rank 1 do not fit\n" in ended.err
    assert f"log: runs/{run.path.name}/logs/1.log\n  | " in ended.err


def test_a_rank_that_dies_without_a_word_ends_the_job(repo: Repo) -> None:
    ended = repo.submit("--wait", "--nodes", "2", "run.name=die", "does=die", "rank=1", timeout_s=60)
    run = repo.run("die")
    assert (ended.code, run.state) == (1, "failed")
    assert f"the run ended without a word: SLURM job {job_of(run)} ended as FAILED (NonZeroExitCode)" in ended.err
    assert "  | srun: error: n2: task 1: Killed" in ended.err


def test_sbatch_refusing_is_told_in_its_words_and_the_run_can_be_submitted_rightly(repo: Repo) -> None:
    ended = repo.submit("--partition", "nope", "run.name=refused")
    run = repo.run("refused")
    assert (ended.code, run.state) == (2, "planned")
    assert "sbatch refuses" in ended.err
    assert "invalid partition specified: nope" in ended.err
    assert "Traceback" not in ended.err
    assert repo.submit("--wait", "run.name=refused", timeout_s=120).code == 0


def test_options_of_sbatch_arrive_as_they_were_given(repo: Repo) -> None:
    words = 'it\'s "a" $(touch oops) `b`'
    ended = repo.submit(
        "--wait", "run.name=options", "--sbatch", f"comment={words}", "--cpus-per-task", "3", timeout_s=120
    )
    run = repo.run("options")
    assert ended.code == 0, ended.err
    shown = tell_slurm(repo, "scontrol", "-o", "show", "job", job_of(run))
    assert f"Comment={words}" in shown
    assert repo.started(run, 0)["OMP_NUM_THREADS"] == "3"
    assert not list(repo.path.rglob("oops"))
