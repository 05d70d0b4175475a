"""SAM and ASAM of the engines, on any number of ranks, are the textbook's loop over dense weights in bare torch."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.job import check
from retrieval_train.config import ConfigError, read
from retrieval_train.engine import plain, zero
from retrieval_train.engine.engine import EngineConfig
from retrieval_train.engine.optimizers import sgd
from retrieval_train.engine.optimizers.sam import Sam
from retrieval_train.engine.schedule import ScheduleConfig
from retrieval_train.engine.stepper import Stepper
from retrieval_train.heads import normface
from retrieval_train.heads.centres import Head
from retrieval_train.learner import Learner
from retrieval_train.losses import softmax
from retrieval_train.world import Alone, World
from tests.processes import ROOT, run_ranks
from tests.retrieval_train.engine.test_engines import CLASSES, ROWS, Tiny, micro_batches

SAMS = {"sam": Sam(rho=0.2), "asam": Sam(rho=1.0, adaptive=True)}
ACCUMULATE, STEPS, LR, MOMENTUM, CLIP, SCALE = 2, 5, 0.1, 0.9, 0.5, 8.0


def dense(sam: Sam) -> dict[str, Any]:
    """All in one process, without an engine: what each step does is written out."""
    head = Head(normface.Config(scale=SCALE), CLASSES, dim=8, world=Alone(), seed=3)
    embedder, centre = Tiny(), nn.Parameter(head.centre_CKD.detach().clone().squeeze(1))
    named = {name: weight for name, weight in embedder.named_parameters() if weight.requires_grad} | {"centre": centre}
    weights = list(named.values())
    buffers = [torch.zeros_like(weight) for weight in weights]
    losses, norms = [], []

    def loss_of(step: int) -> Tensor:
        total = torch.zeros(())
        for batch in micro_batches(step, ACCUMULATE, Alone()):
            cosine = functional.normalize(embedder(batch.image_NCHW)) @ functional.normalize(centre).T
            total = total + functional.cross_entropy(SCALE * cosine, batch.label_N, reduction="sum") / ROWS
        return total

    def length(tensors: list[Tensor]) -> Tensor:
        return torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt()

    for step in range(STEPS):
        loss = loss_of(step)
        grads = torch.autograd.grad(loss, weights)
        sizes = [weight.detach().abs() if sam.adaptive else torch.ones_like(weight) for weight in weights]
        slope = length([size * grad for size, grad in zip(sizes, grads, strict=True)])
        here = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for weight, size, grad in zip(weights, sizes, grads, strict=True):
                weight.add_(sam.rho * size**2 * grad / slope)
        worst = torch.autograd.grad(loss_of(step), weights)
        norm = length(list(worst))
        with torch.no_grad():
            for weight, value, grad, buffer in zip(weights, here, worst, buffers, strict=True):
                buffer.mul_(MOMENTUM).add_(grad * min(1.0, CLIP / float(norm)))
                weight.copy_(value - LR * buffer)
        losses.append(float(loss.detach()))
        norms.append(float(norm))
    return {"losses": losses, "norms": norms, "weights": {name: weight.detach() for name, weight in named.items()}}


def trained(world: World, config: EngineConfig, sam: Sam) -> dict[str, Any]:
    head = Head(normface.Config(scale=SCALE), CLASSES, dim=8, world=world, seed=3)
    learner = Learner(Tiny(), head, softmax.Config(), world)
    optimizer = sgd.Config(lr=LR, momentum=MOMENTUM, weight_decay=0, sam=sam)
    schedule = ScheduleConfig(name="constant", warmup=0).build(STEPS, epoch_steps=STEPS, batch=ROWS)
    engine = config.build(learner, optimizer, schedule, seed=0)
    assert isinstance(engine, Stepper)
    reports = [engine.train_step(micro_batches(step, ACCUMULATE, world)) for step in range(STEPS)]
    weights = {name: engine.half.whole(name).clone() for name in engine.half.trained}
    weights["centre"] = torch.cat(world.every(head.centre_CKD.detach().squeeze(1)))
    engine.close()
    return {"losses": [r.loss for r in reports], "norms": [r.grad_norm for r in reports], "weights": weights}


def trained_by_all(world: World) -> dict[str, dict[str, Any]]:
    logging.disable(logging.WARNING)
    engines = [
        plain.Config(accumulate=ACCUMULATE, clip_norm=CLIP),
        zero.Config(stage=0, accumulate=ACCUMULATE, clip_norm=CLIP),
    ]
    return {f"{config.name} {kind}": trained(world, config, sam) for config in engines for kind, sam in SAMS.items()}


@pytest.fixture(scope="module")
def wanted() -> dict[str, dict[str, Any]]:
    found = {kind: dense(sam) for kind, sam in SAMS.items()}
    assert all(any(norm > CLIP for norm in case["norms"]) for case in found.values()), "the case must clip"
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_sharpness_aware_steps_equal_the_dense_loop(ranks: int, wanted: dict[str, dict[str, Any]]) -> None:
    for cases in run_ranks(trained_by_all, ranks):
        assert len(cases) == 4
        for case, found in cases.items():
            dense_one = wanted[case.split()[1]]
            assert found["losses"] == pytest.approx(dense_one["losses"], rel=2e-5), case
            assert found["norms"] == pytest.approx(dense_one["norms"], rel=2e-5), case
            assert found["weights"].keys() == dense_one["weights"].keys()
            for name, weight in found["weights"].items():
                torch.testing.assert_close(
                    weight, dense_one["weights"][name], rtol=2e-5, atol=2e-6, msg=f"{case}: {name}"
                )


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_sam_is_refused_before_the_run_where_ranks_hold_pieces_of_weights(stage: int) -> None:
    file = ROOT / "configs/train/demo.yaml"
    overrides = [f"engine.stage={stage}", "engine.name=zero", "optimizer.sam.rho=0.05"]
    with pytest.raises(
        ConfigError, match=rf"optimizer .*zero at stage {stage} leaves each rank pieces.*engine.stage=0"
    ):
        check(read(file, overrides=overrides), where=str(file))


def test_a_climb_into_what_is_not_finite_leaves_the_step_out() -> None:
    """The second pass fails: weights, centres and batch norm are where they were, to the bit."""
    world = Alone()
    head = Head(normface.Config(scale=SCALE), CLASSES, dim=8, world=world, seed=3)
    learner = Learner(Tiny(), head, softmax.Config(), world)
    schedule = ScheduleConfig(name="constant", warmup=0).build(STEPS, epoch_steps=STEPS, batch=ROWS)
    engine = plain.Config().build(learner, sgd.Config(lr=LR, sam=Sam(rho=1e30)), schedule, seed=0)
    before = {name: tensor.clone() for name, tensor in (learner.embedder.state_dict() | head.state_dict()).items()}
    report = engine.train_step(micro_batches(0, 1, world))
    after = learner.embedder.state_dict() | head.state_dict()
    assert report.skipped == "gradient" and all(torch.equal(before[name], after[name]) for name in before)
