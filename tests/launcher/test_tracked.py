"""The W&B run of a run, before wandb was ever imported: its id, its page, the command for an upload."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.job import JobConfig
from launcher.looks import tracked
from retrieval_train import tracking
from retrieval_train.rundir import RunDir, write_text
from retrieval_train.tracking import Config as Tracking
from retrieval_train.tracking import Wandb


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def run_of(folder: Path, **wandb: object) -> RunDir:
    run = RunDir(folder)
    folder.mkdir()
    write_text(run.config, json.dumps({"tracking": {"wandb": wandb}}))
    return run


def test_the_mode_is_what_the_config_says_then_the_environment_then_whether_there_is_a_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert Wandb().mode_here() == "offline", "no key"
    for cloud in ("api.wandb.ai", "api.forge.coreweave.com"):  # former and newer `wandb login`
        (tmp_path / "netrc").write_text(f"machine {cloud} login user password secret\n")
        assert Wandb().mode_here() == "online"
    (tmp_path / "netrc").write_text("machine w.example login user password secret\n")
    assert Wandb().mode_here() == "offline", "a key for another server"
    monkeypatch.setenv("WANDB_BASE_URL", "https://w.example")
    assert Wandb().mode_here() == "online"
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert Wandb().mode_here() == "offline"
    assert Wandb(mode="online").mode_here() == "online"


@pytest.mark.parametrize(
    ("server", "page"),
    [
        ("", "https://wandb.ai"),
        ("https://api.forge.coreweave.com", "https://wandb.ai"),
        ("https://api.lab.example", "https://app.lab.example"),
        ("http://w.example:8080", "http://w.example:8080"),
    ],
)
def test_the_page_is_where_wandb_itself_would_have_it(
    server: str, page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from wandb.util import app_url

    if "example" in server:  # the cloud's own has several names
        assert app_url(server).rstrip("/") == page
    monkeypatch.setenv("WANDB_BASE_URL", server)
    run = run_of(tmp_path / "run", mode="online", entity="a lab", project="p")
    run_id = tracking.run_id(run)
    assert tracked.lines(run) == [f"W&B: {page}/a%20lab/p/runs/{run_id}"]


class _Job(JobConfig):
    tracking: Tracking = Tracking()


def test_a_run_gets_one_id_at_its_submit_and_keeps_it(tmp_path: Path) -> None:
    values = {"job": "it", "run": {"name": "it"}}
    run, silent, plain = (RunDir(tmp_path / name) for name in ("run", "silent", "plain"))
    tracked.assign(run, _Job.model_validate(values))
    run_id = run.tracker_id.read_text()
    tracked.assign(run, _Job.model_validate(values))
    assert run.tracker_id.read_text() == run_id
    tracked.assign(silent, _Job.model_validate(values | {"tracking": {"wandb": {"mode": "disabled"}}}))
    tracked.assign(plain, JobConfig.model_validate(values))
    assert not (silent.tracker_id.exists() or plain.tracker_id.exists())


def test_without_an_entity_the_run_is_named_until_the_log_has_its_page(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", mode="online", project="p")
    assert tracked.lines(run) == [], "no W&B run yet, or never"
    run_id = tracking.run_id(run)
    assert tracked.lines(run) == [f"W&B: run {run_id} of project p"]
    write_text(run.log(0), f"INFO W&B run {run_id} (https://wandb.ai/me/p/runs/{run_id})\n")
    assert tracked.lines(run) == [f"W&B: https://wandb.ai/me/p/runs/{run_id}"]
    write_text(run.config, "tracking: [former code]\n")
    assert tracked.lines(run) == [f"W&B: https://wandb.ai/me/p/runs/{run_id}"]


_STARTS = """
import sys, time
from pathlib import Path
from retrieval_train import tracking
from retrieval_train.rundir import RunDir

for start in range(2):
    run = tracking.WandbRun(tracking.Wandb(mode="offline", project="p"), RunDir(Path(sys.argv[1])), {})
    run.write(start, {"loss": 1.0})
    run.close()
    time.sleep(1.1)  # wandb's folders are named by the second
"""


def test_the_starts_of_an_offline_run_share_one_id_and_one_upload_takes_them_all(tmp_path: Path) -> None:
    run = run_of(tmp_path / "it's a run", mode="offline", project="p")
    run_id = tracking.run_id(run)
    subprocess.run([sys.executable, "-c", _STARTS, run.path], check=True, timeout=120)
    about, upload = tracked.lines(run)
    assert about == f"W&B: run {run_id} of project p, offline"
    command, *folders = shlex.split(upload.removeprefix("upload: "))[1:]
    assert command == "sync"
    assert len(folders) == 2
    wandb = Path(sys.executable).with_name("wandb")
    told = subprocess.run([wandb, "sync", "--dry-run", *folders], capture_output=True, text=True, timeout=120)
    assert "Would sync 2 run(s)" in told.stderr + told.stdout
    (Path(folders[0]) / f"run-{run_id}.wandb.synced").touch()
    assert shlex.split(tracked.uploads(run)[0].removeprefix("upload: ")) == ["wandb", "sync", folders[1]]


_HANGS = """
import os, signal, sys, time
from pathlib import Path
from retrieval_train import tracking
from retrieval_train.rundir import RunDir

tracking._FINISH_S = 1.0
run = tracking.WandbRun(tracking.Wandb(mode="offline"), RunDir(Path(sys.argv[1])), {})
for children in Path("/proc/self/task").glob("*/children"):
    for pid in children.read_text().split():
        os.kill(int(pid), signal.SIGSTOP)
        print(pid)
begun = time.monotonic()
run.close()
assert 1 <= time.monotonic() - begun < 10
"""


def test_a_wandb_that_hangs_holds_neither_the_end_of_the_run_nor_that_of_its_process(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", mode="offline")
    told = subprocess.run(
        [sys.executable, "-c", _HANGS, run.path], check=True, capture_output=True, text=True, timeout=60
    )
    stopped = [int(pid) for pid in told.stdout.split()]
    assert stopped
    assert f"to upload: {tracking.sync_command(*run.path.glob('wandb/offline-run-*'))}" in told.stderr
    for pid in stopped:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
