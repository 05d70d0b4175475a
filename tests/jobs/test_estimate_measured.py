"""The estimate of memory against what real ranks hold in a real step.

On a machine with a GPU the last test compares with what torch took there:

    python -m pytest tests/jobs/test_estimate_measured.py -k gpu
"""

from __future__ import annotations

import gc
import logging
from typing import Any

import numpy as np
import pytest
import torch

from jobs import train
from jobs.train import Config
from jobs.training import objective
from jobs.training.planned import Planner, Ranks
from retrieval_train import config as configs
from retrieval_train.data.batch import Batch
from retrieval_train.data.labels import Labels
from retrieval_train.engine.engine import Engine
from retrieval_train.engine.schedule import ScheduleConfig
from retrieval_train.models.batch_norm import sync_batch_norm
from retrieval_train.world import Alone, World
from tests.processes import run_ranks
from tests.retrieval_train.engine.test_memory import storages

NAMES = tuple(f"toys/{number:04d}" for number in range(600))
VIT = {
    "name": "timm",
    "model": "vit_tiny_patch16_224",
    "image_px": 96,
    "blocks": 4,
    "weights": "none",
    "drop_path": 0.1,
}
CONV = {"name": "timm", "model": "resnet18", "image_px": 96, "weights": "none"}
PLAIN: dict[str, Any] = {"name": "plain"}
ZERO: dict[str, Any] = {"name": "zero", "stage": 2, "bucket_mb": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "vit, all of it": {"backbone": VIT, "engine": PLAIN},
    "vit, all of it, zero": {"backbone": VIT, "engine": ZERO},
    "vit, lora, zero": {"backbone": VIT, "engine": ZERO, "lora": {"rank": 4}},
    "vit, lora, bf16": {"backbone": VIT, "engine": PLAIN | {"precision": "bf16"}, "lora": {"rank": 4}},
    "vit, again": {"backbone": VIT, "engine": PLAIN | {"checkpoint_activations": True, "accumulate": 2}},
    "conv": {"backbone": CONV, "engine": PLAIN},
    "conv, zero": {"backbone": CONV, "engine": ZERO},
}


def config_of(case: dict[str, Any], batch: int) -> Config:
    values = {
        "job": "train",
        "run": {"name": "it"},
        "neck": {"name": "linear", "out": 64},
        "head": {"name": "arcface", "margin": 0.2},
        "data": {"mixture": {"toys": 1.0}, "batch": batch},
        "length": {"steps": 4},
    }
    return configs.check(Config, values | case, where="the test")


def engine_of(config: Config, world: World) -> Engine:
    """As `train.build` and `train.run` make it, without a loader."""
    labels = Labels(NAMES, np.full(len(NAMES), 4), (), ("toys",))
    embedder = train.fresh_embedder(config).to(world.device)
    learner = objective.build(config, embedder, labels, world)
    sync_batch_norm(embedder, world)
    schedule = ScheduleConfig().build(4, epoch_steps=4, batch=config.data.batch)
    return config.engine.build(learner, config.optimizer, schedule, seed=0)


def step_batches(config: Config, world: World) -> list[Batch]:
    """Noise, as many rows on every rank."""
    px, parts = config.backbone.image_px, config.engine.accumulate
    rows = config.data.batch // world.size // parts
    make = torch.Generator().manual_seed(world.rank)
    return [
        Batch(
            torch.randint(0, 255, (rows, 3, px, px), dtype=torch.uint8, generator=make).to(world.device),
            torch.randint(0, len(NAMES), (rows,), generator=make).to(world.device),
            (rows,) * world.size,
            weight=1 / parts,
            row_N=tuple(range(rows)),
        )
        for _ in range(parts)
    ]


def most_held(world: World, batch: int, names: list[str]) -> list[int]:
    """For each case: the most bytes of tensors at a time in a step, all that its run holds included."""
    logging.disable(logging.WARNING)
    gc.freeze()
    return [_most_held_of(config_of(CASES[name], batch), world) for name in names]


def _most_held_of(config: Config, world: World) -> int:
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    before = storages()
    engine = engine_of(config, world)
    batches = step_batches(config, world)
    engine.train_step(batches)
    gc.collect()
    resting = sum(size for at, size in storages().items() if at not in before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        engine.train_step(batches)
    held = most = 0
    events: Any = told.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    engine.close()
    return resting + most


def planned(name: str, batch: int, ranks: Ranks) -> int:
    config = config_of(CASES[name], batch)
    need = Planner(config, ranks, num_classes=len(NAMES), num_domains=1).need(config)
    return need.total - need.process


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_holds_what_the_estimate_says(ranks: int) -> None:
    names, batch = [name for name in CASES if ranks == 1 or "zero" in name or name == "conv"], 32 * ranks
    measured = [max(of_ranks) for of_ranks in zip(*run_ranks(most_held, ranks, batch, names), strict=True)]
    said = [planned(name, batch, Ranks(1, ranks, on_gpu=False)) for name in names]
    off = {name: round(says / has - 1, 3) for name, says, has in zip(names, said, measured, strict=True)}
    print({name: has / 2**20 for name, has in zip(names, measured, strict=True)}, off)
    assert all(abs(wrong) < 0.15 for wrong in off.values()), off


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("name", [name for name in CASES if "zero" not in name])
def test_a_gpu_takes_what_the_estimate_says(name: str) -> None:
    batch, world = 128, Alone(torch.device("cuda", 0))
    config = config_of(CASES[name], batch)
    engine, batches = engine_of(config, world), step_batches(config, world)
    engine.train_step(batches)
    torch.cuda.reset_peak_memory_stats()
    engine.train_step(batches)
    has, says = torch.cuda.max_memory_allocated(), planned(name, batch, Ranks(1, 1, on_gpu=True))
    assert says == pytest.approx(has, rel=0.15)
