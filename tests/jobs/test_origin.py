"""Runs that begin where another one stood: with all that it had, from a folder or a URL."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jobs import job
from jobs.training.origin import ABSENT, Origin, changes_of, described, differences, still_true
from retrieval_train.config import as_now, check
from retrieval_train.rundir import RunDir, read_json
from retrieval_train.world import Alone, World
from tests.processes import run_ranks
from tests.retrieval_train.data.conftest import make_sets

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6


def config(root: Path, sets: Path, **more: Any) -> dict[str, Any]:
    values = {
        "job": "train",
        "run": {"name": "one", "threads": 1, "device": "cpu"},
        "runs_root": str(root / "runs"),
        "shards_root": str(sets),
        "backbone": {"name": "timm", "model": "test_vit", "image_px": 16, "weights": "none", "blocks": 1},
        "neck": {"name": "linear", "out": 8},
        "head": {"name": "arcface", "margin": 0.1, "scale": 16},
        "engine": {"name": "plain"},
        "data": {"mixture": {"shapes": 1.0, "more": 1.0}, "batch": 12, "workers": 0},
        "length": {"steps": STEPS},
        "checkpoint": {"every_steps": 2, "keep": 9},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
    return values | more


def checked(values: dict[str, Any]) -> Any:
    return job.check(values, where="a config")


def start(folder: Path, values: dict[str, Any]) -> RunDir:
    """One rank, in this process, to its end."""
    run = RunDir(folder)
    run.path.mkdir(parents=True, exist_ok=True)
    run.config.write_text(yaml.safe_dump(values))
    threads = torch.get_num_threads()
    try:
        job.start(run.path)
    finally:
        torch.set_num_threads(threads)
    return run


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    """This process is one."""
    here = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in here.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, sets: Path, one_rank: None) -> RunDir:
    """A run that was not interrupted."""
    root = tmp_path_factory.mktemp("first")
    return start(root / "runs/first", config(root, sets))


def figures(run: RunDir) -> dict[int, tuple[float, ...]]:
    """What a step computed, by step."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {line["step"]: (line["loss"], line["grad_norm"], line["lr"]) for line in lines}


def test_a_run_goes_on_from_anothers_checkpoint_as_that_one_did(first: RunDir, sets: Path, tmp_path: Path) -> None:
    second = start(tmp_path / "second", config(tmp_path, sets, origin={"checkpoint": str(first.checkpoint(4))}))
    whole = figures(first)
    assert figures(second) == {step: whole[step] for step in (5, 6)}
    model = "model.safetensors"
    assert (second.checkpoint(6) / model).read_bytes() == (first.checkpoint(6) / model).read_bytes()


def test_a_url_is_copied_once_and_not_needed_again(first: RunDir, sets: Path, tmp_path: Path) -> None:
    sent = tmp_path / "sent/first"
    for step in (2, 4):
        shutil.copytree(first.checkpoint(step), sent / f"step-{step:08d}")
    values = config(tmp_path, sets, origin={"checkpoint": f"file://{sent}"})
    second = start(tmp_path / "second", values)
    assert figures(second) == {step: figures(first)[step] for step in (5, 6)}
    assert [path.name for path in (second.path / "origin").iterdir()] == ["step-00000004"]
    shutil.rmtree(sent)
    shutil.rmtree(second.checkpoints)  # as if it was killed before its first checkpoint
    assert figures(start(second.path, values)) == {step: figures(first)[step] for step in (5, 6)}


def test_what_a_run_began_from_may_go_when_it_has_a_checkpoint(first: RunDir, sets: Path, tmp_path: Path) -> None:
    shutil.copytree(first.checkpoint(4), tmp_path / "kept")
    values = config(tmp_path, sets, origin={"checkpoint": str(tmp_path / "kept")}, length={"steps": STEPS + 2})
    values["origin"]["force_config"] = True
    second = start(tmp_path / "second", values)
    shutil.rmtree(tmp_path / "kept")
    second.set_latest(second.checkpoint(6))
    assert sorted(figures(start(second.path, values))) == [5, 6, 7, 8]


def test_a_changed_config_yaml_is_refused_with_its_fields(first: RunDir, sets: Path, tmp_path: Path) -> None:
    shutil.copytree(first.path, tmp_path / "copy")
    changed = config(tmp_path, sets, optimizer={"lr": 0.5}, data={"mixture": {"shapes": 1.0, "more": 1.0}, "batch": 10})
    told = (
        r"config.yaml is not what it was when \S+/copy/checkpoints/step-00000006 was written \(there -> here\):\n"
        r" +data.batch: 12 -> 10\n +optimizer.lr: 0.001 -> 0.5\n.*--continue-from \S+/step-00000006 --force-config"
    )
    with pytest.raises(ValueError, match=told):
        start(tmp_path / "copy", changed)
    workers = {"mixture": {"shapes": 1.0, "more": 1.0}, "batch": 12, "workers": 1}
    assert start(tmp_path / "copy", config(tmp_path, sets, data=workers)).state == "done", "a place may change"


def test_classes_may_come_and_go_between_two_runs(first: RunDir, sets: Path, tmp_path: Path) -> None:
    origin = {"checkpoint": str(first.checkpoint(4)), "force_config": True}
    fewer = config(tmp_path, sets, origin=origin, data={"mixture": {"shapes": 1.0}, "batch": 12, "workers": 0})
    second = start(tmp_path / "fewer", fewer)
    assert "4 of its classes are gone" in second.log(0).read_text()
    origin = {"checkpoint": str(second.checkpoint(6)), "force_config": True}
    third = start(tmp_path / "more", config(tmp_path, sets, origin=origin, length={"steps": STEPS + 2}))
    assert "4 classes are new (grey/c0, grey/c1, grey/c2 ...): centres begin at random" in third.log(0).read_text()
    assert sorted(figures(third)) == [STEPS + 1, STEPS + 2]


# --- ranks


def fetched(world: World, cases: list[dict[str, Any]], folder: Path) -> list[str]:
    """Where the checkpoint of each config is, or what is wrong with it."""
    told = []
    for case in cases:
        config = checked(case)
        try:
            told.append(str(config.origin.fetch(config, RunDir(folder), world)))
        except ValueError as error:
            told.append(f"ValueError: {error}")
    return told


def test_all_ranks_are_told_the_same_of_a_url(first: RunDir, sets: Path, tmp_path: Path) -> None:
    origin = {"checkpoint": f"file://{first.checkpoint(4)}"}
    edits: list[dict[str, Any]] = [{}, {"optimizer": {"lr": 0.5}}, {"neck": {"name": "linear", "out": 4}}]
    cases = [config(tmp_path, sets, origin=origin, **edit) for edit in edits]
    one, other = run_ranks(fetched, 2, cases, tmp_path / "second")
    assert one == other
    assert one[0] == str(tmp_path / "second/origin/step-00000004")
    assert re.match(
        r"ValueError: origin.checkpoint: was written with another.*\n +optimizer.lr: 0.001 -> 0.5\n", one[1]
    )
    assert re.match(r"ValueError: origin.checkpoint: was written with another.*\n +neck.out: 8 -> 4 \*\n", one[2])


def test_a_damaged_or_missing_url_is_told(first: RunDir, sets: Path, tmp_path: Path) -> None:
    shutil.copytree(first.checkpoint(4), tmp_path / "sent/step-00000004")
    with (tmp_path / "sent/step-00000004/model.safetensors").open("r+b") as file:
        file.seek(400)
        file.write(b"\1\2\3\4")
    values = config(tmp_path, sets, origin={"checkpoint": f"file://{tmp_path}/sent"})
    assert "model.safetensors was changed or damaged" in fetched(Alone(), [values], tmp_path / "second")[0]
    values = config(tmp_path, sets, origin={"checkpoint": f"file://{tmp_path}/none"})
    assert "there is no whole checkpoint at the URL" in fetched(Alone(), [values], tmp_path / "second")[0]
    assert not list(tmp_path.glob("second/origin/step-*"))


# --- comparing


def test_differences_are_dotted_and_say_what_only_one_has() -> None:
    theirs = {"a": {"b": 1, "old": 2}, "list": [1, 2], "same": None, "kind": {"x": 1}}
    mine = {"a": {"b": 1.0, "new": 3}, "list": [1, 3], "same": None, "kind": None}
    assert list(differences(theirs, mine)) == [
        ("a.new", ABSENT, 3),
        ("a.old", 2, ABSENT),
        ("list", [1, 2], [1, 3]),
        ("kind", {"x": 1}, None),
    ]


def test_fields_that_came_since_are_no_difference_while_they_keep_their_default(sets: Path, tmp_path: Path) -> None:
    old = json.loads(json.dumps(described(checked(config(tmp_path, sets)))))
    del old["faults"], old["optimizer"]["weight_decay"], old["inputs"]["data.more"]
    old["data"]["workers"] = 7  # not a place then
    assert changes_of({"config": old}, checked(config(tmp_path, sets))) == []
    now = checked(config(tmp_path, sets, optimizer={"weight_decay": 0.25}))
    [(path, theirs, mine)] = changes_of({"config": old}, now)
    assert (path, theirs, mine) == ("optimizer.weight_decay", 0.05, 0.25)
    assert as_now({}, check(Origin, {"checkpoint": "s3://a/b"}, where="x")) == {}


def test_a_shard_set_with_other_content_is_a_difference(sets: Path, tmp_path: Path) -> None:
    now = checked(config(tmp_path, sets))
    old = described(now)
    old["inputs"] = old["inputs"] | {"data.more": "0" * 64}
    [(path, theirs, _)] = changes_of({"config": old}, now)
    assert (path, theirs) == ("inputs.data.more", "0" * 64)


def test_state_of_another_order_or_judge_is_left_behind(sets: Path, tmp_path: Path) -> None:
    saved = {"order": {"shares": []}, "judge": {"best": 1}, "intake": {"rows": 3}, "tracker": "id"}
    saved["config"] = described(checked(config(tmp_path, sets)))
    mixtures = ({"shapes": 1.0, "more": 1.0}, {"shapes": 1.0})
    same, other = (checked(config(tmp_path, sets, data={"mixture": one, "batch": 12})) for one in mixtures)
    assert still_true(saved, same).keys() == {"order", "judge", "intake"}
    assert still_true(saved, other).keys() == {"judge", "intake"}


SIMSIAM: dict[str, Any] = {"loss": {"name": "simsiam", "projection": 12}}
TEACHERS: dict[str, Any] = {"loss": {"name": "distillation", "teacher_dim": 6}}
LINEAR: dict[str, Any] = {"head": {"name": "linear"}, "loss": {"name": "bce"}}


@pytest.mark.parametrize(
    ("there", "here", "fixed"),
    [
        ({"head": {"name": "arcface", "sub_centres": 2}}, {}, ["head.sub_centres"]),
        ({"head": {"name": "linear"}}, {}, ["head.bias"]),
        ({"head": {"name": "linear", "bias": False}}, {}, []),
        ({"head": {"name": "adaface"}}, {}, []),
        (
            {"aux": {"x": LINEAR}},
            {"aux": {"x": {**LINEAR, "head": {"name": "linear", "bias": False}}}},
            ["aux.x.head.bias"],
        ),
        ({"aux": {"x": LINEAR}}, {"aux": {"y": LINEAR}}, []),
        ({"aux": {"x": SIMSIAM}}, {}, ["aux.x"]),
        ({}, {"aux": {"x": SIMSIAM}}, ["aux.x"]),
        ({"aux": {"x": {"loss": {"name": "triplet"}}}}, {"aux": {"x": SIMSIAM}}, ["aux.x.loss.name"]),
        (
            {"aux": {"x": SIMSIAM}},
            {"aux": {"x": {"loss": {"name": "simsiam", "projection": 8, "hidden": 4}, "weight": 2}}},
            ["aux.x.loss.projection", "aux.x.loss.hidden"],
        ),
        (TEACHERS, {"loss": {**TEACHERS["loss"], "temperature": 0.2, "teacher_scale": 8}}, []),
        (TEACHERS, {"loss": {**TEACHERS["loss"], "teacher_dim": 5}}, ["loss.teacher_dim"]),
        ({"loss": {"name": "focal"}}, {}, []),
    ],
)
def test_what_gives_centres_or_layers_another_shape_cannot_be_forced(
    sets: Path, tmp_path: Path, there: dict[str, Any], here: dict[str, Any], fixed: list[str]
) -> None:
    def made(more: dict[str, Any]) -> Any:
        is_seen_twice = any(aux["loss"]["name"] == "simsiam" for aux in more.get("aux", {}).values())
        data = {"mixture": {"shapes": 1.0}, "batch": 12} | ({"strong": {"flip": 0.5}} if is_seen_twice else {})
        return checked(config(tmp_path, sets, data=data, **more))

    saved = {"config": json.loads(json.dumps(described(made(there))))}
    forced, state = Origin(checkpoint="s3://a/b", force_config=True), {"step": 2, "extra": saved}
    told = forced._misfit(state, made(here)) or ""
    assert sorted(re.findall(r"^    (\S+): .* \*$", told, re.MULTILINE)) == sorted(fixed)


# --- as a user does it


def test_a_longer_run_by_the_command_line(first: RunDir, sets: Path, tmp_path: Path) -> None:
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump(config(tmp_path, sets, length={"steps": STEPS + 2})))
    command = [sys.executable, "launcher/submit.py", "--cluster", "local", f"config={tmp_path}/longer.yaml"]
    ended = subprocess.run(
        [*command, "--continue-from", str(first.path), "--force-config", "run.name=longer"],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert f"step-{STEPS:08d} on:\n    length.steps: {STEPS} -> {STEPS + 2}\n" in ended.stderr
    run = RunDir((tmp_path / "runs/longer").resolve())
    assert sorted(figures(run)) == [STEPS + 1, STEPS + 2]
    assert f"step-{STEPS:08d}" in run.config.read_text()
    assert read_json(run.checkpoint(STEPS + 2) / "state.json")["extra"]["config"]["length"]["steps"] == STEPS + 2
