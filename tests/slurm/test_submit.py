"""The launcher on a real SLURM: everything that a mock would only repeat after us."""

from __future__ import annotations

import pytest

from tests.launcher.conftest import Repo, wait_until
from tests.slurm.conftest import Slurm, job_of, kinds, wait_for_end

pytestmark = pytest.mark.slurm


def test_two_nodes_meet_through_gloo_run_the_code_of_the_run_and_meet_again_after_a_requeue(repo: Repo) -> None:
    ended = repo.submit(
        "--wait", "--nodes", "2", "run.name=two", "does=stop_once", "sums=true", "note=a 'b'", timeout_s=180
    )
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
    assert run.code.resolve().parent == repo.path / "runs/.code"
    assert {rank["cwd"] for rank in told} == {str(repo.path)}
    assert f"SLURM job {job_of(run)}" in ended.err
    assert "words on stdout" in (run.scheduler / f"{job_of(run)}_1_log.out").read_text()
    first, second = (repo.started(run, rank=1, start=start) for start in range(2))
    assert first["SLURM_JOB_ID"] == second["SLURM_JOB_ID"] == job_of(run)
    assert first["MASTER_PORT"] != second["MASTER_PORT"]
    assert second["sum"] == 3.0


def test_a_dry_run_shows_the_sbatch_text_with_the_gpus_that_the_partition_has(repo: Repo) -> None:
    ended = repo.submit("--dry-run", "--nodes", "2", "--time", "30", "run.device=auto", "run.name=dry")
    assert ended.code == 0, ended.err
    assert "ranks    4 = 2 node(s) x 2, 2 GPUs per node" in ended.out
    wanted = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=4", "--time=30")
    for line in (*wanted, "--signal=USR2@120", "--requeue"):
        assert f"#SBATCH {line}\n" in ended.out
    assert not list(repo.path.glob("runs/dry*"))


def test_a_run_that_works_is_found_by_the_same_submit_and_ended_by_cancel(quick_repo: Repo, cluster: Slurm) -> None:
    command = ("--nodes", "2", "run.name=signal", "does=wait")
    submitted = quick_repo.submit(*command)
    assert submitted.code == 0, submitted.err
    run = quick_repo.run("signal")
    assert f"run runs/{run.path.name} (SLURM job {job_of(run)})" in submitted.err
    assert f"cancel: python launcher/status.py cancel runs/{run.path.name}" in submitted.err
    wait_until(lambda: (run.path / "starts/1/0.json").exists(), timeout_s=60)

    cluster.tell("scancel", "--signal=USR2", job_of(run))
    wait_until(lambda: run.state == "queued", timeout_s=30)
    repeated = quick_repo.submit(*command)
    assert repeated.code == 0
    assert f"active already, queued:\nrun runs/{run.path.name} (SLURM job {job_of(run)})" in repeated.err
    wait_until(lambda: (run.path / "starts/1/1.json").exists(), timeout_s=60)

    ended = quick_repo.status("cancel", "signal")
    assert ended.code == 0, ended.err
    assert (run.state, run.error.read_text()) == ("failed", "cancelled; the same command goes on with it\n")
    assert cluster.states(job_of(run)) == ["CANCELLED"]
    assert kinds(run) == [("preempted", True), ("cancelled", False)]


def test_a_failed_job_shows_why(quick_repo: Repo) -> None:
    ended = quick_repo.submit("--wait", "--nodes", "2", "run.name=fail", "does=fail", "rank=1", timeout_s=120)
    run = quick_repo.run("fail")
    assert (ended.code, run.state) == (1, "failed")
    assert f"runs/{run.path.name} failed:\n  RuntimeError: the tensors of rank 1 do not fit\n" in ended.err
    assert f"log: runs/{run.path.name}/logs/1.log\n  | " in ended.err


def test_a_rank_that_dies_without_a_word_ends_the_job_when_its_budget_is_spent(quick_repo: Repo) -> None:
    (quick_repo.path / "once.yaml").write_text("scheduler: slurm\nrequeue: {crash: 1}\n")
    command = ("--wait", "--cluster", "once.yaml", "--nodes", "2", "run.name=die", "does=die", "rank=1")
    ended = quick_repo.submit(*command, timeout_s=120)
    run = quick_repo.run("die")
    assert (ended.code, run.state) == (1, "failed")
    assert kinds(run) == [("killed", True), ("killed", False)]
    assert "ended without a word: Killed; not queued again: requeue.crash is 1" in ended.err


def test_what_cannot_be_had_is_told_with_what_there_is_and_sbatch_refusing_in_its_words(
    quick_repo: Repo,
) -> None:
    nowhere = quick_repo.submit("--partition", "nope", "run.name=nowhere")
    assert nowhere.code == 2
    assert "--partition nope  'nope' is no partition of this SLURM; there are: high, main" in nowhere.err
    many = quick_repo.submit("--nodes", "9", "run.name=nowhere")
    assert many.code == 2
    assert "--nodes 9" in many.err
    assert not list(quick_repo.path.glob("runs/nowhere*"))

    refused = quick_repo.submit("--sbatch", "licenses=matlab", "run.name=refused")
    run = quick_repo.run("refused")
    assert (refused.code, run.state) == (2, "planned")
    assert "sbatch refuses" in refused.err
    assert "Invalid license specification" in refused.err
    for ended in (nowhere, many, refused):
        assert "Traceback" not in ended.err
    assert quick_repo.submit("run.name=refused").code == 0
    assert [attempt.kind for attempt in wait_for_end(run, starts=1)] == ["done"]


def test_options_of_sbatch_arrive_as_they_were_given(quick_repo: Repo, cluster: Slurm) -> None:
    words = 'it\'s "a" $(touch oops) `b`'
    ended = quick_repo.submit("--wait", "run.name=options", "--comment", words, "--cpus-per-task", "3", timeout_s=120)
    run = quick_repo.run("options")
    assert ended.code == 0, ended.err
    shown = cluster.tell("scontrol", "-o", "show", "job", job_of(run))
    assert f"Comment={words}" in shown
    assert quick_repo.started(run, 0)["OMP_NUM_THREADS"] == "3"
    assert not list(quick_repo.path.rglob("oops"))
