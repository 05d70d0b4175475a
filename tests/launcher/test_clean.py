"""Cleaning up: what goes, and all that stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml

from launcher import status
from launcher.looks import clean
from launcher.looks.clean import KINDS
from retrieval_train.rundir import RunDir, write_json
from tests.launcher.runs import files_below, make_old, make_run, worked_on


def give_checkpoints(run: RunDir, *steps: int, best: int | None = None) -> None:
    for step in steps:
        run.checkpoint(step).mkdir(parents=True)
        (run.checkpoint(step) / "state.json").write_text("{}")
    run.set_latest(run.checkpoint(steps[-1]))
    if best is not None:
        run.set_best(run.checkpoint(best))


def give_code(run: RunDir, digest: str) -> None:
    store = run.path.parent / ".code" / digest
    store.mkdir(parents=True, exist_ok=True)
    (store / "x.py").write_text("1")
    make_old(store, 2)
    run.code.symlink_to(f"../.code/{digest}")


def put(path: Path, days: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("123")
    make_old(path, days)
    return path


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A bit of everything: what may go, and beside it what must stay."""
    root = tmp_path / "runs"
    done = make_run(root, "done-00000000", "done", days=40)
    give_checkpoints(done, 10, 20, 30, 40, 50, best=20)
    done.config.write_text(yaml.safe_dump({"checkpoint": {"keep_every": 30}}))
    give_code(done, "used")
    done.logs.mkdir()
    put(done.log(0), 40)
    begins = make_run(root, "begins-00000000", "queued", cwd=str(tmp_path))
    begins.config.write_text(yaml.safe_dump({"origin": {"checkpoint": "runs/done-00000000/checkpoints/step-00000040"}}))
    give_checkpoints(make_run(root, "half-00000000", "preempted", days=90), 10, 20, 30)
    failed = make_run(root, "failed-00000000", "failed", days=31)
    give_code(failed, "only-of-failed")
    (root / "failed").symlink_to("failed-00000000")
    make_run(root, "new-00000000", "failed", days=29)
    make_run(root, "never-00000000", "planned", days=31)
    (root / ".code/waited-for").mkdir()
    write_json(root / ".stages/s/e/stage.json", {"code": str(root / ".code/waited-for")})
    for name in ("unused", "waited-for"):
        put(root / ".code" / name / "x.py", 2)
        make_old(root / ".code" / name, 2)
    (root / ".code/just-made").mkdir()
    (root / ".done.4711").symlink_to("done-00000000")
    then = time.time() - 2 * 86400
    os.utime(root / ".done.4711", (then, then), follow_symlinks=False)
    for name in (".gitignore", ".nodes.json", ".submit.lock", ".my.datasets", ".x.manifest", ".data.2024"):
        put(root / name, 2)
    for name in ("old", "waits", "new"):
        put(root / ".arrays" / name / "1_0.out", 29 if name == "new" else 31)
        write_json(root / ".arrays" / name / "tasks.json", {"tasks": [{"run": str(done.path)}]})
        if name == "waits":
            write_json(root / ".arrays" / name / "tasks.json", {"tasks": [{"stage": str(root / ".stages/s/e")}]})
        for path in (root / ".arrays" / name / "tasks.json", root / ".arrays" / name):
            make_old(path, 29 if name == "new" else 31)
    write_json(root / ".stages/s/e/ticket.json", {"job_id": "7"})
    (root / ".submit.lock").write_text("")
    put(done.path / ".state.a1b2c3d4", 2)
    put(done.path / ".config.yaml.a1b2c3d4", 0.5)
    put(done.checkpoints / ".step-00000060", 2)
    put(done.path / "wandb/.x.a1b2c3d4", 2)
    return root


GOES = {
    "checkpoints": {"done-00000000/checkpoints/step-00000010"},
    "runs": {"failed-00000000", "failed", "never-00000000"},
    "code": {".code/unused"},
    "leftovers": {".done.4711", "done-00000000/.state.a1b2c3d4", "done-00000000/checkpoints/.step-00000060"},
    "logs": {"done-00000000/logs", ".arrays/old"},
}


def without(files: dict[str, int], gone: set[str]) -> dict[str, int]:
    return {
        name: size for name, size in files.items() if not any(name == one or name.startswith(one + "/") for one in gone)
    }


def clean_up(root: Path, *args: str) -> int:
    return status.main(["clean", "--runs-root", str(root), *args])


@pytest.fixture(autouse=True)
def no_slurm_and_nothing_queued_is_settled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_removes_what_may_go_and_nothing_else(kind: str, full: Path) -> None:
    before = files_below(full)
    assert clean_up(full, kind) == 0
    assert files_below(full) == before, "without --yes"
    assert clean_up(full, kind, "--yes") == 0
    assert files_below(full) == without(before, GOES[kind])


def test_all_but_the_logs_go_unless_they_are_named_and_a_second_time_finds_the_code_of_removed_runs(
    full: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_below(full)
    assert clean_up(full) == 0
    listed = capsys.readouterr().out
    assert "== checkpoints: 1, 2 B\n" in listed
    assert "--yes removes them" in listed
    assert clean_up(full, "--yes") == 0
    usual = set().union(*(GOES[kind] for kind in KINDS if kind != "logs"))
    assert files_below(full) == without(before, usual)
    assert clean_up(full, "--yes") == 0
    assert files_below(full) == without(before, usual | {".code/only-of-failed"})
    assert clean_up(full) == 0
    assert capsys.readouterr().out.endswith("nothing to clean\n")


def test_a_run_with_a_living_process_is_not_touched_whatever_its_state_says(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, f"{state}-00000000", state, days=99) for state in ("done", "failed", "planned")]
    give_checkpoints(runs[0], 10, 20, 30)
    with worked_on(*runs):
        for run in runs:
            make_old(run.path / "state", 99)
        before = files_below(tmp_path)
        assert clean_up(tmp_path, *KINDS, "--yes") == 0
        assert files_below(tmp_path).items() >= before.items()
    assert clean_up(tmp_path, *KINDS, "--yes") == 0
    assert {path.name for path in tmp_path.glob("*-00000000")} == {"done-00000000"}


@pytest.mark.parametrize("state", ["done", "failed", "queued"])
def test_a_checkpoint_that_another_run_or_a_stage_begins_from_stays_whatever_became_of_that(
    state: str, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    done = make_run(root, "done-00000000", "done", days=99)
    give_checkpoints(done, 10, 20, 30, 40)
    begun = make_run(root, "begun-00000000", state, cwd=str(tmp_path))
    begun.config.write_text(yaml.safe_dump({"origin": {"checkpoint": str(done.checkpoint(10))}}))
    first = root / ".stages/p/first"
    first.mkdir(parents=True)
    (first / "run").symlink_to(done.path)
    values = {"origin": {"checkpoint": "{first}/checkpoints/step-00000020"}}
    write_json(root / ".stages/p/next/stage.json", {"values": values, "needs": {"first": str(first)}, "cwd": "/"})
    assert clean_up(root, "checkpoints", "--yes") == 0
    left = sorted(path.name for path in done.checkpoints.glob("step-*"))
    assert left == ["step-00000010", "step-00000020", "step-00000040"]


def test_nothing_behind_a_link_goes(tmp_path: Path) -> None:
    elsewhere = make_run(tmp_path / "elsewhere", "other-00000000", "failed", days=99)
    give_checkpoints(elsewhere, 10, 20, 30)
    put(elsewhere.path / ".x.a1b2c3d4", 9)
    root = tmp_path / "runs"
    done = make_run(root, "done-00000000", "done", days=99)
    for name in ("checkpoints", "logs"):
        (done.path / name).symlink_to(elsewhere.checkpoints)
    (root / "link-00000000").symlink_to(elsewhere.path)
    (root / ".code").symlink_to(elsewhere.path)
    make_run(root, "failed-00000000", "failed", days=99).export.symlink_to(elsewhere.path)
    before = files_below(tmp_path / "elsewhere")
    assert clean_up(root, *KINDS, "--yes") == 0
    assert files_below(tmp_path / "elsewhere") == before
    assert not (root / "failed-00000000").exists()


def test_a_run_that_is_submitted_between_the_look_and_the_removal_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path, "failed-00000000", "failed", days=99)
    found = clean.find(tmp_path)
    run.set_state("queued")
    before = files_below(tmp_path)
    assert [why for _, why in clean.remove(tmp_path, found.items)] == ["its run was submitted again meanwhile"]
    assert without(files_below(tmp_path), {".submit.lock"}) == before


def test_an_interruption_leaves_whole_runs_and_a_leftover_that_the_next_one_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        put(make_run(tmp_path, f"{name}-00000000", "failed", days=99).path / "deep/file", 99)
        make_old(tmp_path / f"{name}-00000000", 99)

    def interrupted(path: Path) -> None:
        (path / "plan.json").unlink()
        make_old(path, 99)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(clean, "_delete", interrupted)
        assert clean_up(tmp_path, "--yes") == 130
    assert not (tmp_path / "a-00000000").exists()
    assert (tmp_path / "b-00000000/plan.json").exists()
    assert clean_up(tmp_path, "--yes") == 0
    assert set(files_below(tmp_path)) == {".submit.lock"}
