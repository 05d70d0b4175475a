"""Sweeps on a real SLURM: an array, an evaluation behind each point, and nothing left on the login node."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from launcher.starts import attempts
from retrieval_train.rundir import RunDir, read_json
from tests.launcher.conftest import Repo, wait_until
from tests.slurm.conftest import Patient, Slurm, job_of, wait_for_end

pytestmark = pytest.mark.slurm
MAKER = "job: maker\nrun: {name: it, device: cpu, preflight: false}\nhead: {name: margin, margin: 0.2}\n"
JUDGE = "job: judge\nrun: {name: unused, device: cpu, preflight: false}\nmodel: nowhere\n"
SWEEP = """\
base: ../maker.yaml
run: '{point}'
then: ../judge.yaml
points: {p0: {seed: 0}, p1: {seed: 1}, p2: {seed: 2, fails_with: flag}, p3: {seed: 3}, p4: {seed: 4}, p5: {seed: 5}}
"""
POINTS = tuple(f"p{number}" for number in range(6))
SUBMIT = ("launcher/submit.py", "--parallel", "2", "--sweep", "sweeps/six.yaml")


@pytest.fixture(scope="module")
def sweeping(quick_repo: Repo) -> Repo:
    (quick_repo.path / "maker.yaml").write_text(MAKER)
    (quick_repo.path / "judge.yaml").write_text(JUDGE)
    (quick_repo.path / "sweeps").mkdir()
    (quick_repo.path / "sweeps/six.yaml").write_text(SWEEP)
    return quick_repo


def most_at_once(runs: list[RunDir]) -> int:
    starts = [attempt for run in runs for attempt in attempts.read(run)]
    assert all(attempt.ended is not None for attempt in starts)
    return max(sum(one.begun <= at.begun < (one.ended or 0) for one in starts) for at in starts)


def evaluation_job(repo: Repo, run: RunDir) -> str:
    """The job that waits for the point."""
    return str(read_json(repo.path / f"runs/.stages/six/{run.path.name}-evaluation/ticket.json")["job_id"])


def state_of(repo: Repo, name: str) -> str | None:
    return repo.run(name).state if (repo.path / "runs" / name).exists() else None


def test_points_run_two_at_once_each_with_its_evaluation_and_a_second_submit_adds_what_is_missing(
    sweeping: Repo, cluster: Slurm
) -> None:
    flag = sweeping.path / "flag"
    flag.touch()
    first = sweeping.python(*SUBMIT)
    assert first.code == 0, first.err
    assert "== points: 6 new\n" in first.err
    assert "== evaluations: 0 with an export already, 6 wait for their points\n" in first.err
    runs = [sweeping.run(point) for point in POINTS]
    assert {job_of(run).partition("_")[0] for run in runs} == {job_of(runs[0]).partition("_")[0]}, "one array"
    assert [job_of(run).partition("_")[2] for run in runs] == ["0", "1", "2", "3", "4", "5"]

    arrays = sorted((sweeping.path / "runs/.arrays").iterdir())
    again = sweeping.python(*SUBMIT)
    assert re.search(r"== points: [^n]*\n", again.err), again.err
    assert [one for one in sorted((sweeping.path / "runs/.arrays").iterdir()) if "evaluation" not in one.name] == [
        one for one in arrays if "evaluation" not in one.name
    ]

    good = [point for point in POINTS if point != "p2"]
    wait_until(lambda: all(state_of(sweeping, f"{p}-evaluation") == "done" for p in good), timeout_s=150)
    for point in good:
        wait_for_end(sweeping.run(f"{point}-evaluation"), starts=1)
    assert [run.state for run in runs] == ["done", "done", "failed", "done", "done", "done"]
    assert most_at_once(runs) == 2
    assert most_at_once([sweeping.run(f"{point}-evaluation") for point in good]) <= 2
    (failed,) = attempts.read(runs[2])
    assert (failed.kind, failed.words) == ("user_error", "there is no such margin")
    wait_until(lambda: cluster.states(evaluation_job(sweeping, runs[2])) == ["CANCELLED"], timeout_s=30)
    assert state_of(sweeping, "p2-evaluation") is None

    flag.unlink()
    third = sweeping.python(*SUBMIT)
    assert third.code == 0, third.err
    assert "== points: 5 done, 1 new\n" in third.err or "== points: 1 new, 5 done\n" in third.err, third.err
    wait_until(lambda: state_of(sweeping, "p2-evaluation") == "done", timeout_s=90)
    assert [len(attempts.read(run)) for run in runs] == [1, 1, 2, 1, 1, 1]
    table = sweeping.status("sweep", "sweeps/six.yaml")
    assert table.code == 0, table.err
    assert "missing" not in table.out


def test_values_and_folders_with_quotes_spaces_and_line_breaks_arrive_as_they_are(
    patient: Patient,
) -> None:
    note = "a 'b' \"c\" $(touch oops) `touch oops`\nand; another line"
    folder = 'the "odd" $(touch oops) & it\'s `runs`'
    (patient.repo.path / "odd.yaml").write_text("job: patient\nrun: {name: odd, device: cpu, preflight: false}\n")
    values = (f"note={json.dumps(note)}", "seed=0,1", f"runs_root={folder}")
    ended = patient.repo.python("launcher/submit.py", "config=odd.yaml", *values)
    assert ended.code == 0, ended.err
    for seed in range(2):
        run = RunDir((patient.repo.path / folder / f"odd-seed{seed}").resolve())
        (start,) = wait_for_end(run, starts=1)
        assert start.kind == "done"
        assert read_json(run.path / "starts/0/0.json")["note"] == note
    assert not list(patient.repo.path.rglob("oops"))
    refused = patient.again("odd", 'runs_root="two\\nlines"', until=False)
    assert refused.code == 2
    assert "two\\nlines\" has '\\n', which schedulers read as something else" in refused.err


def test_a_submit_leaves_no_process_on_the_login_node(sweeping: Repo, cluster: Slurm) -> None:
    """Neither of one run nor of a sweep. Held jobs: what runs on the nodes of this SLURM is seen from here, too."""
    mark = {"LEFT_BY_A_SUBMIT": str(os.getpid())}
    (sweeping.path / "held.yaml").write_text("job: patient\nrun: {name: held, device: cpu, preflight: false}\n")
    command = ("launcher/submit.py", "--sbatch", "hold", "config=held.yaml")
    one, many = sweeping.python(*command, env=mark), sweeping.python(*command, "seed=1,2,3", env=mark)
    assert (one.code, many.code) == (0, 0), one.err + many.err
    sign = f"LEFT_BY_A_SUBMIT={os.getpid()}".encode()
    left = [path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if sign in _read(path).split(b"\0")]
    assert left == []
    for name in ("held", "held-seed1", "held-seed2", "held-seed3"):
        run = sweeping.run(name)
        assert (run.state, cluster.states(job_of(run))) == ("queued", ["PENDING"])
        cluster.tell("scancel", job_of(run))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""
