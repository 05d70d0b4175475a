"""What a run needs, told before it is queued. How near it is: tests/jobs/test_estimate_measured.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.train import Config
from jobs.training.planned import Planner, Ranks
from launcher import estimate, fitting, gpus, throughput
from launcher.plan import Plan
from retrieval_train import config as configs
from retrieval_train.config import ConfigError
from retrieval_train.data.order.order import Samples
from retrieval_train.data.streams import _opened
from retrieval_train.rundir import RunDir
from tests.retrieval_train.data.conftest import make_sets

VIT = {"name": "timm", "model": "vit_tiny_patch16_224", "image_px": 64, "blocks": 2}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See make_sets."""
    return make_sets(tmp_path_factory.mktemp("sets"))


def config_of(sets: Path, **more: Any) -> Config:
    values = {
        "job": "train",
        "run": {"name": "it"},
        "backbone": VIT,
        "head": {"name": "arcface", "margin": 0.2},
        "data": {"mixture": {"shapes": 1.0}, "batch": 32},
        "engine": {"name": "zero", "stage": 0, "bucket_mb": 1.0},
        "length": {"epochs": 3},
        "shards_root": str(sets),
    }
    return configs.check(Config, values | more, where="the test")


def plan_of(
    run_dir: Path, *, tasks: int = 1, gpus_per_node: int = 0, mem_gb: float | None = None, nodes: int = 1
) -> Plan:
    return Plan(
        job="train",
        run_dir=run_dir,
        cluster="local",
        scheduler="local",
        nodes=nodes,
        tasks_per_node=tasks,
        gpus_per_node=gpus_per_node,
        cpus_per_task=None,
        mem_gb=mem_gb,
        time_min=None,
        signal_delay_s=5,
        partition=None,
        account=None,
        qos=None,
    )


def planner_of(config: Config, ranks: Ranks) -> Planner:
    return Planner(config, ranks, num_classes=1000, num_domains=1)


def test_an_estimate_says_how_long_and_large_a_run_is_and_touches_nothing(sets: Path, tmp_path: Path) -> None:
    """The weights are those of the hub, which nobody asks here."""
    config = config_of(sets)
    found = estimate.of(config, plan_of(tmp_path / "runs" / "it", tasks=2), images_per_s=200)
    readers, labels = _opened(config.data, sets, "train")
    order = config.data.order.build(Samples(readers, labels, (1.0,)), batch=32, seed=0)
    assert (found.steps, found.images, found.epochs) == (3 * order.epoch_steps, 3 * order.epoch_steps * 32, 3.0)
    assert found.classes == len(labels.names) and found.trained == found.parameters > 800_000
    assert found.checkpoint == pytest.approx(4 * 3 * (found.trained + found.centres), rel=0.001)
    assert found.hours == pytest.approx(found.images / 200 / 3600)
    assert found.gpu_hours == pytest.approx(2 * found.images / 200 / 3600)
    assert found.problem is None and list(found.total_of_stage or {}) == [0, 1, 2, 3]
    assert not torch.cuda.is_initialized() and not list(tmp_path.iterdir())
    words = estimate.in_words(found)
    for told in (f"{found.trained:,} of {found.parameters:,} parameters", "by ZeRO stage: 0: ", "3 epochs", "(given)"):
        assert told in words
    assert json.loads(json.dumps(estimate.as_dict(found)))["steps"] == found.steps


def test_what_does_not_fit_is_a_problem_and_each_setting_that_is_told_fits(sets: Path, tmp_path: Path) -> None:
    config = config_of(sets, data={"mixture": {"shapes": 8.0}, "batch": 256})
    plan = plan_of(tmp_path / "runs" / "it", tasks=2, gpus_per_node=2)
    anywhere = estimate.of(config, plan)
    assert anywhere.problem is None and "fits t4, v100-16" in estimate.in_words(anywhere)
    found = estimate.of(config, plan, gpu=f"{anywhere.total * 0.6 / 2**30:.4f}")
    assert found.problem is not None and found.problem[0] == "memory" and 2 <= len(found.advice) <= fitting.NAMED
    assert found.advice[0].startswith("engine.accumulate="), "the training stays what it is"
    planner = Planner(config, Ranks(1, 2, on_gpu=True), num_classes=found.classes, num_domains=1)
    for setting in found.advice:
        assert setting in found.problem[1]
        key, _, value = setting.partition("=")
        other = fitting.changed(config, (key, {"true": True}.get(value) or (int(value) if value.isdigit() else value)))
        assert planner.need(other).total <= estimate.ROOM * found.capacity < planner.need(config).total  # type: ignore[operator]
    hopeless = estimate.of(config, plan, gpu="0.001")
    assert hopeless.advice == () and "no setting would do" in hopeless.problem[1]  # type: ignore[index]


def test_a_setting_that_the_config_refuses_is_not_told(sets: Path) -> None:
    """A triplet loss compares the rows of a micro-batch: fewer of them would be another loss."""
    data = {"mixture": {"shapes": 1.0}, "batch": 256}
    config = config_of(sets, data=data, head=None, loss={"name": "triplet"})
    planner = planner_of(config, Ranks(1, 1, on_gpu=True))
    room = int(0.6 * planner.need(config).total)
    told = fitting.settings_that_fit(config, planner, room=room)
    assert told and not any("accumulate" in setting for setting in told), told


def test_rows_between_two_counts_are_on_a_line_that_is_never_below_what_would_be_counted(sets: Path) -> None:
    config = config_of(sets)
    of_line, of_count = (planner_of(config, Ranks(1, 1, on_gpu=True)) for _ in range(2))
    of_line.activations(config, 64)
    for said, counted in zip(
        vars(of_line.activations(config, 16)).values(), vars(of_count.activations(config, 16)).values(), strict=True
    ):
        assert counted <= said < 1.2 * counted


def run_of(config: Config, folder: Path, *, rate: float, age_s: float, gpus_per_node: int = 0) -> None:
    """An earlier run, as far as its speed is told by it."""
    run = RunDir(folder)
    folder.mkdir(parents=True)
    run.config.write_text(configs.dump(config))
    run.plan.write_text(json.dumps({"gpus_per_node": gpus_per_node}))
    lines = [{"step": step, "images_per_s_rank": rate if step > 1 else 0.1} for step in range(1, 12)]
    run.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    at = run.metrics.stat().st_mtime - age_s
    os.utime(run.metrics, (at, at))


def test_the_newest_run_of_the_same_model_and_kind_of_device_says_how_fast_a_rank_is(
    sets: Path, tmp_path: Path
) -> None:
    config, plan = config_of(sets), plan_of(tmp_path / "it-00000000", tasks=3)
    other = config_of(sets, backbone=VIT | {"image_px": 96})
    assert throughput.measured(config, plan) is None
    run_of(config, tmp_path / "older", rate=10, age_s=50)
    run_of(config_of(sets, seed=4), tmp_path / "newer", rate=20, age_s=40)
    run_of(other, tmp_path / "other", rate=30, age_s=30)
    run_of(config, tmp_path / "gpu", rate=40, age_s=20, gpus_per_node=1)
    (tmp_path / "broken").mkdir()
    for name in ("config.yaml", "plan.json", "metrics.jsonl"):
        (tmp_path / "broken" / name).write_text("{")
    found = throughput.measured(config, plan)
    assert found == throughput.Throughput(60.0, "measured in newer: 20 a rank")
    with pytest.raises(ConfigError, match="-3 is not above 0"):
        throughput.given(-3)


def test_without_a_run_a_known_gpu_is_taken_to_work_at_a_share_of_its_peak() -> None:
    found = throughput.assumed(gpus.find("h100"), "bf16", 4, 1e9)
    assert found is not None and "assumed: 35% of the peak of h100-80" in found.source
    assert found.images_per_s == pytest.approx(4 * 0.35 * 989.5e12 / 1e9)
    assert throughput.assumed(gpus.find("48 GB"), "bf16", 4, 1e9) is None, "only its memory is known"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("h100", "h100-80"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("a100", "a100-40"),
        ("nvidia_h100_80gb_hbm3", "h100-80"),
        ("a10", "a10"),
        ("A10G", "a10g"),
        ("L40S", "l40s"),
        ("RTX 4090", "rtx4090"),
        ("24 GB", "24 GB"),
    ],
)
def test_a_gpu_is_known_by_what_people_and_schedulers_call_it(text: str, name: str) -> None:
    assert gpus.find(text).name == name


@pytest.mark.parametrize("text", ["gtx-980", "", "0", "-4", "nvidia"])
def test_another_gpu_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no GPU that is known here; there are: t4, .*h200"):
        gpus.find(text)
