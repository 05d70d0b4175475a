"""What saving once a minute costs: 86 million weights with their moments, 1 GB, on two ranks of this machine's cores.

Too slow for every day; `make test-long` sets LONG and shows the figures.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
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

IMAGE_PX, ROWS, STEPS, SAVES = 112, 2, 4, 2
CLASSES = [f"things/{number}" for number in range(1000)]


def measure(world: World, folder: Path) -> tuple[dict[str, Times], float]:
    """Of a step, what one of `SAVES` checkpoints holds up, and by how much it slows the steps beside it; its bytes."""
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

    def step() -> Times:
        began = Times.now()
        agreement.agree()
        checkpoints.after(engine.train_step([batch]))
        world.barrier()
        return began.until_now()

    step()
    checkpoints.save()  # the first one asks the system for its memory
    undisturbed, added, stalls, saved = [step() for _ in range(STEPS)], [], [], None
    for _ in range(SAVES):
        began = Times.now()
        checkpoints.begin()
        world.barrier()
        stalls.append(began.until_now())
        saved, num_steps, began = run.latest_checkpoint(), 0, Times.now()
        while world.from_first(run.latest_checkpoint()) == saved:
            step()
            num_steps += 1
        during = began.until_now()
        undisturbed += [step() for _ in range(STEPS)]
        added.append(during.less(median(undisturbed), times=num_steps))
    engine.close()
    size = float(sum(file.stat().st_size for file in (saved or folder).iterdir()))
    return {"step": median(undisturbed), "stall": mean(stalls), "slowdown": mean(added)}, size


@dataclass(frozen=True)
class Times:
    """Seconds."""

    wall: float
    cpu: float
    """Of all threads of this rank: on a machine with other work, what wall-clock would be without it."""

    @classmethod
    def now(cls) -> Times:
        return cls(time.perf_counter(), time.process_time())

    def until_now(self) -> Times:
        return Times.now().less(self)

    def less(self, other: Times, *, times: int = 1) -> Times:
        return Times(self.wall - times * other.wall, self.cpu - times * other.cpu)


def median(many: list[Times]) -> Times:
    return Times(statistics.median(one.wall for one in many), statistics.median(one.cpu for one in many))


def mean(many: list[Times]) -> Times:
    return Times(statistics.fmean(one.wall for one in many), statistics.fmean(one.cpu for one in many))


def batch_of(world: World) -> Batch:
    mine = range(ROWS * world.rank // world.size, ROWS * (world.rank + 1) // world.size)
    image = torch.randint(0, 255, (len(mine), 3, IMAGE_PX, IMAGE_PX), dtype=torch.uint8)
    counts = tuple(ROWS * (rank + 1) // world.size - ROWS * rank // world.size for rank in range(world.size))
    return Batch(image, torch.tensor(mine) % len(CLASSES), counts, 1.0, row_N=tuple(mine), key_N=("",) * len(mine))


@pytest.mark.skipif("LONG" not in os.environ, reason="minutes, and figures of the machine: make test-long")
def test_saving_once_a_minute_costs_at_most_5_percent(tmp_path: Path) -> None:
    found, size = run_ranks(measure, 2, tmp_path, timeout_s=900)[0]
    step, stall, slowdown = found["step"], found["stall"], found["slowdown"]
    wall, cpu = (stall.wall + slowdown.wall) / 60, (stall.cpu + slowdown.cpu) / 60
    print(
        f"\n{size / 1e9:.2f} GB; wall-clock seconds (CPU seconds of a rank): a step {step.wall:.2f} ({step.cpu:.2f}), "
        f"held up by {stall.wall:.2f} ({stall.cpu:.2f}), slowed by {slowdown.wall:.2f} ({slowdown.cpu:.2f}) a checkpoint: "
        f"{wall:.1%} ({cpu:.1%}) of a minute"
    )
    assert wall <= 0.05
