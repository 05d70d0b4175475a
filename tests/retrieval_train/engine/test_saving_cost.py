"""What saving once a minute costs: 86 million weights with their moments, 1 GB, on two ranks of this machine's cores.

Too slow for every day; `make test-long` sets LONG and shows the figures.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from retrieval_train.data.batch import Batch
from retrieval_train.engine import zero
from retrieval_train.engine.agreement import Agreement
from retrieval_train.engine.optimizers import adamw
from retrieval_train.engine.saving import CheckpointConfig, Checkpoints
from retrieval_train.engine.schedule import ScheduleConfig
from retrieval_train.heads import arcface
from retrieval_train.heads.centres import Head
from retrieval_train.learner import Learner
from retrieval_train.losses import softmax
from retrieval_train.models.backbones import timm
from retrieval_train.models.embedder import build_embedder
from retrieval_train.models.necks import linear
from retrieval_train.rundir import RunDir
from retrieval_train.world import World
from tests.processes import run_ranks

IMAGE_PX, ROWS, STEPS, SAVES = 112, 4, 5, 2
CLASSES = [f"things/{number}" for number in range(1000)]


def measure(world: World, folder: Path) -> dict[str, float]:
    """Seconds of a step, and what `SAVES` checkpoints added to steps: means of one."""
    backbone = timm.Config(model="vit_base_patch16_224", image_px=IMAGE_PX, weights="none")
    embedder = build_embedder(backbone, linear.Config(out=512), seed=0)
    head = Head(arcface.Config(margin=0.3), CLASSES, dim=512, world=world, seed=0)
    schedule = ScheduleConfig().build(1000, epoch_steps=1000, batch=ROWS)
    learner = Learner(embedder, head, softmax.Config(), world)
    engine = zero.Config(stage=1).build(learner, adamw.Config(), schedule, seed=0)
    agreement, run = Agreement(world), RunDir(folder / "run")
    config = CheckpointConfig(every_steps=10**6)
    checkpoints = Checkpoints(engine, run, world, config, agreement, extra=dict)
    batch = batch_of(world)

    def step() -> float:
        began = time.perf_counter()
        agreement.agree()
        checkpoints.after(engine.train_step([batch]))
        world.barrier()
        return time.perf_counter() - began

    step()
    checkpoints.save()  # the first one asks the system for its memory
    undisturbed, added, stalls, writings = [step() for _ in range(STEPS)], [], [], []
    for _ in range(SAVES):
        began = time.perf_counter()
        checkpoints.begin()
        world.barrier()
        stalls.append(time.perf_counter() - began)
        saved = run.latest_checkpoint()
        during = [step()]
        while world.from_first(run.latest_checkpoint()) == saved:
            during.append(step())
        writings.append(sum(during))
        undisturbed += [step() for _ in range(STEPS)]
        added.append(sum(during) - len(during) * sorted(undisturbed)[len(undisturbed) // 2])
    engine.close()
    return {
        "step": sorted(undisturbed)[len(undisturbed) // 2],
        "stall": sum(stalls) / SAVES,
        "slowdown": sum(added) / SAVES,
        "writing": sum(writings) / SAVES,
        "bytes": float(sum(file.stat().st_size for file in (saved or folder).iterdir())),
    }


def batch_of(world: World) -> Batch:
    mine = range(ROWS * world.rank // world.size, ROWS * (world.rank + 1) // world.size)
    image = torch.randint(0, 255, (len(mine), 3, IMAGE_PX, IMAGE_PX), dtype=torch.uint8)
    counts = tuple(ROWS * (rank + 1) // world.size - ROWS * rank // world.size for rank in range(world.size))
    return Batch(image, torch.tensor(mine) % len(CLASSES), counts, 1.0, row_N=tuple(mine), key_N=("",) * len(mine))


@pytest.mark.skipif("LONG" not in os.environ, reason="minutes, and figures of the machine: make test-long")
def test_saving_once_a_minute_costs_at_most_5_percent(tmp_path: Path) -> None:
    found = run_ranks(measure, 2, tmp_path, timeout_s=900)[0]
    share = (found["stall"] + found["slowdown"]) / 60
    print(
        f"\n{found['bytes'] / 1e9:.2f} GB of state; a step takes {found['step']:.2f} s; a checkpoint holds it up for "
        f"{found['stall']:.2f} s, is written beside {found['writing']:.1f} s of steps and slows those by "
        f"{found['slowdown']:.2f} s: {share:.1%} of a minute"
    )
    assert share <= 0.05
