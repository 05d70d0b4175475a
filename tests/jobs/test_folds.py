"""A run with `data.fold`: trains on the other folds, evaluates on this one, and is a run of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jobs import job
from jobs.training.halving import digest_of
from retrieval_train import config as configs
from retrieval_train.config import ConfigError, as_now, frozen_values
from retrieval_train.data.config import DataConfig
from retrieval_train.data.labels import join
from retrieval_train.rundir import RunDir, read_json
from shards.cli import main
from shards.manifest import Manifest
from tests.jobs.test_train_data import config, metrics, trained
from tests.retrieval_train.data.conftest import draw

pytestmark = pytest.mark.usefixtures("one_process")
FOLDS = 3


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards_root: `folded` with three folds and distractors, `plain` with a dev split, of other images."""
    root = tmp_path_factory.mktemp("sets")
    draw(root / "images", domains={"warm": 9}, images=4)
    draw(root / "others", domains={"cold": 6}, images=4)
    for name, images, words in (("folded", "images", ["--folds", str(FOLDS)]), ("plain", "others", [])):
        made = ["make", "folder", str(root / images), "--levels", "domain/class", "--out", str(root / name), *words]
        assert main(made) == 0
    return root


def of_folds(data: dict[str, Any]) -> dict[str, Any]:
    """What the config of a run has beside that of test_train_data."""
    return {"length": {"steps": 2}, "data": {"mixture": {"folded": 1.0}, "batch": 6, **data}}


def checked(root: Path, sets: Path, data: dict[str, Any], **more: Any) -> Any:
    return job.check(config(root, sets, **of_folds(data), **more), where="test")


def test_a_run_trains_on_the_others_and_is_judged_on_its_fold(sets: Path, tmp_path: Path) -> None:
    run = trained(tmp_path, sets, **of_folds({"fold": 1}), evaluate={"set": "folded", "every_steps": 1})
    view = Manifest.load(sets / "folded").with_fold(1)
    assert read_json(run.sets) == {"folded": view.digest}
    classes = {
        name for name, count in zip(view.classes.class_names(), view.classes.counts("train"), strict=True) if count
    }
    assert set((run.export / "classes.txt").read_text().split()) == classes
    keys = {key for file in run.ledger.iterdir() for key in re.findall(r"warm/[^\s\"]+", file.read_text())}
    held_out = {view.read(shard, row).key for shard in view.select("dev") for row in range(shard.samples)}
    assert len(keys) == 12 and not keys & held_out
    assert "dev/mMP@5" in metrics(run)[-1]
    evaluation = {
        "job": "evaluate",
        "run": {"name": "after", "threads": 1},
        "runs_root": str(tmp_path / "runs"),
        "shards_root": str(sets),
        "model": str(run.export),
        "baselines": ["chance"],
        "data": {"set": "folded", "fold": 1},
    }
    after = RunDir(tmp_path / "runs" / "after")
    after.path.mkdir()
    after.config.write_text(yaml.safe_dump(evaluation))
    job.start(after.path)
    report = read_json(after.report)
    assert report["metrics"]["merged"]["mMP@5"] == pytest.approx(metrics(run)[-1]["dev/mMP@5"], abs=1e-6)
    assert report["counts"]["merged"]["index"] == sum(shard.samples for shard in view.select("dev", "index"))


def test_the_unlabelled_rows_are_without_the_fold_too(sets: Path) -> None:
    data = DataConfig.model_validate(
        {
            "mixture": {"folded": 1.0},
            "batch": 4,
            "fold": 2,
            "unlabelled": {"mixture": {"folded": 1.0, "plain": 1.0}, "batch": 2},
        }
    )
    assert not data.problems(sets), "sets of unlabelled rows need no folds"
    view = Manifest.load(sets / "folded").with_fold(2)
    assert data.digests(sets) == {
        "data.folded": view.digest,
        "data.unlabelled.folded": view.digest,
        "data.unlabelled.plain": Manifest.load(sets / "plain").digest,
    }
    ((opened, _),) = data.open_sets(sets)
    assert join([opened]).names == tuple(
        name for name, count in zip(view.classes.class_names(), view.classes.counts("train"), strict=True) if count
    )
    assert np.array_equal(opened.classes.table, view.classes.table)


@pytest.mark.parametrize(
    ("data", "more", "words"),
    [
        ({"fold": 3}, {}, ["data.fold  set 'folded' has no fold 3; give 0 to 2"]),
        (
            {"fold": 0, "mixture": {"folded": 1.0, "plain": 1.0}},
            {},
            ["data.fold  set 'plain' has no folds; make it again with `shards make ... --folds 5`, or give no fold"],
        ),
        ({"fold": -1}, {}, ["data.fold  -1"]),
        ({}, {"evaluate": {"set": "folded"}}, ["evaluate.fold  set 'folded' has 3 folds", "data.fold=0 to 2"]),
        ({"fold": 0}, {"evaluate": {"set": "folded", "fold": 1}}, ["evaluate.fold  is data.fold", "leave it out"]),
        ({"fold": 0}, {"evaluate": {"set": "plain", "fold": 1}}, ["evaluate.fold  set 'plain' has no folds"]),
        ({"fold": 3}, {"evaluate": {"set": "folded"}}, ["1 problem"]),
    ],
)
def test_folds_that_cannot_be_meant_are_told_in_one_message(
    sets: Path, tmp_path: Path, data: dict[str, Any], more: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as told:
        checked(tmp_path, sets, data, **more)
    message = " ".join(str(told.value).replace("\n", " | ").split())
    for word in words:
        assert " ".join(word.split()) in message


def test_a_run_is_judged_on_other_sets_as_they_are(sets: Path, tmp_path: Path) -> None:
    made = checked(tmp_path, sets, {"fold": 1}, evaluate={"set": "plain"})
    assert made.judge == made.evaluate
    assert made.inputs()["evaluate.set"] == Manifest.load(sets / "plain").digest


def test_a_fold_is_part_of_what_a_run_is_and_none_leaves_runs_as_they_were(sets: Path, tmp_path: Path) -> None:
    judge = {"set": "folded", "every_steps": 1}
    folded = [checked(tmp_path, sets, {"fold": fold}, evaluate=judge) for fold in range(FOLDS)]
    assert len({configs.identity(one, {}) for one in folded}) == FOLDS
    assert len({configs.identity(one, one.inputs()) for one in folded}) == FOLDS
    assert len({digest_of(one.judge, sets) for one in folded}) == FOLDS, "halving compares within a fold"
    plain = checked(tmp_path, sets, {}, evaluate={"set": "plain"})
    written = frozen_values(plain)
    assert "fold" not in written["data"] and "fold" not in written["evaluate"], "as older code wrote it"
    assert as_now(written, plain) == written
    assert as_now(written, folded[1])["data"] != frozen_values(folded[1])["data"]
    assert as_now(frozen_values(folded[1]), plain)["data"]["fold"] == 1
    assert configs.identity(plain, {}) != configs.identity(checked(tmp_path, sets, {"fold": 0}), {})


def test_a_wrong_fold_is_told_without_torch(sets: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(config(tmp_path, sets, **of_folds({"fold": 7}))))
    code = (
        "import sys; from jobs import job; from retrieval_train import config as c\n"
        f"try: job.check(c.read(__import__('pathlib').Path({str(file)!r})), where='it')\n"
        "except c.ConfigError as error: print(error)\n"
        "assert 'torch' not in sys.modules"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "has no fold 7; give 0 to 2" in told
