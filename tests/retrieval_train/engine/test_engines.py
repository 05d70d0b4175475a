"""The engine contract: every stage on any number of ranks trains like one dense process, and loads any other's state."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from retrieval_train.data.batch import Batch
from retrieval_train.engine import plain, zero
from retrieval_train.engine.engine import Engine, EngineConfig
from retrieval_train.engine.optimizers import adamw
from retrieval_train.engine.schedule import ScheduleConfig
from retrieval_train.engine.snapshot import seal
from retrieval_train.heads import arcface
from retrieval_train.heads.centres import Head
from retrieval_train.learner import Learner
from retrieval_train.losses import softmax
from retrieval_train.world import Alone, World
from tests.processes import run_ranks

CLASSES = [f"toys/{name}" for name in "abcdefghijk"]  # 11: divisible by none of the world sizes
ROWS, STEPS, HALF = 7, 6, 3


class Tiny(nn.Module):
    """A backbone with a frozen layer and a neck: what an embedder is, small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 16))
        self.backbone[0].requires_grad_(False)
        self.neck = nn.Linear(16, 8)

    def draw(self, seed_N: torch.Tensor | None) -> None:
        """It drops nothing."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.neck(self.backbone(image.flatten(1).float() / 255))
        return out


def engine_of(config: EngineConfig, world: World) -> Engine:
    rule = arcface.Config(margin=0.3, sub_centres=2)
    head = Head(rule, CLASSES, dim=8, world=world, seed=3)
    learner = Learner(Tiny().to(world.device), head, softmax.Config(), world)
    optimizer = adamw.Config(lr=0.05, backbone_lr=0.02, weight_decay=0.1)
    return config.build(learner, optimizer, ScheduleConfig().build(STEPS, epoch_steps=STEPS, batch=ROWS), seed=0)


def micro_batches(step: int, accumulate: int, world: World) -> list[Batch]:
    """The same 7 global rows whatever the world: 7 is divisible by none of the world sizes."""
    generator = torch.Generator().manual_seed(step)
    image = torch.randint(0, 255, (ROWS, 3, 2, 2), generator=generator, dtype=torch.uint8)
    label = torch.randint(0, len(CLASSES), (ROWS,), generator=generator)
    batches = []
    for part in range(accumulate):
        low, high = ROWS * part // accumulate, ROWS * (part + 1) // accumulate
        cuts = [low + (high - low) * rank // world.size for rank in range(world.size + 1)]
        mine = slice(cuts[world.rank], cuts[world.rank + 1])
        counts = tuple(b - a for a, b in zip(cuts, cuts[1:], strict=False))
        rows = tuple(range(cuts[world.rank], cuts[world.rank + 1]))
        keys = tuple(f"row{row}" for row in rows)
        batches.append(Batch(image[mine], label[mine], counts, (high - low) / ROWS, row_N=rows, key_N=keys))
    return batches


def weights_of(engine: Engine) -> dict[str, torch.Tensor]:
    """The embedder's trained tensors, as a checkpoint would have them. Collective."""
    half = engine.half  # type: ignore[attr-defined]
    return {name: half.whole(name).detach().clone() for name in half.trained}


def save(engine: Engine, folder: Path, extra: dict[str, Any], world: World) -> None:
    """What `Checkpoints` does, at once."""
    if world.rank == 0:
        folder.mkdir()
    world.barrier()
    snapshot = engine.snapshot(extra)
    of_ranks = world.every(snapshot.write(folder))
    if world.rank == 0:
        seal(folder, {name: digest for sums in of_ranks for name, digest in sums.items()}, snapshot.state)
    world.barrier()


def steps(engine: Engine, world: World, *, until: int, accumulate: int = 1) -> list[tuple[float, float]]:
    figures = []
    while engine.step < until:
        report = engine.train_step(micro_batches(engine.step, accumulate, world))
        figures.append((report.loss, report.grad_norm))
    return figures


def leave_a_poisoned_step_out(engine: Engine, world: World, *, accumulate: int) -> None:
    """A finite loss whose gradient is not: the step is counted, nothing is stepped, and the next one is as if without it."""
    before = weights_of(engine)
    neck = engine.learner.embedder.neck  # type: ignore[attr-defined]
    poison = neck.register_full_backward_hook(lambda module, grads, outs: tuple(g * float("nan") for g in grads))
    report = engine.train_step(micro_batches(engine.step, accumulate, world))
    poison.remove()
    assert report.skipped == "gradient"
    after = weights_of(engine)
    assert all(torch.equal(before[name], after[name]) for name in before)


def every_stage(world: World, folder: Path, sources: list[str], clip: float) -> dict[str, Any]:
    """In one world: train every stage, saving half-way; then go on from each of `sources` in every stage."""
    logging.disable(logging.WARNING)
    out: dict[str, Any] = {}
    for stage in (0, 1, 2, 3):
        accumulate = 2 if stage == 2 else 1
        config = zero.Config(stage=stage, clip_norm=clip, accumulate=accumulate)  # type: ignore[arg-type]
        engine = engine_of(config, world)
        first = steps(engine, world, until=HALF, accumulate=accumulate)
        saved = folder / f"w{world.size}-stage{stage}"
        save(engine, saved, {"note": "kept"}, world)
        out[f"stage {stage}"] = first + steps(engine, world, until=STEPS, accumulate=accumulate)
        leave_a_poisoned_step_out(engine, world, accumulate=accumulate)
        engine.close()
        for source in sources:
            resumed = engine_of(config, world)
            assert resumed.load(folder / source) == {"note": "kept"}
            out[f"{source} -> stage {stage}"] = steps(resumed, world, until=STEPS, accumulate=accumulate)
            resumed.close()
    return out


@pytest.mark.parametrize("clip", [0.5])
def test_all_stages_on_1_2_3_ranks_train_like_one_dense_process_and_load_each_other(
    tmp_path: Path, clip: float
) -> None:
    world = Alone()
    dense = steps(engine_of(plain.Config(clip_norm=clip), world), world, until=STEPS)
    assert any(norm > clip for _, norm in dense), "the case must clip"
    engine = engine_of(plain.Config(clip_norm=clip), world)
    steps(engine, world, until=STEPS)
    leave_a_poisoned_step_out(engine, world, accumulate=1)
    sources: list[str] = []
    for ranks in (1, 3, 2):
        for out in run_ranks(every_stage, ranks, tmp_path, sources, clip):
            for case, figures in out.items():
                assert figures == [pytest.approx(f, rel=1e-5) for f in dense[-len(figures) :]], case
        sources += [f"w{ranks}-stage{stage}" for stage in ((0, 3) if ranks == 1 else (1, 2))]
