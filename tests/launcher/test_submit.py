"""`python launcher/submit.py` as a command, with real processes: what a run gets, and how each way to end is told."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from launcher.starts import processes
from retrieval_train.rundir import RunDir, read_json
from tests.launcher.conftest import Repo, wait_until


def test_ranks_know_their_place_and_a_done_run_is_not_run_again(repo: Repo) -> None:
    first = repo.submit("--tasks-per-node", "2", 'note=it\'s "here"')
    run = repo.run()
    assert (first.code, run.state) == (0, "done"), first.err
    assert re.search(r"^done in \d+ s: runs/it-[0-9a-f]{8}\n", first.out)
    assert 'noop 3/3 steps it\'s "here"' in first.err
    for rank in range(2):
        told = repo.started(run, rank)
        assert (told["RANK"], told["WORLD_SIZE"]) == (told["LOCAL_RANK"], told["LOCAL_WORLD_SIZE"]) == (str(rank), "2")
        assert told["MASTER_ADDR"] == "127.0.0.1"
        assert told["MASTER_PORT"] == repo.started(run, 0)["MASTER_PORT"]
        assert told["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 2))
        assert told["cwd"] == str(repo.path)
        assert told["code"] == str((run.code / "jobs/noop.py").resolve())

    second = repo.submit("--tasks-per-node", "1", 'note=it\'s "here"')
    assert second.code == 0
    assert f"done already: runs/{run.path.name}; --again" in second.out
    assert repo.run() == run, "the number of ranks is no part of what a run is"
    assert len(list((run.path / "starts/0").iterdir())) == 1


def test_two_ranks_meet_through_gloo(real_repo: Repo) -> None:
    ended = real_repo.submit("--tasks-per-node", "2", "sums=true", "run.name=gloo")
    assert ended.code == 0, ended.err
    assert [real_repo.started(real_repo.run("gloo"), rank)["sum"] for rank in range(2)] == [3.0, 3.0]


def test_what_is_printed_for_torchrun_runs_by_hand(real_repo: Repo) -> None:
    ended = real_repo.submit("sums=true", "run.name=by-hand", "--print-command")
    run = real_repo.run("by-hand")
    assert (ended.code, run.state) == (0, "planned"), ended.err
    env = real_repo.env | {"PATH": "/usr/bin:/bin"}
    subprocess.run(["bash", "-c", ended.out], cwd=real_repo.path.parent, env=env, check=True, capture_output=True)
    assert run.state == "done"
    told = real_repo.started(run, 0)
    assert (told["sum"], told["cwd"]) == (1.0, str(real_repo.path))
    assert told["code"] == str((run.code / "jobs/noop.py").resolve())


def test_a_dry_run_writes_nothing_and_loads_no_torch(repo: Repo) -> None:
    code = (
        "import sys; from launcher.submit import main; "
        "code = main(['--dry-run', '--tasks-per-node', '2', 'config=noop.yaml']); "
        "print(sorted({'torch', 'deepspeed', 'timm', 'wandb', 'faiss'} & set(sys.modules))); sys.exit(code)"
    )
    before = sorted(path for path in repo.path.rglob("*") if "__pycache__" not in path.parts)
    ended = repo.python("-c", code)
    assert ended.code == 0, ended.err
    assert "ranks    2 = 1 node(s) x 2, no GPU per node" in ended.out
    assert re.search(r"folder   .*/runs/it-[0-9a-f]{8} \(new\)", ended.out)
    assert ended.out.endswith("[]\n")
    assert sorted(path for path in repo.path.rglob("*") if "__pycache__" not in path.parts) == before


def test_submit_works_from_any_folder_and_paths_count_from_there(repo: Repo) -> None:
    (repo.path / "deep").mkdir()
    child = subprocess.run(
        [sys.executable, "../launcher/submit.py", "--dry-run", "config=../noop.yaml"],
        cwd=repo.path / "deep",
        env=repo.env,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert f"{repo.path}/deep/runs/it-" in child.stdout


def test_a_run_folder_says_where_it_comes_from_and_holds_no_secret(repo: Repo) -> None:
    ended = repo.submit("note=a b", env={"WANDB_API_KEY": "s3cr3t-0123", "AWS_SECRET_ACCESS_KEY": "s3cr3t-4567"})
    assert ended.code == 0, ended.err
    run = repo.run()
    plan = read_json(run.plan)
    assert shlex.split(plan["command"])[1:] == ["launcher/submit.py", "note=a b", "config=noop.yaml"]
    assert (plan["cluster"], plan["nodes"], plan["tasks_per_node"], plan["gpus_per_node"]) == ("local", 1, 1, 0)
    assert plan["packages"]["submitit"]
    holding = [path for path in run.path.rglob("*") if path.is_file() and b"s3cr3t" in path.read_bytes()]
    assert holding == []
    assert "note: a b" in run.config.read_text()


def test_a_failed_job_shows_why_and_the_end_of_the_log_of_the_rank_that_failed(repo: Repo) -> None:
    ended = repo.submit("--tasks-per-node", "2", "does=fail", "rank=1", timeout_s=30)
    run = repo.run()
    assert (ended.code, run.state) == (1, "failed")
    assert f"runs/{run.path.name} failed:\n  RuntimeError: the tensors of rank 1 do not fit\n" in ended.err
    assert f"log: runs/{run.path.name}/logs/1.log\n  | " in ended.err
    assert "Traceback (most recent call last)" in ended.err
    assert not processes.group_members(read_json(run.ticket)["pid"]), "the rank that waits was ended, too"


def test_a_users_mistake_is_told_without_a_traceback(repo: Repo) -> None:
    ended = repo.submit("does=refuse")
    assert ended.code == 1
    assert "failed:\n  the set 'food' has no class with two images; make it with --min-images 2\nlog: " in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("die", "rank 1 was ended by SIGKILL: by hand, or by the kernel out of memory"),
        ("exit", "rank 1 ended with exit code 7 and did not say why"),
    ],
)
def test_a_rank_that_dies_without_a_word_ends_the_run(does: str, words: str, repo: Repo) -> None:
    ended = repo.submit("--tasks-per-node", "2", f"does={does}", "rank=1", timeout_s=30)
    run = repo.run()
    assert (ended.code, run.state) == (1, "failed")
    assert words in ended.err
    assert does == "die" or "last words of a library" in ended.err
    assert not processes.group_members(read_json(run.ticket)["pid"])


def test_ctrl_c_stops_the_run_that_the_command_started(repo: Repo) -> None:
    child = repo.start("launcher/submit.py", "config=noop.yaml", "does=wait")
    run = wait_for_progress(repo)
    pid = read_json(run.ticket)["pid"]
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=30)
    assert f"runs/{run.path.name} saves and stops; Ctrl-C once more ends it at once" in told
    assert "cancelled; the same command goes on with it" in told
    assert (child.returncode, processes.group_members(pid)) == (1, [])


def test_ctrl_c_leaves_a_run_going_that_was_started_before_and_cancel_ends_it(repo: Repo) -> None:
    command = ("launcher/submit.py", "config=noop.yaml", "does=wait")
    assert repo.submit("--detach", "does=wait").code == 0
    run = wait_for_progress(repo)
    child = repo.start(*command)
    time.sleep(2)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=20)
    pid = read_json(run.ticket)["pid"]
    assert child.returncode == 130
    assert f"the run goes on: runs/{run.path.name} (pid {pid} on " in told
    assert f"follow: python launcher/status.py logs runs/{run.path.name} -f" in told
    assert (run.state, bool(processes.started(pid))) == ("running", True)

    refused = repo.python(*command, "--refresh-code")
    assert refused.code == 2
    assert f"--refresh-code: runs/{run.path.name} is active (pid {pid}" in refused.err

    second = repo.start(*command)
    table = repo.status("runs")
    assert re.search(rf"{run.path.name} +running +noop 3/3", table.out), table.out + table.err
    ended = repo.status("cancel", "it")
    assert ended.code == 0, ended.err
    assert f"told pid {pid} on " in ended.err
    _, told = second.communicate(timeout=20)
    assert second.returncode == 1
    assert "active already, running:" in told
    assert "cancelled; the same command goes on with it" in told
    assert read_json(run.ticket)["pid"] == pid
    assert repo.status("cancel", "it").code == 2


def test_a_run_that_was_killed_with_all_its_processes_is_seen_to_be_dead_and_goes_on(repo: Repo) -> None:
    assert repo.submit("--detach", "does=stop_once", "step_s=60").code == 0
    run = wait_for_progress(repo)
    os.killpg(read_json(run.ticket)["pid"], signal.SIGKILL)
    table = repo.status("runs")
    assert re.search(r"failed .*the run ended without a word: pid \d+ on .* is gone", table.out), table.out
    assert repo.submit("--detach", "does=stop_once", "step_s=60").code == 0
    wait_until(lambda: run.state == "running")


def test_a_run_that_stopped_goes_on_with_its_old_code_until_it_is_told_to_take_todays(repo: Repo) -> None:
    job = repo.path / "jobs/noop.py"
    stopped = repo.submit("does=stop")
    run = repo.run()
    assert (stopped.code, run.state) == (1, "preempted")
    assert f"runs/{run.path.name} saved and stopped (preempted); the same command goes on with it" in stopped.err

    job.write_text(job.read_text().replace('raise Preempted("saved")', "return"))
    assert repo.submit("does=stop").code == 1
    assert repo.submit("does=stop", "--refresh-code").code == 0
    assert sorted(path.name for path in (run.path / "starts/0").iterdir()) == ["0.json", "1.json", "2.json"]

    again = repo.submit("does=stop", "--again")
    old = re.search(r"the old run is kept as (runs/it-\S+)", again.err)
    assert again.code == 0, again.err
    assert old is not None
    assert RunDir(repo.path / old[1]).state == "done"
    assert sorted(path.name for path in (run.path / "starts/0").iterdir()) == ["0.json"]
    assert repo.run() == run


def test_usr2_stops_a_job_that_does_not_listen(repo: Repo) -> None:
    assert repo.submit("--detach", "does=wait", "--tasks-per-node", "2").code == 0
    run = wait_for_progress(repo)
    wait_until(lambda: (run.path / "starts/1/0.json").exists())
    ticket = read_json(run.ticket)
    os.kill(ticket["pid"], signal.SIGUSR2)
    wait_until(lambda: processes.started(ticket["pid"]) is None)
    assert run.state == "preempted"
    assert not run.error.exists()


def test_two_submits_at_the_same_moment_start_one_run(repo: Repo) -> None:
    children = [repo.start("launcher/submit.py", "config=noop.yaml", "step_s=0.2") for _ in range(2)]
    ends = [child.communicate(timeout=30) for child in children]
    assert [child.returncode for child in children] == [0, 0], ends
    assert len(list((repo.run().path / "starts/0").iterdir())) == 1


def wait_for_progress(repo: Repo) -> RunDir:
    wait_until(lambda: any(repo.path.glob("runs/it/progress.json")))
    run = repo.run()
    wait_until(lambda: json.loads(run.progress.read_text())["done"] > 0 or "step_s: 60" in run.config.read_text())
    return run
