"""Batch norm's running statistics, and whatever else an embedder keeps beside its weights, outlive a run."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jobs.export import write_export
from jobs.train import Config as TrainConfig
from retrieval_train.data.batch import Batch
from retrieval_train.engine import plain, zero
from retrieval_train.engine.checkpoint import CheckpointError, Tensors, persistent_buffers
from retrieval_train.engine.engine import Engine, EngineConfig
from retrieval_train.engine.optimizers import adamw, sgd
from retrieval_train.engine.optimizers.optimizer import OptimizerConfig
from retrieval_train.engine.schedule import ScheduleConfig
from retrieval_train.heads import arcface
from retrieval_train.heads.centres import Head
from retrieval_train.learner import Learner
from retrieval_train.losses import softmax
from retrieval_train.models import exported
from retrieval_train.models.backbones import timm
from retrieval_train.models.batch_norm import sync_batch_norm
from retrieval_train.models.embedder import Embedder, build_embedder
from retrieval_train.models.necks import linear
from retrieval_train.world import Alone, World
from tests.processes import run_ranks
from tests.retrieval_train.engine.test_engines import save

CLASSES = [f"toys/{name}" for name in "abcde"]
NET = timm.Config(model="test_resnet", image_px=32, weights="none")
NECK = linear.Config(out=8)
ENGINES: dict[str, EngineConfig] = {
    "plain": plain.Config(),
    "stage0": zero.Config(stage=0),
    "stage1": zero.Config(stage=1),
    "stage2": zero.Config(stage=2),
    "stage3": zero.Config(stage=3),
}
HALF, STEPS = 2, 4


ADAM = adamw.Config(lr=0.01)


def engine_of(name: str, world: World, *, optimizer: OptimizerConfig = ADAM) -> tuple[Engine, Embedder]:
    embedder = build_embedder(NET, NECK, seed=0)
    sync_batch_norm(embedder, world)
    head = Head(arcface.Config(), CLASSES, dim=8, world=world, seed=3)
    learner = Learner(embedder, head, softmax.Config(), world)
    return ENGINES[name].build(
        learner, optimizer, ScheduleConfig().build(STEPS, epoch_steps=STEPS, batch=7), seed=0
    ), embedder


def train(engine: Engine, world: World, *, until: int) -> list[tuple[float, float]]:
    """7 rows a step, other ones on each rank. Loss and gradient norm of every step."""
    figures = []
    cuts = [7 * rank // world.size for rank in range(world.size + 1)]
    mine, counts = slice(*cuts[world.rank :][:2]), tuple(b - a for a, b in zip(cuts, cuts[1:], strict=False))
    while engine.step < until:
        generator = torch.Generator().manual_seed(engine.step)
        image = torch.randint(0, 255, (7, 3, 32, 32), generator=generator, dtype=torch.uint8)
        label = torch.randint(0, len(CLASSES), (7,), generator=generator)
        rows = tuple(range(cuts[world.rank], cuts[world.rank + 1]))
        report = engine.train_step([Batch(image[mine], label[mine], counts, 1.0, row_N=rows)])
        figures.append((report.loss, report.grad_norm))
    return figures


def saved(engine: Engine, folder: Path, world: World) -> dict[str, Tensor]:
    save(engine, folder, {}, world)
    stored = Tensors(folder, "buffers.safetensors")
    return {name: stored[name] for name in stored.names()}


def buffers(embedder: Embedder) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in persistent_buffers(embedder).items()}


def assert_same(these: dict[str, Tensor], those: dict[str, Tensor]) -> None:
    assert these.keys() == those.keys()
    assert [name for name in these if not torch.equal(these[name], those[name])] == []


def every_engine(world: World, folder: Path) -> None:
    """Each engine trains, saves, goes on; the next one takes over from it and ends with the same statistics."""
    logging.disable(logging.WARNING)
    names = ["plain", "stage0", "stage1", "stage3"]
    for name, heir in zip(names, names[1:] + names[:1], strict=True):
        engine, embedder = engine_of(name, world)
        first = buffers(embedder)
        train(engine, world, until=HALF)
        stored = saved(engine, folder / f"half-{name}", world)
        for of_rank in world.every(buffers(embedder)):
            assert_same(of_rank, stored)
        assert [key for key, value in stored.items() if torch.equal(value, first[key])] == []
        train(engine, world, until=STEPS)
        straight = saved(engine, folder / f"end-{name}", world)
        engine.close()
        resumed, embedder = engine_of(heir, world)
        resumed.load(folder / f"half-{name}")
        assert_same(buffers(embedder), stored)
        train(resumed, world, until=STEPS)
        resumed_end = saved(resumed, folder / f"end-{name}-{heir}", world)
        for key, value in straight.items():
            torch.testing.assert_close(resumed_end[key], value, rtol=1e-3, atol=1e-5, msg=f"{name} -> {heir}: {key}")
        resumed.close()


def test_running_statistics_are_the_same_on_all_ranks_saved_and_loaded_by_any_engine(tmp_path: Path) -> None:
    run_ranks(every_engine, 2, tmp_path)
    for name in ("plain", "stage3"):  # what 2 ranks wrote, one reads
        engine, embedder = engine_of("plain", Alone())
        engine.load(tmp_path / f"half-{name}")
        stored = Tensors(tmp_path / f"half-{name}", "buffers.safetensors")
        assert_same(buffers(embedder), {key: stored[key] for key in stored.names()})


# Adam divides by its first gradients: where they are as good as 0 their rounding would be the step
SGD = sgd.Config(lr=0.001)


def in_ranks(world: World) -> dict[str, tuple[list[tuple[float, float]], dict[str, Tensor]]]:
    logging.disable(logging.WARNING)
    out = {}
    for name in ("plain", "stage2"):
        engine, embedder = engine_of(name, world, optimizer=SGD)
        out[name] = train(engine, world, until=STEPS), buffers(embedder)
        engine.close()
    return out


def test_a_net_with_batch_norm_trains_on_2_and_3_ranks_like_one_process() -> None:
    engine, embedder = engine_of("plain", Alone(), optimizer=SGD)
    figures, statistics = train(engine, Alone(), until=STEPS), buffers(embedder)
    for ranks in (2, 3):
        for out in run_ranks(in_ranks, ranks):
            for name, (of_ranks, buffers_of_ranks) in out.items():
                assert of_ranks == [pytest.approx(figure, rel=1e-5) for figure in figures], (name, ranks)
                for key, value in statistics.items():
                    torch.testing.assert_close(buffers_of_ranks[key], value, rtol=1e-5, atol=1e-5, msg=f"{name} {key}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Embedder]:
    """A checkpoint after two steps, and the embedder that it is of."""
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    engine, embedder = engine_of("plain", Alone())
    train(engine, Alone(), until=HALF)
    saved(engine, folder, Alone())
    return folder, embedder


def test_an_export_has_the_running_statistics_of_the_checkpoint(tmp_path: Path, trained: tuple[Path, Embedder]) -> None:
    checkpoint, embedder = trained
    values = {
        "job": "train",
        "run": {"name": "conv"},
        "backbone": NET.model_dump(),
        "neck": NECK.model_dump(),
        "head": {"name": "arcface"},
        "data": {"mixture": {"toys": 1.0}},
        "engine": {"name": "plain"},
        "length": {"steps": HALF},
    }
    write_export(TrainConfig.model_validate(values), checkpoint, tmp_path / "export")
    out = exported.load(tmp_path / "export")
    assert_same(out.state_dict(), embedder.state_dict())
    image = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    embedder.eval()
    assert torch.equal(out(image), embedder(image))
    embedder.train()


def edited_sums(folder: Path) -> None:
    sums = json.loads((folder / "sums.json").read_text())
    del sums["buffers.safetensors"]
    (folder / "sums.json").write_text(json.dumps(sums))


def test_a_checkpoint_from_before_buffers_were_kept_loads_and_says_so(
    tmp_path: Path, trained: tuple[Path, Embedder], caplog: pytest.LogCaptureFixture
) -> None:
    old = shutil.copytree(trained[0], tmp_path / "old")
    edited_sums(old)
    (old / "buffers.safetensors").unlink()
    engine, embedder = engine_of("plain", Alone())
    first = buffers(embedder)
    engine.load(old)
    assert engine.step == HALF
    assert_same(buffers(embedder), first)
    assert f"{old} was written before checkpoints kept buffers: the model's {len(first)} (batch norm" in caplog.text


def test_buffers_of_another_model_are_refused(tmp_path: Path, trained: tuple[Path, Embedder]) -> None:
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(trained[0], tmp_path / "other")
    edited_sums(other)
    tensors = load_file(other / "buffers.safetensors")
    del tensors["backbone.bn1.running_mean"]
    save_file(tensors, other / "buffers.safetensors")
    engine, _ = engine_of("plain", Alone())
    with pytest.raises(CheckpointError, match=r"of its buffers it lacks 1 \(backbone\.bn1\.running_mean"):
        engine.load(other)
