"""`--continue-from` and `--force-config` on the login node: what differs is told before anything starts."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import job
from jobs.training.origin import described
from launcher import submit
from launcher.clusters import cluster
from retrieval_train.engine.state_file import SCHEMA
from tests.retrieval_train.data.conftest import make_sets

VALUES: dict[str, Any] = {
    "job": "train",
    "run": {"name": "second", "device": "cpu"},
    "shards_root": "sets",
    "backbone": {"name": "timm", "model": "test_vit", "image_px": 16, "weights": "none", "drop_path": 0.0},
    "neck": {"name": "linear", "out": 8},
    "head": {"name": "arcface", "margin": 0.1, "scale": 16},
    "engine": {"name": "plain"},
    "data": {"mixture": {"shapes": 1.0, "more": 1.0}, "batch": 12},
    "length": {"steps": 8},
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: Path) -> Path:
    """A folder with a config and a run of the same config that stands at step 4, on a machine without SLURM and GPUs."""
    monkeypatch.setattr(cluster, "visible_gpus", lambda: ())
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    os.symlink(sets, "sets")
    Path("it.yaml").write_text(yaml.safe_dump(VALUES))
    checkpoint(Path("runs/first-01234567/checkpoints"), 4)
    os.symlink("first-01234567", "runs/first")
    return tmp_path


def checkpoint(at: Path, step: int, /, **state: Any) -> Path:
    """A checkpoint as far as the login node reads it."""
    folder = at / f"step-{step:08d}"
    folder.mkdir(parents=True)
    config: Any = job.check(VALUES, where="it.yaml")
    written = {"schema": SCHEMA, "step": step, "extra": {"config": described(config)}, **state}
    (folder / "state.json").write_text(json.dumps(written))
    (folder / "sums.json").write_text(json.dumps({"model.safetensors": f"{step:064d}"}))
    return folder


class Told:
    def __init__(self, *args: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.code = submit.main(["--dry-run", "--cluster", "local", "config=it.yaml", *args])
        self.out, self.err = capsys.readouterr()

    @property
    def run(self) -> str:
        """The name of the run folder."""
        found = re.search(r"folder +\S+/runs/(\S+) \(new\)", self.out)
        assert found, self.err
        return found[1]


FIRST = "--continue-from=runs/first"
FORCE = "--force-config"


def test_the_same_config_goes_on_without_a_word_wherever_it_runs(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told(FIRST, "data.workers=3", "run.max_minutes=9", capsys=capsys)
    assert (told.code, told.err) == (0, "")
    assert told.run == Told(FIRST, capsys=capsys).run != Told(capsys=capsys).run


def test_every_field_that_differs_is_listed_until_it_is_forced(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = ["optimizer.lr=0.5", "length.steps=9", "data.mixture.shapes=2.0", "backbone.drop_path=0.1"]
    lines = [
        "backbone.drop_path: 0.0 -> 0.1",
        "data.mixture.shapes: 1.0 -> 2.0",
        "optimizer.lr: 0.001 -> 0.5",
        "length.steps: 8 -> 9",
    ]
    refused = Told(FIRST, *other, capsys=capsys)
    assert (refused.code, refused.out) == (2, "")
    assert "it.yaml: 1 problem\n  origin.checkpoint  was written with another config (there -> here):" in refused.err
    assert re.findall(r"^    (\S+: .* -> .*)$", refused.err, re.MULTILINE) == lines
    assert "say --force-config to go on with them changed; or leave origin out to start anew" in refused.err

    forced = Told(FIRST, FORCE, *other, capsys=capsys)
    assert forced.code == 0
    assert f"changes from {here}/runs/first-01234567/checkpoints/step-00000004 on:" in forced.err
    assert re.findall(r"^    (\S+: .* -> .*)$", forced.err, re.MULTILINE) == lines


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("neck.out=16", "neck.out: 8 -> 16"),
        ("backbone.model=test_vit2", 'backbone.model: "test_vit" -> "test_vit2"'),
        ("lora.rank=4", 'lora: null -> {"rank": 4, '),
        ("head.sub_centres=2", "head.sub_centres: 1 -> 2"),
        ("data.order={name: mixed, share: loss, by: domain, every: 128}", 'data.order.share: "size" -> "loss"'),
    ],
)
def test_what_changes_the_tensors_cannot_be_forced(
    here: Path, capsys: pytest.CaptureFixture[str], override: str, line: str
) -> None:
    told = Told(FIRST, FORCE, override, "optimizer.lr=0.5", capsys=capsys)
    assert told.code == 2
    marked = re.findall(r"^    (.*) \*$", told.err, re.MULTILINE)
    assert any(one.startswith(line) for one in marked), told.err
    assert "    optimizer.lr: 0.001 -> 0.5\n" in told.err and "init.model=<its folder>/export" in told.err


def test_other_first_weights_matter_only_to_adapters(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Told(FIRST, FORCE, "backbone.weights=hub", capsys=capsys).code == 0
    folder = Path("runs/first/checkpoints/step-00000004")
    state = json.loads((folder / "state.json").read_text())
    adapted = VALUES | {"lora": {"rank": 8}}
    Path("it.yaml").write_text(yaml.safe_dump(adapted))
    config: Any = job.check(adapted, where="it.yaml")
    (folder / "state.json").write_text(json.dumps(state | {"extra": {"config": described(config)}}))
    told = Told(FIRST, FORCE, "backbone.weights=hub", capsys=capsys)
    assert told.code == 2 and 'backbone.weights: "none" -> "hub" *' in told.err


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"schema": SCHEMA + 1}, f"has schema {SCHEMA + 1}, this code reads up to {SCHEMA}; update the code"),
        ({"step": None}, "state.json is damaged: it says no schema and step"),
        ({"step": 8}, "is at step 8 already, and length.steps is 8; make the run longer"),
        ({"extra": {}}, "does not say with what config it was written; --force-config goes on all the same"),
    ],
)
def test_a_checkpoint_that_cannot_be_gone_on_from(
    here: Path, capsys: pytest.CaptureFixture[str], state: dict[str, Any], words: str
) -> None:
    told = Told(f"--continue-from={checkpoint(here / 'odd: #[1]', 6, **state)}", capsys=capsys)
    assert told.code == 2 and words in told.err
    forced = Told(f"--continue-from={here}/odd: #[1]/step-00000006", FORCE, capsys=capsys)
    assert forced.code == (0 if "extra" in state else 2), forced.err


@pytest.mark.parametrize("place", ["runs/none", "runs/first/checkpoints", "it.yaml"])
def test_no_checkpoint_there(here: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    told = Told(f"--continue-from={place}", capsys=capsys)
    assert told.code == 2
    assert f"{place.partition('/')[2] or place} is no checkpoint" in told.err.replace("first-01234567", "first")


def test_a_run_folder_means_its_newest_checkpoint_and_each_beginning_is_a_run_of_its_own(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at_4 = Told(FIRST, capsys=capsys).run
    checkpoint(here / "runs/first-01234567/checkpoints", 6)
    at_6 = Told(FIRST, capsys=capsys).run
    assert at_4 != at_6
    assert Told("--continue-from=runs/first/checkpoints/step-00000004", FORCE, capsys=capsys).run == at_4
    shutil.move("runs/first-01234567/checkpoints/step-00000006", "kept")
    assert Told("--continue-from=kept", capsys=capsys).run == at_6, "it is what it holds, wherever it lies"


def test_a_url_is_not_opened_before_the_run_starts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = Told("--continue-from=nosuch://user:pw@there/runs/x", capsys=capsys)
    assert (told.code, told.err) == (0, "") and told.run != Told(capsys=capsys).run


def test_the_link_that_will_lead_to_the_new_run_is_no_beginning(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(FIRST, "run.name=first", capsys=capsys)
    assert told.code == 2 and "say runs/first-01234567, or another run.name" in told.err
    assert Told("--continue-from=runs/first-01234567", "run.name=first", capsys=capsys).code == 0


def test_force_config_alone_has_nothing_to_force(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(FORCE, capsys=capsys)
    assert told.code == 2 and "origin.checkpoint  is required and missing" in told.err
