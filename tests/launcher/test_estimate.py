"""What a run needs, told before it is queued. How near it is: tests/jobs/test_estimate_measured.py."""

from __future__ import annotations

import argparse
import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jobs.train import Config
from jobs.training.planned import Planner, Ranks
from launcher import dry_run, submit
from launcher.needs import estimate, fitting, gpus, throughput
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


def run_of(
    config: Config, folder: Path, *, rate: float, age_s: float, gpus_per_node: int = 0, ranks: int = 2, gpu: str = ""
) -> None:
    """An earlier run, as far as its speed is told by it."""
    run = RunDir(folder)
    folder.mkdir(parents=True)
    run.config.write_text(configs.dump(config))
    run.plan.write_text(json.dumps({"gpus_per_node": gpus_per_node, "nodes": 1, "tasks_per_node": ranks}))
    if gpu:
        run.preflight.write_text(json.dumps({"ranks": [{"node": "n1", "gpu": {"name": gpu}}]}))
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
    where = f"{tmp_path.name}/newer on an unknown device"
    assert found == throughput.Throughput(60.0, f"measured by {where}: 20 a rank")
    with pytest.raises(ConfigError, match="-3 is not above 0"):
        throughput.given(-3)


def test_a_run_on_another_gpu_or_with_other_settings_says_nothing_of_the_speed(sets: Path, tmp_path: Path) -> None:
    config, plan = config_of(sets), plan_of(tmp_path / "it-00000000", tasks=2, gpus_per_node=2)
    data = {"mixture": {"shapes": 1.0}, "batch": 32}
    others = {
        "stage": config_of(sets, engine={"name": "zero", "stage": 3, "bucket_mb": 1.0}),
        "accumulate": config_of(sets, engine={"name": "zero", "stage": 0, "bucket_mb": 1.0, "accumulate": 2}),
        "views": config_of(sets, data=data | {"strong": {"flip": 0.5}}),
        "resolutions": config_of(
            sets, data=data | {"resolutions": [{"px": 32, "until": 0.5}, {"px": 64, "until": 1.0}]}
        ),
    }
    for name, other in others.items():
        run_of(other, tmp_path / name, rate=10, age_s=10, gpus_per_node=2, gpu="NVIDIA H100 80GB HBM3")
    run_of(config, tmp_path / "rows", rate=10, age_s=10, gpus_per_node=8, ranks=8, gpu="NVIDIA H100 80GB HBM3")
    assert throughput.measured(config, plan) is None
    run_of(config, tmp_path / "h100", rate=40, age_s=20, gpus_per_node=2, gpu="NVIDIA H100 80GB HBM3")
    run_of(config, tmp_path / "odd", rate=50, age_s=10, gpus_per_node=2, gpu="NVIDIA Odd")
    found = throughput.measured(config, plan, gpus.find("h100"))
    assert found is not None and found.source.endswith("/h100 on NVIDIA H100 80GB HBM3: 40 a rank")
    assert throughput.measured(config, plan, gpus.find("a100-80")) is None
    found = throughput.measured(config, plan, gpus.find("80 GB"))
    assert found is not None and found.source.endswith("/odd on NVIDIA Odd: 50 a rank"), (
        "which it is to be is not known"
    )


def test_a_model_that_cannot_be_estimated_is_submitted_all_the_same_and_an_unknown_gpu_is_not(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, plan = config_of(sets), plan_of(tmp_path / "runs" / "it", tasks=2)
    options = argparse.Namespace(no_estimate=False, gpu=None, images_per_s=None)
    said = functools.partial(dry_run.needs_of, options, config, plan, refuse=True)
    assert said().startswith("model    ")
    options.gpu = "h100"
    assert said().endswith("--gpu h100 is not used: the plan has no GPU")
    options.no_estimate = True
    assert said() == "not used: --gpu h100: --no-estimate leaves the estimate out"
    options.no_estimate, options.gpu = False, "h1000"
    with pytest.raises(ConfigError, match="is no GPU that is known here"):
        dry_run.needs_of(options, config, plan_of(tmp_path, gpus_per_node=1), refuse=True)

    def breaks(*_: object, **__: object) -> None:
        raise NotImplementedError("no shapes\nof my_op")

    monkeypatch.setattr(estimate, "of", breaks)
    assert said() == "no estimate: NotImplementedError: no shapes of my_op"


def test_a_dry_run_of_a_pipeline_estimates_each_stage_that_trains_and_its_submit_says_that_it_does_not(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.yaml").write_text(configs.dump(config_of(sets, run={"name": "it", "device": "cpu"})))
    stages = {
        "first": {"config": "train.yaml", "set": {"run.name": "first"}},
        "second": {"config": "train.yaml", "set": {"run.name": "second"}, "needs": ["first"]},
    }
    (tmp_path / "pipe.yaml").write_text(yaml.safe_dump({"job": "pipeline", "stages": stages}))
    assert submit.main(["config=pipe.yaml", "--dry-run", "--cluster", "local", "--images-per-s", "100"]) == 0
    told = capsys.readouterr()
    for name in ("first", "second"):
        words = told.out.partition(f"\nstage {name}:\n")[2]
        assert words.startswith("model    ") and "100 images/s (given)" in words, told.out
    assert told.err == "" and not (tmp_path / "runs").exists()
    command = ["config=pipe.yaml", "--cluster", "local", "--images-per-s", "100"]
    assert submit.main([*command, "--detach"]) == 2, "nothing begins"
    assert "not used: --images-per-s 100.0: a pipeline is estimated by --dry-run only" in capsys.readouterr().err


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
        ("h20", "h20"),
        ("v100", "v100-16"),
    ],
)
def test_a_gpu_is_known_by_what_people_and_schedulers_call_it(text: str, name: str) -> None:
    assert gpus.find(text).name == name


@pytest.mark.parametrize("text", ["gtx-980", "h2", "b2", "mi300", "rtx", "a1", "", "0", "-4", "nvidia"])
def test_another_gpu_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no GPU that is known here; there are: t4, .*h200"):
        gpus.find(text)
