"""One start takes up what an earlier one left, on another machine too, and ends in time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.job import Preempted
from retrieval_train.engine.hang import Watchdog
from retrieval_train.engine.state_file import Damaged
from retrieval_train.engine.uploads import Uploads
from retrieval_train.rundir import RunDir, read_json, write_json
from tests.jobs.test_origin import STEPS, config, figures, start
from tests.retrieval_train.data.conftest import make_sets


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    make_sets(folder)
    return folder


def test_a_run_that_lost_its_machine_goes_on_with_its_lowered_rate_its_tracker_and_its_best(
    tmp_path: Path, sets: Path
) -> None:
    values = config(tmp_path, sets)
    run, there = RunDir(tmp_path / "run"), tmp_path / "there/run"
    run.path.mkdir()
    run.roll_backs.write_text('{"from": 9, "to": 2, "found": "it"}\n')
    start(run.path, values)
    before, roll_backs = figures(run), run.roll_backs.read_text()
    for step in (2, 4):
        shutil.copytree(run.checkpoint(step), there / f"step-{step:08d}")
    newest = there / "step-00000004/state.json"
    state = read_json(newest)
    state["extra"] |= {"tracker": "abcd1234", "judge": {"best": [2, 0.5]}}  # as with W&B and a judge
    write_json(newest, state)

    shutil.rmtree(run.path)
    start(run.path, config(tmp_path, sets, checkpoint={"every_steps": 2, "keep": 9, "mirror": str(there.parent)}))
    assert figures(run) == {step: before[step] for step in (5, 6)}, "the rate among them"
    assert run.roll_backs.read_text() == roll_backs
    assert run.tracker_id.read_text() == "abcd1234\n"
    assert (run.checkpoint(2) / "state.json").is_file()


def test_a_run_whose_checkpoints_are_all_damaged_ends_and_loses_no_figures(tmp_path: Path, sets: Path) -> None:
    values = config(tmp_path, sets)
    run = start(tmp_path / "run", values)
    metrics = run.metrics.read_text()
    assert len(metrics.splitlines()) == STEPS
    for folder in run.checkpoints.glob("step-*"):
        (folder / "model.safetensors").write_bytes(b"")
    for _ in range(2):  # a scheduler may start it again
        with pytest.raises(Damaged, match="damaged-step-00000002, damaged-step-00000004, damaged-step-00000006"):
            start(run.path, values)
        assert run.metrics.read_text() == metrics


@pytest.mark.parametrize(("minutes", "wait_s"), [(1e-6, 60), (None, 600)])
def test_the_last_upload_has_time_and_the_watchdog_knows(
    tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch, minutes: float | None, wait_s: float
) -> None:
    seen: list[Any] = []
    close, beat = Uploads.close, Watchdog.beat

    def closed(uploads: Uploads, wait_s: float, beat: Any) -> None:
        seen.append(wait_s)
        close(uploads, wait_s, beat)
        beat()

    def noted(watchdog: Watchdog, phase: str, step: int | None = None) -> None:
        seen.append(phase)
        beat(watchdog, phase, step)

    monkeypatch.setattr(Uploads, "close", closed)
    monkeypatch.setattr(Watchdog, "beat", noted)
    values = config(tmp_path, sets, checkpoint={"mirror": str(tmp_path / "there")})
    values["run"] |= {"max_minutes": minutes, "hang_minutes": 1}
    try:
        start(tmp_path / "run", values)
    except Preempted:
        assert minutes
    assert wait_s in seen and seen[-1] == "last upload"
