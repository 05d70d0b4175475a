"""What a training config needs: how many images a second its model takes, and how many CPU cores bring them.

A loader of N worker cores gives N x r images/s, where r is what one core gives; a model that takes g images/s then waits
the share 1 - N x r / g of its time. N is the smallest number for which that is below MOST_WAIT, and the rank's own
process, which drives the GPU, gets a core as well.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pydantic import Field

from retrieval_train.config import Section

if TYPE_CHECKING:
    from jobs.peers.race import Contestant, Shown
    from jobs.train import Config as TrainConfig
    from retrieval_train.data.batch import Batch
    from retrieval_train.engine.engine import Engine
    from retrieval_train.world import World

MOST_WAIT = 0.02
SPEEDS = (250, 500, 1000, 2000, 4000, 8000)
CPU_ROWS = 8
STEPS_S = 5.0


class DemandConfig(Section):
    """A training config whose need of CPU cores is measured."""

    train: Path
    """Its YAML file."""
    gpu_images_per_s: float | None = Field(default=None, gt=0)
    """Images a second that one GPU trains on; null measures it on the GPU here or, where there is none, on the CPU."""
    rows: int | None = Field(default=None, ge=2)
    """Rows of a GPU's micro-batch while that is measured; null: as the config has it, or 8 on the CPU."""


def train_config(demand: DemandConfig) -> TrainConfig:
    """Raises ConfigError for one that could not be trained, or is none of a training."""
    from jobs import job
    from retrieval_train import config as configs
    from retrieval_train.config import ConfigError

    found: Any = job.check(configs.read(demand.train), where=str(demand.train))
    if found.job != "train":
        raise ConfigError(str(demand.train), [("job", f"'{found.job}' is not train")])
    train: TrainConfig = found
    return train


@dataclass(frozen=True)
class Demand:
    """Of one GPU."""

    train: str
    core_images_per_s: float
    """What one core's worth of loader gives."""
    model_images_per_s: float
    measured_on: str
    """The device's name, or who said so."""
    is_gpu: bool

    @property
    def cores(self) -> int:
        return cores_per_gpu(self.model_images_per_s, self.core_images_per_s)

    def in_words(self) -> str:
        takes = f"its model takes {self.model_images_per_s:,.0f} images/s ({self.measured_on})"
        makes = f"one core makes {self.core_images_per_s:,.0f} images/s"
        if not self.is_gpu:
            for_yours = "for a GPU give cores_per_gpu.gpu_images_per_s, or find its speed in the table"
            return f"{self.train}: {takes}, {makes}. There is no GPU here: {for_yours}."
        return (
            f"{self.train} needs {self.cores} CPU cores per GPU to keep the wait for data below {MOST_WAIT:.0%}: {takes}, "
            f"{makes}, and the rank itself needs a core."
        )


def cores_per_gpu(model_images_per_s: float, core_images_per_s: float) -> int:
    """Cores for the workers, and one for the rank itself."""
    return math.ceil((1 - MOST_WAIT) * model_images_per_s / core_images_per_s) + 1


def measure_loader(
    suite: Contestant, train: TrainConfig, *, workers: int, rounds: int, turn_s: float, shown: Shown
) -> float:
    """Images a second of the config's data on as many cores as workers."""
    from jobs.peers.race import take_turns, usable_cores
    from jobs.peers.task import Task

    task = Task(
        shards_root=str(train.shards_root.absolute()),
        mixture=dict(train.data.mixture),
        image_px=train.backbone.image_px,
        workers=workers,
        cores=usable_cores(workers),
        data=train.data.model_dump(mode="json"),
        seed=train.seed,
    )
    rates, _ = take_turns([suite], {suite.entry.module: task}, rounds=rounds, turn_s=turn_s, shown=shown)
    return rates[suite.entry.title].images_per_s


def measure_model(config: TrainConfig, world: World, *, rows: int | None, seed: int) -> float:
    """Images a second of whole training steps on this rank's device, on a batch that lies there already."""
    engine, batches = _build(config, world, seed)
    is_cpu = world.device.type == "cpu"
    rows = rows or (CPU_ROWS if is_cpu else None)
    batches = [_cut(batch, rows) for batch in batches[:1]]
    speeds: list[float] = []
    begun = time.perf_counter()
    while len(speeds) < 4 or time.perf_counter() - begun < STEPS_S:
        started = time.perf_counter()
        report = engine.train_step(batches)  # reads the loss: it has ended when it returns
        speeds.append(report.images / (time.perf_counter() - started))
    return median(speeds[2:])


def _build(config: TrainConfig, world: World, seed: int) -> tuple[Engine, list[Batch]]:
    """The learner under the plain engine, which steps like ZeRO on one GPU and needs nothing compiled; one step's batch."""
    from contextlib import closing

    from jobs.train import fresh_embedder
    from jobs.training import objective
    from retrieval_train.data.loader import build_loader
    from retrieval_train.engine.plain import Config as Plain

    data, px = config.data.model_copy(update={"workers": 0}), config.backbone.image_px
    accumulate = config.engine.accumulate
    loader = build_loader(data, config.shards_root, world, image_px=px, accumulate=accumulate, seed=seed)
    with closing(loader.draws(0, 1)) as draws:
        batches = [batch.to(world.device) for batch in next(draws)]
    embedder = fresh_embedder(config).to(world.device)
    learner = objective.build(config, embedder, loader.labels, world)
    given = config.engine
    engine = Plain(precision=given.precision, clip_norm=given.clip_norm, accumulate=len(batches))
    schedule = config.schedule.build(1000, epoch_steps=loader.epoch_steps, batch=config.data.batch)
    return engine.build(learner, config.optimizer, schedule, seed=seed), batches


def _cut(batch: Batch, rows: int | None) -> Batch:
    """Its first rows."""
    if rows is None or rows >= len(batch.label_N):
        return batch
    cut: dict[str, Any] = {"counts": (rows,)}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if dataclasses.is_dataclass(value):
            cut[field.name] = _cut(value, rows)  # type: ignore[arg-type]
        elif hasattr(value, "shape"):
            cut[field.name] = value[:rows]
    return dataclasses.replace(batch, **cut)


def device_name(world: World) -> str:
    if world.device.type != "cuda":
        return "this CPU"
    import torch

    return torch.cuda.get_device_name(world.device)
