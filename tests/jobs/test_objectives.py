"""Whole runs with every kind of objective: any engine and number of ranks give the same losses, and the export is whole."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from jobs import evaluate, find_lr, job, train
from jobs.job import Preempted
from retrieval_train import config as configs
from retrieval_train.engine.stepper import Stepper
from retrieval_train.rundir import RunDir, read_json
from retrieval_train.world import Alone, World
from shards.cli import main
from tests.processes import run_ranks
from tests.retrieval_train.data.conftest import draw, make_tags

pytestmark = pytest.mark.xdist_group("objectives")  # what its fixture makes takes long
STEPS = 4
STRONG = {"crop_scale": [0.4, 0.9], "flip": 0.5}
SHAPES: dict[str, Any] = {"mixture": {"shapes": 1.0}, "batch": 12, "workers": 0}
TAGS: dict[str, Any] = {**SHAPES, "mixture": {"tags": 1.0}}
ARCFACE = {"name": "arcface", "margin": 0.1, "scale": 16}
ZERO = {"name": "zero", "stage": 2}

CASES: dict[str, dict[str, Any]] = {
    "triplet": {
        "head": None,
        "loss": {"name": "triplet", "margin": "soft"},
        "data": {**SHAPES, "order": {"name": "pk", "classes": 4, "images": 3}},
    },
    "tags": {  # a linear classifier of several labels, and a little ArcFace beside it
        "head": {"name": "linear"},
        "loss": {"name": "bce"},
        "aux": {"arc": {"weight": 0.05, "head": ARCFACE, "loss": {"name": "softmax"}}},
        "data": TAGS,
    },
    "many_of_softmax": {"head": ARCFACE, "data": TAGS},
    "consistency": {
        "head": ARCFACE,
        "aux": {"same": {"weight": 100, "loss": {"name": "consistency"}}},
        "data": {**SHAPES, "strong": STRONG, "unlabelled": {"mixture": {"tags": 1.0}, "batch": 6}},
    },
    "simsiam": {
        "head": None,
        "loss": {"name": "simsiam", "projection": 12, "hidden": 4},
        "optimizer": {"name": "sgd", "lr": 0.1},  # Adam makes steps of rounding where batch norm takes a gradient away
        "data": {**SHAPES, "strong": STRONG},
    },
    "distillation": {
        "lora": {"rank": 2},
        "head": {"name": "normface", "scale": 16},
        "loss": {"name": "softmax", "over": "domain"},
        "aux": {"teachers": {"loss": {"name": "distillation", "teacher_dim": 6}}},
        "data": SHAPES,
    },
    "bank": {
        "head": {"name": "adaface", "margin": 0.2, "scale": 16, "momentum": 0.3},
        "aux": {"memory": {"weight": 0.5, "loss": {"name": "xbm", "bank": 30}}},
        "data": SHAPES,
    },
}
RESUMED = ("bank", "distillation")
WITH_LAYERS = {"simsiam": "layers.main.", "distillation": "layers.aux_teachers."}


def values(sets: Path, engine: dict[str, Any], **more: Any) -> dict[str, Any]:
    given = {
        "job": "train",
        "run": {"name": "one", "threads": 1, "device": "cpu"},
        "shards_root": str(sets),
        "backbone": {"name": "timm", "model": "test_vit", "image_px": 16, "weights": "none", "blocks": 1},
        "neck": {"name": "linear", "out": 8},
        "engine": engine,
        "optimizer": {"lr": 2e-3, "head_lr": 1e-2},
        "schedule": {"warmup": 0},
        "length": {"steps": STEPS},
        "evaluate": {"set": "shapes", "every_steps": STEPS, "first": False, "embed": {"workers": 0}},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
    return given | more


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards_root with `shapes`, of two domains and with classes to evaluate on, and `tags`, with several labels."""
    root = make_tags(tmp_path_factory.mktemp("sets"))
    draw(root / "drawn", domains={"warm": 10, "cold": 8}, images=6)
    made = ["make", "folder", str(root / "drawn"), "--levels", "domain/class", "--dev-fraction", "0.5"]
    assert main([*made, "--shard-samples", "10", "--out", str(root / "shapes")]) == 0
    return root


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The machine is shared with other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(world: World, run: RunDir, given: dict[str, Any]) -> RunDir:
    config = job.check(given, where="a config")
    assert isinstance(config, train.Config)
    train.run(config, run, world)
    return run


def evaluated(world: World, run: RunDir, sets: Path, of: RunDir) -> dict[str, float]:
    """The evaluate job's metrics of a run's export."""
    given = {"job": "evaluate", "run": {"name": "job"}, "shards_root": sets, "model": of.export}
    given |= {"baselines": ["chance", "untrained"], "data": {"set": "shapes"}, "embed": {"workers": 0}}
    evaluate.run(configs.check(evaluate.Config, given, where="a config"), run, world)
    world.barrier()
    metrics: dict[str, float] = read_json(run.report)["metrics"]["merged"]
    return metrics


def all_cases(world: World, root: Path, sets: Path) -> dict[str, dict[str, float]]:
    """Every case by ZeRO 2, and what the evaluate job says of its export; those with layers of losses by ZeRO 3 too."""
    found = {}
    for name in WITH_LAYERS:
        trained(world, RunDir(root / f"{name}-3"), values(sets, {**ZERO, "stage": 3}, **CASES[name]))
    for name, case in CASES.items():
        of = trained(world, RunDir(root / name), values(sets, ZERO, **case))
        found[name] = evaluated(world, RunDir(root / f"{name}-evaluated"), sets, of)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sets: Path) -> tuple[Path, dict[str, dict[str, float]]]:
    """Folder of the cases' runs on two ranks, and the metrics of their exports."""
    root = tmp_path_factory.mktemp("whole")
    first, second = run_ranks(all_cases, 2, root, sets)
    assert first == second, "the ranks agree"
    return root, first


Whole = tuple[Path, dict[str, dict[str, float]]]


def lines_of(run: RunDir) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def losses_of(run: RunDir) -> list[float]:
    """Of every step: the loss, the gradient's norm and each term."""
    lines = lines_of(run)
    names = sorted(name for name in lines[0] if name.startswith("loss"))
    return [line[name] for line in lines for name in (*names, "grad_norm")]


@pytest.mark.parametrize("name", CASES)
def test_one_rank_of_the_plain_engine_has_the_losses_of_two_of_zero(
    tmp_path: Path, sets: Path, whole: Whole, name: str
) -> None:
    plain = trained(Alone(), RunDir(tmp_path / "plain"), values(sets, {"name": "plain"}, evaluate=None, **CASES[name]))
    assert len(lines_of(plain)) == STEPS
    for folder in (name, f"{name}-3") if name in WITH_LAYERS else (name,):
        assert losses_of(RunDir(whole[0] / folder)) == pytest.approx(losses_of(plain), rel=1e-4, abs=1e-6), folder


@pytest.mark.parametrize("name", CASES)
def test_every_term_is_told_and_with_its_weight_they_are_the_loss(whole: Whole, name: str) -> None:
    case, run = CASES[name], RunDir(whole[0] / name)
    weights = {"main": 1.0} | {aux: given.get("weight", 1.0) for aux, given in case.get("aux", {}).items()}
    lines = lines_of(run)
    for line in lines:
        told = {key.partition("/")[2]: value for key, value in line.items() if key.startswith("loss_of/")}
        assert told.keys() == (weights.keys() if len(weights) > 1 else set())
        assert not told or sum(weights[key] * told[key] for key in told) == pytest.approx(line["loss"], rel=1e-5)
        assert all(told.values()), "a term that is 0 has not looked at anything"
    page = run.page.read_text()
    assert "<html" in page and f"{STEPS} steps" in page
    assert ("each loss, without its weight" in page) == (len(weights) > 1)


@pytest.mark.parametrize("name", CASES)
def test_the_export_is_judged_as_the_run_was_and_has_no_layers_of_losses(whole: Whole, name: str) -> None:
    root, metrics = whole
    run = RunDir(root / name)
    judged = {key: value for key, value in lines_of(run)[-1].items() if key.startswith("dev/")}
    assert {key: judged[f"dev/{key}"] for key in metrics[name]} == pytest.approx(metrics[name], abs=1e-6)
    with safe_open(run.export / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert names and not [tensor for tensor in names if "layers." in tensor or "lora" in tensor]
    has_head = CASES[name].get("head") is not None
    assert (run.export / "centres.safetensors").is_file() == (run.export / "classes.txt").is_file() == has_head
    with safe_open(run.checkpoint(STEPS) / "model.safetensors", framework="pt") as file:
        kept = [tensor for tensor in file.keys() if tensor.startswith("layers.")]
    layers = WITH_LAYERS.get(name, "none")
    assert bool(kept) == (name in WITH_LAYERS) and all(tensor.startswith(layers) for tensor in kept)


def test_micro_batches_of_labelled_and_unlabelled_rows_have_the_losses_of_the_batch(
    tmp_path: Path, sets: Path, whole: Whole
) -> None:
    given = values(sets, {"name": "plain", "accumulate": 2}, evaluate=None, **CASES["consistency"])
    run = trained(Alone(), RunDir(tmp_path), given)
    assert losses_of(run) == pytest.approx(losses_of(RunDir(whole[0] / "consistency")), rel=1e-4, abs=1e-6)


def interrupted(world: World, root: Path, given: dict[str, Any], step: int) -> None:
    """Train up to a SIGTERM that the last rank gets after `step`."""
    stepped = Stepper.train_step

    def and_a_signal(stepper: Stepper, micro_batches: Any) -> Any:
        report = stepped(stepper, micro_batches)
        if stepper.step == step and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return report

    Stepper.train_step = and_a_signal  # type: ignore[method-assign, assignment]
    try:
        with contextlib.suppress(Preempted):
            trained(world, RunDir(root), given)
    finally:
        Stepper.train_step = stepped  # type: ignore[method-assign]
    assert RunDir(root).latest_checkpoint() == RunDir(root).checkpoint(step), "it was saved where it was told to stop"


def interrupted_all(world: World, root: Path, sets: Path) -> None:
    for name in RESUMED:
        interrupted(world, root / name, values(sets, ZERO, **CASES[name]), 2)


def resumed_all(world: World, root: Path, sets: Path) -> None:
    for name in RESUMED:
        trained(world, RunDir(root / name), values(sets, ZERO, **CASES[name]))


def test_running_state_and_layers_of_losses_go_on_with_another_number_of_ranks(
    tmp_path: Path, sets: Path, whole: Whole
) -> None:
    run_ranks(interrupted_all, 2, tmp_path, sets)
    assert [len(lines_of(RunDir(tmp_path / name))) for name in RESUMED] == [2] * len(RESUMED)
    with safe_open(RunDir(tmp_path / "bank").checkpoint(2) / "running.safetensors", framework="pt") as file:
        assert set(file.keys()) >= {"head.norm_mean", "memory.loss.bank_MD", "memory.loss.bank_label_M"}
        assert int(file.get_tensor("memory.loss.bank_at")) == 24, "rows of two steps"
    run_ranks(resumed_all, 1, tmp_path, sets)
    for name in RESUMED:
        run = RunDir(tmp_path / name)
        assert [line["step"] for line in lines_of(run)] == list(range(1, STEPS + 1))
        assert losses_of(run) == pytest.approx(losses_of(RunDir(whole[0] / name)), rel=1e-4, abs=1e-6), name


def test_a_next_stage_with_a_head_begins_from_an_export_without_class_centres(
    tmp_path: Path, sets: Path, whole: Whole
) -> None:
    given = values(sets, {"name": "plain"}, head=ARCFACE, data=SHAPES, init={"model": str(whole[0] / "simsiam/export")})
    run = trained(Alone(), RunDir(tmp_path / "next"), given)
    assert (run.export / "centres.safetensors").is_file() and len(lines_of(run)) == STEPS


def test_the_learning_rate_of_a_loss_without_class_centres_is_found(tmp_path: Path, sets: Path) -> None:
    given = values(sets, {"name": "plain"}, **CASES["simsiam"]) | {"job": "find_lr", "find": {"steps": 10}}
    config = job.check(given, where="a config")
    assert isinstance(config, find_lr.Config)
    assert find_lr.run(config, RunDir(tmp_path), Alone())["steps"] == 10
    assert read_json(tmp_path / "report.json")["ending"] == "finished"
