"""16-bit products: how far a run is from float32, that all engines take the same steps, and the loss scale of fp16."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from retrieval_train.data.batch import Batch
from retrieval_train.engine import plain, zero
from retrieval_train.engine.engine import EngineConfig
from retrieval_train.engine.loss_scale import FIRST, GROW_AFTER, LEAST, MOST, LossScale
from retrieval_train.engine.optimizers import adamw
from retrieval_train.engine.schedule import ScheduleConfig
from retrieval_train.engine.stepper import Stepper
from retrieval_train.heads import arcface
from retrieval_train.heads.centres import Head
from retrieval_train.learner import Learner
from retrieval_train.losses import softmax
from retrieval_train.models.backbones import timm
from retrieval_train.models.embedder import build_embedder
from retrieval_train.models.necks import linear
from retrieval_train.world import World
from tests.processes import run_ranks
from tests.retrieval_train.engine.test_engines import save, weights_of

CLASSES = [f"toys/{name}" for name in "abcde"]
ROWS, STEPS, RANKS = 8, 8, 2
ENGINES: dict[str, EngineConfig] = {
    "plain": plain.Config(),
    **{f"stage {s}": zero.Config(stage=s) for s in (0, 1, 2, 3)},
}
FROM_FP32 = {"bf16": 2e-2, "fp16": 1e-2}  # relative, of losses and gradient norms over 8 steps
BETWEEN_ENGINES = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 2e-3}


def engine_of(name: str, world: World, *, lr: float = 2e-3, **fields: Any) -> Stepper:
    embedder = build_embedder(timm.Config(model="test_vit", image_px=32, weights="none"), linear.Config(out=8), seed=0)
    head = Head(arcface.Config(margin=0.2, scale=16), CLASSES, dim=8, world=world, seed=3)
    learner = Learner(embedder, head, softmax.Config(), world)
    schedule = ScheduleConfig().build(STEPS, epoch_steps=STEPS, batch=ROWS)
    config = ENGINES[name].model_copy(update=fields)
    engine = config.build(learner, adamw.Config(lr=lr), schedule, seed=0)
    assert isinstance(engine, Stepper)
    return engine


def batch(step: int, world: World) -> list[Batch]:
    generator = torch.Generator().manual_seed(step)
    image = torch.randint(0, 255, (ROWS, 3, 32, 32), generator=generator, dtype=torch.uint8)
    label = torch.randint(0, len(CLASSES), (ROWS,), generator=generator)
    rows = range(ROWS * world.rank // world.size, ROWS * (world.rank + 1) // world.size)
    mine = slice(rows.start, rows.stop)
    return [Batch(image[mine], label[mine], (ROWS // world.size,) * world.size, 1.0, row_N=tuple(rows))]


def train(engine: Stepper, world: World, until: int) -> list[Any]:
    reports = []
    while engine.step < until:
        reports.append(engine.train_step(batch(engine.step, world)))
    return reports


# --- trajectories


def trajectories(world: World) -> dict[str, dict[str, list[float]]]:
    """precision -> engine -> losses, then gradient norms."""
    logging.disable(logging.WARNING)
    found: dict[str, dict[str, list[float]]] = {}
    for precision in ("fp32", "bf16", "fp16"):
        for name in ENGINES:
            engine = engine_of(name, world, precision=precision, loss_scale=256.0 if precision == "fp16" else None)
            reports = train(engine, world, STEPS)
            assert not any(report.skipped for report in reports)
            found.setdefault(precision, {})[name] = [r.loss for r in reports] + [r.grad_norm for r in reports]
            engine.close()
    return found


def apart(mine: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(mine, theirs, strict=True))


def test_16_bits_stay_near_float32_and_all_engines_near_each_other() -> None:
    of_ranks = run_ranks(trajectories, RANKS)
    assert all(found == of_ranks[0] for found in of_ranks[1:]), "the figures are the same on every rank"
    for precision, of_engine in of_ranks[0].items():
        for name, figures in of_engine.items():
            gap = apart(figures, of_engine["plain"])
            print(precision, name, f"{gap:.1e}")
            assert gap < BETWEEN_ENGINES[precision], f"{precision} {name}"
    for precision, limit in FROM_FP32.items():
        gap = apart(of_ranks[0][precision]["plain"], of_ranks[0]["fp32"]["plain"])
        print(precision, "from fp32", f"{gap:.1e}")
        assert 0 < gap < limit, f"{precision}: as if it were float32, or too far from it"


# --- the loss scale


def overflows(world: World, folder: Path) -> dict[str, Any]:
    """engine -> (what was skipped, scale) of every step; the first scale is too large for gradients as long as these."""
    logging.disable(logging.WARNING)
    found: dict[str, Any] = {}
    for name in ENGINES:
        engine = engine_of(name, world, lr=1e-5, precision="fp16")
        before = weights_of(engine)
        first = engine.train_step(batch(0, world))
        assert first.skipped == "overflow"
        assert all(torch.equal(weight, before[key]) for key, weight in weights_of(engine).items())
        reports = [first, *train(engine, world, STEPS)]
        saved = folder / name
        save(engine, saved, {}, world)
        engine.close()
        resumed = engine_of("stage 1" if name == "stage 3" else name, world, lr=1e-5, precision="fp16")
        resumed.load(saved)
        last = resumed.train_step(batch(STEPS, world))
        assert (last.skipped, last.loss_scale) == ("", reports[-1].loss_scale)
        assert resumed.updates == sum(not report.skipped for report in reports) + 1
        resumed.close()
        fixed = engine_of(name, world, precision="fp16", loss_scale=MOST)
        found[f"{name} fixed"] = [(report.skipped, report.loss_scale) for report in train(fixed, world, 2)]
        fixed.close()
        found[name] = [(report.skipped, report.loss_scale) for report in reports]
    return found


def test_all_engines_leave_the_same_steps_out_and_halve_the_scale_until_it_fits(tmp_path: Path) -> None:
    for found in run_ranks(overflows, RANKS, tmp_path):
        steps = found["plain"]
        halvings = sum(skipped == "overflow" for skipped, _ in steps)
        assert 0 < halvings < STEPS - 1
        fits = FIRST / 2**halvings
        wanted = [("overflow", FIRST / 2 ** (at + 1)) for at in range(halvings)] + [("", fits)] * (STEPS - halvings)
        for name in ENGINES:
            assert found[name] == wanted, name
            assert found[f"{name} fixed"] == [("gradient", MOST)] * 2, "a scale that was given does not mend itself"


def test_a_scale_doubles_after_many_good_steps_in_a_row_and_outlives_a_run() -> None:
    scale = LossScale()
    for _ in range(GROW_AFTER - 1):
        scale.stepped()
    assert scale.value == FIRST and scale.overflowed() and scale.value == FIRST / 2
    for _ in range(GROW_AFTER - 1):
        scale.stepped()
    assert scale.value == FIRST / 2, "the overflow began a new row"
    resumed = LossScale()
    resumed.take_state(scale.state())
    resumed.stepped()
    assert resumed.value == FIRST
    resumed.value = MOST
    for _ in range(GROW_AFTER):
        resumed.stepped()
    assert resumed.value == MOST


def test_an_overflow_that_no_smaller_scale_mends_is_a_fault() -> None:
    least, fixed = LossScale(), LossScale(1024.0)
    least.value = LEAST
    assert not least.overflowed() and not fixed.overflowed()
    fixed.take_state({"value": 2.0, "good": 5})
    assert (least.value, fixed.value) == (LEAST, 1024.0), "what the config fixes no checkpoint changes"
