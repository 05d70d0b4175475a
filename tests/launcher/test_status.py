"""What `status.py` says of runs, and what it tells them."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import jobs
from launcher import status
from launcher.looks import details, runs_table
from launcher.starts import attempts, bad_nodes
from launcher.starts.attempts import Attempt
from launcher.starts.bad_nodes import Incident
from launcher.ticket import SlurmTicket, write
from retrieval_train.config import Section
from retrieval_train.rundir import read_json, write_json
from tests.launcher.conftest import ROOT, Repo, program
from tests.launcher.runs import give_steps, make_run, worked_on


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without runs, where the user stands."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def fake_squeue(folder: Path, answer: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SLURM that answers so, on the PATH; the file that its calls are written to."""
    calls = folder / "calls"
    (folder / "answer").write_text(answer)
    program(folder, "squeue", f"echo \"$*\" >> '{calls}'\n/bin/cat '{folder}/answer'")
    monkeypatch.setenv("PATH", str(folder / "bin"))
    return calls


# --- the table


def test_the_table_has_a_line_for_each_run_and_says_why_one_failed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(home, "a-12345678", "preempted", days=1)
    make_run(home, "b-12345678", "failed", error="ValueError: no\n(rank 0; x)\n", days=0.5)
    (home / "a").symlink_to("a-12345678")
    (home / "not a run").mkdir()
    assert status.main(["runs"]) == 0
    header, *rows = cells(capsys.readouterr().out)
    assert header == ["run", "state", "step", "age", "note"]
    assert rows == [
        ["a-12345678", "preempted", "train", "3/10", "1", "d", "[loss]", "0.5"],
        ["b-12345678", "failed", "train", "3/10", "12", "h", "ValueError:", "no"],
    ]
    assert status.main(["--name", "b*"]) == 0
    assert [row[0] for row in cells(capsys.readouterr().out)] == ["run", "b-12345678"]
    assert status.main(["--state", "done,failed", "--json"]) == 0
    assert [row["run"] for row in json.loads(capsys.readouterr().out)] == ["b-12345678"]


def test_a_run_that_trains_shows_loss_speed_time_left_and_its_starts(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(home, "a-12345678", "running")
    give_steps(run, first=1, last=3, step_s=60, until=time.time())
    first = Attempt(0, "7", ("n1", "n2"), time.time() - 900, 0)
    attempts.write(run, replace(first, ended=time.time() - 600, kind="preempted", queued_again=True))
    attempts.write(run, replace(first, number=1, nodes=("n3", "n4"), begun=time.time() - 500))
    with worked_on(run):
        [row] = runs_table.look(home)
    assert [row.loss, row.images_per_s, row.left_s] == pytest.approx([5 / 3, 200.4, 7 * 60])
    assert (row.starts, row.last_ending) == (2, "preempted")
    write(run, SlurmTicket("7"))
    run.set_state("preempted")
    assert status.main([]) == 0
    header, line = cells(capsys.readouterr().out)
    assert header == ["run", "state", "step", "loss", "images/s", "nodes", "job", "starts", "age", "note"]
    wanted = ["a-12345678", "preempted", "train", "3/10", "1.667", "200", "n3,n4", "7", "2", "(preempted)", "0", "s"]
    assert line[:12] == wanted


def test_runs_of_a_sweep_stand_together_at_the_place_of_its_newest(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(home, "m1-00000000", "done", days=3, sweep="margin")
    make_run(home, "alone-00000000", "done", days=2)
    make_run(home, "m2-00000000", "failed", days=1, sweep="margin")
    assert status.main([]) == 0
    rows = cells(capsys.readouterr().out)[1:]
    assert [row[0] for row in rows] == ["alone-00000000", "margin:", "m1-00000000", "m2-00000000"]
    assert rows[1] == ["margin:", "1", "done,", "1", "failed"]
    assert status.main(["--name", "marg*"]) == 0
    assert "alone" not in capsys.readouterr().out


def test_slurm_is_asked_once_for_all_runs_and_who_it_has_forgotten_has_failed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        run = make_run(home, f"a{number}-00000000", "queued" if number < 10 else "done")
        write(run, SlurmTicket(f"9_{number}"))
    jobs = [f"9_{number}|PENDING|Priority||N/A" for number in range(1, 9)]
    calls = fake_squeue(tmp_path, "\n".join([*jobs, "9_9|RUNNING|None|n[1-2]|N/A"]), monkeypatch)
    rows = {row.run: row for row in runs_table.look(home)}
    asked = [line for line in calls.read_text().splitlines() if "," in line]
    assert asked == [f"-h -r -t all -j {','.join(f'9_{number}' for number in range(10))} -o %i|%T|%r|%N|%e"]
    assert (rows["a3-00000000"].state, rows["a3-00000000"].note) == ("queued", "Priority")
    assert rows["a9-00000000"].nodes == "n[1-2]"
    assert rows["a0-00000000"].state == "failed"
    assert "SLURM job 9_0" in rows["a0-00000000"].note
    assert len(calls.read_text().splitlines()) == 2  # the second: why 9_0 is gone


def test_a_slurm_that_does_not_answer_is_told_and_nothing_is_called_failed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run := make_run(home, "a-12345678", "running"), SlurmTicket("5"))
    fake_squeue(tmp_path, "", monkeypatch)
    (tmp_path / "bin/squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: no' >&2\nexit 1\n")
    [row] = runs_table.look(home)
    assert (row.state, run.state) == ("running", "running")
    assert row.note == "SLURM does not answer: slurm_load_jobs error: no"
    assert status.main(["cancel", "a-12345678"]) == 2


def test_a_reader_that_stops_early_sees_no_traceback(home: Path) -> None:
    for number in range(3):
        make_run(home, f"a{number}-00000000", "done")
    child = subprocess.Popen(
        [sys.executable, ROOT / "launcher/status.py", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert (child.stderr.read(), child.wait()) == (b"", 0)


# --- one run


class Inner(Section):
    name: str = "usual"
    size: int = 1


class Outer(Section):
    job: str
    plain: int = 5
    inner: Inner | None = None
    given: Inner = Inner(size=3)


def test_only_what_differs_from_the_defaults_is_shown() -> None:
    assert list(details.differing(Outer(job="x"))) == [("job", "x")]
    other = Outer(job="x", plain=6, inner=Inner(), given=Inner(size=1))
    assert list(details.differing(other)) == [("job", "x"), ("plain", 6), ("inner.name", "usual"), ("given.size", 1)]


def test_show_tells_the_starts_the_checkpoints_and_how_to_upload(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    git = {"commit": "0123456789abcdef", "dirty": True}
    run = make_run(home, "a-12345678", "failed", error="no room\n(rank 1; x)\n", cluster="big", nodes=2, git=git)
    start = Attempt(0, "7", ("n1", "n2"), 1000.0, 0, ended=4600.0, step=40, kind="bad_node", words="n2 has no GPU")
    attempts.write(run, replace(start, at_fault=("n2",), queued_again=True))
    for step in (20, 40):
        run.checkpoint(step).mkdir(parents=True)
        (run.checkpoint(step) / "state.json").write_text("x" * 1500)
    run.set_best(run.checkpoint(20))
    run.set_latest(run.checkpoint(40))
    run.tracker_id.write_text("abc\n")
    for name in ("offline-run-2-abc", "offline-run-1-abc"):
        (run.path / "wandb" / name).mkdir(parents=True)
    run.logs.mkdir()
    run.log(0).write_text("one\ntwo\n")
    assert status.main(["show", "a-12345678"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("runs/a-12345678: failed for 0 s\n")
    assert "no room\n" in told and "commit 0123456789ab with changes" in told
    assert ", 1 h, step 0 to 40: bad_node, queued again (SLURM job 7, n1, n2)\n     n2 has no GPU" in told
    assert "step-00000020    1.5 kB  best" in told and "step-00000040    1.5 kB  latest" in told
    folder = "runs/a-12345678/wandb/offline-run-"
    assert f"wandb sync {folder}1-abc {folder}2-abc" in told
    assert told.endswith("  two\n")


# --- what runs are told


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["logs", "a-1234567"], "a-1234567 is no run; did you mean a-12345678?"),
        (["cancel", "a-12345678"], "a-12345678 is not active: done"),
        (["cancel", "margin"], "no run of margin is active"),
        (["requeue", "a-12345678"], "a-12345678: is done; `submit.py --again`"),
        (["requeue", "margin"], "nothing to queue again: all of them are done or active"),
        (["runs", "--runs-root", "elsewhere"], "no runs in elsewhere"),
        (["--state", "lost"], "--state lost: no such state; there are: planned, queued"),
        (["clean", "everything"], "everything: nothing that can be cleaned; there are: checkpoints, runs"),
        (["clean", "--runs-root", "elsewhere"], "no runs in elsewhere"),
        (["nodes", "--forget", "n1"], "--forget n1: nothing is remembered of it; of these there is: n2"),
        (["sweep", "x.yaml", "runs_root=a", "--runs-root", "b"], "--runs-root b and runs_root=a: they mean the same"),
        (["logs", "a-12345678", "--since", "soon"], "--since soon: give 30s, 10m"),
    ],
)
def test_a_mistake_about_runs_is_told(
    command: list[str], words: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(home, "a-12345678", "done")
    make_run(home, "b-12345678", "done", sweep="margin")
    bad_nodes.note(home, ["n2"], Incident(time.time(), "a", "hang", ""))
    assert status.main(command) == 2
    assert words in capsys.readouterr().err


def test_cancel_by_the_name_of_a_sweep_ends_all_its_active_runs_and_no_other(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = [make_run(home, f"m{number}-00000000", "running", sweep="margin") for number in range(2)]
    over = make_run(home, "m2-00000000", "done", sweep="margin")
    other = make_run(home, "other-00000000", "running")
    with worked_on(*mine, other) as children:
        assert status.main(["cancel", "margin"]) == 0
        assert [child.poll() is None for child in children] == [False, False, True]
        assert status.main(["requeue", "other-00000000"]) == 2
        assert "this machine has no queue: cancel it, then submit again" in capsys.readouterr().err
    assert [run.state for run in (*mine, over, other)] == ["failed", "failed", "done", "running"]
    assert {run.error.read_text() for run in mine} == {"cancelled; the same command goes on with it\n"}


def test_cancel_by_the_name_of_a_sweep_ends_what_waits_there_without_a_run_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run := make_run(home, "m1-00000000", "queued", sweep="margin"), SlurmTicket("7"))
    attempts.write(run, Attempt(0, "7", ("n1",), 1.0, 0))
    for name in ("waits", "begun", "over"):
        write_json(home / ".stages/margin" / name / "ticket.json", {"job_id": f"8_{len(name)}"})
    (home / ".stages/margin/begun/run").symlink_to(run.path)
    calls = fake_squeue(
        tmp_path, "7|RUNNING|None|n1|N/A\n8_5|PENDING|Dependency||N/A\n8_4|COMPLETED|None||N/A\n", monkeypatch
    )
    program(tmp_path, "scancel", f"echo scancel $1 >> '{calls}'\n[ $1 != 7 ] || : > '{tmp_path}/answer'")
    assert status.main(["cancel", "margin"]) == 0
    assert [line for line in calls.read_text().splitlines() if "scancel" in line] == ["scancel 8_5", "scancel 7"]
    assert (run.state, attempts.read(run)[-1].kind) == ("failed", "cancelled")


@pytest.mark.parametrize(
    ("state", "job", "steps", "told"),
    [
        ("preempted", "PENDING", "", "waits in the queue already (SLURM job 7)"),
        ("queued", "RUNNING", "7.batch 7.0", ""),
        ("queued", "RUNNING", "7.batch", "is RUNNING, and there is no rank to tell; ask again in a moment"),
        ("running", "COMPLETING", "7.0", "is COMPLETING, and there is no rank to tell"),
    ],
)
def test_whether_a_run_can_be_queued_again_is_told_by_slurm_and_not_by_its_state(
    state: str,
    job: str,
    steps: str,
    told: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(make_run(home, "a-12345678", state), SlurmTicket("7"))
    calls = fake_squeue(tmp_path, f"7|{job}|None|n1|N/A\n", monkeypatch)
    squeue = tmp_path / "bin/squeue"
    squeue.write_text(squeue.read_text().replace("/bin/cat", f'[ "$2" != -s ] || {{ echo {steps}; exit; }}\n/bin/cat'))
    program(tmp_path, "scancel", f"echo scancel $* >> '{calls}'")
    assert status.main(["requeue", "a-12345678"]) == (2 if told else 0)
    assert told in capsys.readouterr().err
    assert ("scancel --signal=USR2 7" in calls.read_text()) == (not told)


def test_a_run_whose_job_has_just_ended_has_not_failed_before_its_last_words_can_be_seen(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(home, "a-12345678", "running", days=1)
    write(run, SlurmTicket("7"))
    ended = f"{datetime.datetime.now():%Y-%m-%dT%H:%M:%S}"
    fake_squeue(tmp_path, f"7|COMPLETED|None|n1|{ended}\n", monkeypatch)
    assert runs_table.look(home)[0].state == "running"
    assert not run.error.exists()
    (tmp_path / "answer").write_text("7|COMPLETED|None|n1|2020-01-31T12:00:00\n")
    assert runs_table.look(home)[0].state == "failed"


def test_what_failed_is_submitted_again_with_its_own_code(repo: Repo) -> None:
    assert repo.submit("does=fail").code == 1
    run = repo.run()
    (repo.path / "jobs/noop.py").write_text("broken code")
    before = read_json(run.ticket)
    ended = repo.status("requeue", "it")
    assert (ended.code, ended.err) == (0, "")
    assert f"runs/{run.path.name}: submitted again with its own code, pid " in ended.out
    assert repo.status("logs", "it", "-f").code == 0
    assert read_json(run.ticket) != before
    assert "do not fit" in run.error.read_text()
    assert len(list((run.path / "starts/0").iterdir())) == 2


def test_nodes_that_failed_are_listed_until_they_are_forgotten(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(home, "a-12345678", "done")
    for words in ("lost", "no GPU\nat all"):
        bad_nodes.note(home, ["n1"], Incident(time.time(), "a-12345678", "bad_node", words))
    assert status.main(["nodes"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "n1: left out, 2 in the last week"
    assert told[2].endswith("bad_node      a-12345678  no GPU")
    assert status.main(["nodes", "--forget", "n1"]) == 0
    assert status.main(["nodes"]) == 0
    assert capsys.readouterr().out.endswith("no run in runs has had a bad node in the last week\n")


def test_the_table_of_a_sweep_looks_for_its_runs_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "__path__", [*jobs.__path__, str(ROOT / "tests/launcher/extra_jobs")])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("job: noop\nrun: {name: x, device: cpu}\n")
    (tmp_path / "sweep.yaml").write_text("base: base.yaml\nrun: n{note}\ngrid: {note: [a]}\n")
    run = make_run(tmp_path / "its own, runs", "na-00000000", "done")
    run.report.write_text('{"metrics": {"merged": {"mMP@5": 0.25, "R@1": 0.5}}}')
    (run.path.parent / "na").symlink_to(run.path.name)
    assert status.main(["sweep", "sweep.yaml"]) == 0
    assert "0.25" not in capsys.readouterr().out
    assert status.main(["sweep", "sweep.yaml", "--runs-root", "its own, runs"]) == 0
    assert "0.25" in capsys.readouterr().out
    assert status.main(["sweep", "sweep.yaml", "--runs-root", "its own, runs", "--page", "table.html"]) == 0
    assert "0.250" in (tmp_path / "table.html").read_text()
    assert status.main(["sweep", "sweep.yaml", "--sort", "loss"]) == 2
    assert "'loss' is no column; there are: mMP@5, R@1" in capsys.readouterr().err
