"""Real backbones with LoRA, dropout and stochastic depth: any stage, any ranks, with and without kept activations, alike."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.train import be_deterministic
from retrieval_train.data.batch import Batch
from retrieval_train.engine import plain, zero
from retrieval_train.engine.engine import Engine, EngineConfig
from retrieval_train.engine.optimizers import adamw
from retrieval_train.engine.schedule import ScheduleConfig
from retrieval_train.heads import arcface
from retrieval_train.heads.centres import Head
from retrieval_train.learner import Learner
from retrieval_train.losses import softmax
from retrieval_train.models import lora
from retrieval_train.models.backbones import timm
from retrieval_train.models.embedder import build_embedder
from retrieval_train.models.necks import linear
from retrieval_train.world import Alone, World
from tests.processes import run_ranks
from tests.retrieval_train.engine.test_engines import save

CLASSES = [f"toys/{name}" for name in "abcde"]
STEPS, HALF, ROWS = 4, 2, 5
NETS = {
    "vit": timm.Config(model="test_vit", image_px=32, weights="none", drop_path=0.3),
    "eva02": timm.Config(model="eva02_tiny_patch14_224", image_px=28, weights="none", blocks=2),
}
ENGINES: dict[str, EngineConfig] = {
    "stage 0, activations again": zero.Config(stage=0, checkpoint_activations=True),
    "stage 1, offload": zero.Config(stage=1, offload=zero.Offload(optimizer="cpu")),
    "stage 2, activations again": zero.Config(stage=2, checkpoint_activations=True),
    "stage 3": zero.Config(stage=3),
    "stage 3, offload, activations again": zero.Config(
        stage=3, checkpoint_activations=True, offload=zero.Offload(optimizer="cpu", weights="cpu")
    ),
}


def engine_of(config: EngineConfig, net: str, world: World) -> Engine:
    embedder = build_embedder(NETS[net], linear.Config(out=8), seed=0)
    lora.Config(rank=4, dropout=0.2, last_blocks=1).apply(embedder, seed=0)
    head = Head(arcface.Config(margin=0.2), CLASSES, dim=8, world=world, seed=3)
    learner = Learner(embedder, head, softmax.Config(), world)
    schedule = ScheduleConfig().build(STEPS, epoch_steps=STEPS, batch=ROWS)
    return config.build(learner, adamw.Config(lr=0.01), schedule, seed=0)


def trained(engine: Engine, net: str, world: World, *, until: int) -> list[tuple[float, float]]:
    figures, px = [], NETS[net].image_px
    cuts = [ROWS * rank // world.size for rank in range(world.size + 1)]
    mine, counts = slice(*cuts[world.rank :][:2]), tuple(b - a for a, b in zip(cuts, cuts[1:], strict=False))
    while engine.step < until:
        generator = torch.Generator().manual_seed(engine.step)
        image = torch.randint(0, 255, (ROWS, 3, px, px), generator=generator, dtype=torch.uint8)
        label = torch.randint(0, len(CLASSES), (ROWS,), generator=generator)
        rows = tuple(range(cuts[world.rank], cuts[world.rank + 1]))
        report = engine.train_step([Batch(image[mine], label[mine], counts, 1.0, row_N=rows)])
        figures.append((report.loss, report.grad_norm))
    return figures


def every_engine(world: World, folder: Path, net: str, engines: dict[str, EngineConfig] = ENGINES) -> dict[str, Any]:
    """Each trains half the steps; the next one goes on from there."""
    logging.disable(logging.WARNING)
    out: dict[str, Any] = {}
    names = list(engines)
    for number, name in enumerate(names):
        engine = engine_of(engines[name], net, world)
        first = trained(engine, net, world, until=HALF)
        save(engine, folder / f"{number}", {}, world)
        engine.close()
        heir = names[(number + 1) % len(names)]
        resumed = engine_of(engines[heir], net, world)
        resumed.load(folder / f"{number}")
        out[f"{name}, then {heir}"] = first + trained(resumed, net, world, until=STEPS)
        resumed.close()
    return out


@pytest.mark.parametrize("net", list(NETS))
def test_what_is_dropped_kept_or_offloaded_changes_no_number_on_2_ranks(tmp_path: Path, net: str) -> None:
    world = Alone()
    alone = trained(engine_of(plain.Config(), net, world), net, world, until=STEPS)
    for out in run_ranks(every_engine, 2, tmp_path, net):
        for case, figures in out.items():
            assert figures == [pytest.approx(figure, rel=1e-4) for figure in alone], case


def test_compiled_blocks_train_alike() -> None:
    world, net = Alone(), "vit"
    alone = trained(engine_of(plain.Config(), net, world), net, world, until=2)
    compiled = trained(engine_of(plain.Config(compile=True), net, world), net, world, until=2)
    assert compiled == [pytest.approx(figure, rel=1e-4) for figure in alone]


SIXTEEN: dict[str, EngineConfig] = {
    "stage 2": zero.Config(stage=2, precision="bf16", weights="bf16"),
    "stage 3": zero.Config(stage=3, precision="bf16", weights="bf16"),
    "stage 2, float32 weights": zero.Config(stage=2, precision="bf16"),
    "stage 3, offload": zero.Config(
        stage=3, precision="bf16", weights="bf16", offload=zero.Offload(optimizer="cpu", weights="cpu")
    ),
}


def weights_of_16_bits(world: World, folder: Path, net: str) -> dict[str, Any]:
    return every_engine(world, folder, net, SIXTEEN)


def test_weights_of_16_bits_train_close_to_float32_and_load_each_other(tmp_path: Path) -> None:
    world, net = Alone(), "eva02"
    alone = trained(engine_of(plain.Config(), net, world), net, world, until=STEPS)
    for out in run_ranks(weights_of_16_bits, 2, tmp_path, net):
        for case, figures in out.items():
            for (loss, norm), (loss_32, norm_32) in zip(figures, alone, strict=True):
                assert loss == pytest.approx(loss_32, rel=1e-2), case
                assert norm == pytest.approx(norm_32, rel=5e-2), case
        first = [figures[0] for figures in out.values()]
        assert first[0] != alone[0] and first[0] == pytest.approx(first[2], rel=1e-2), "bf16 was on"


def deterministic(world: World, net: str) -> list[tuple[float, float]]:
    logging.disable(logging.WARNING)
    be_deterministic()
    engine = engine_of(zero.Config(stage=2), net, world)
    figures = trained(engine, net, world, until=STEPS)
    engine.close()
    return figures


def test_a_deterministic_run_gives_the_same_numbers_to_the_last_digit() -> None:
    once, again = (run_ranks(deterministic, 2, "vit") for _ in range(2))
    assert once == again
