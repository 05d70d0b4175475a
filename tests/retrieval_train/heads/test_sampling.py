"""Sampled classes: the same on any number of ranks, the loss over them alone, and a step that touches nothing else."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from timm.optim import Lion
from torch import Tensor, nn

from retrieval_train.engine.centre_step import CentreStep, Table
from retrieval_train.engine.optimizers import adamw, lion, sgd
from retrieval_train.engine.optimizers.optimizer import OptimizerConfig
from retrieval_train.heads import adacos, arcface, centres, dynamic_arcface
from retrieval_train.heads.centres import Head
from retrieval_train.learner import Learner, Term
from retrieval_train.losses import bce, focal, proxy_anchor, softmax
from retrieval_train.losses.loss import LossConfig
from retrieval_train.world import Alone, World
from tests.processes import run_ranks
from tests.retrieval_train.heads.dense import (
    COUNTS,
    NAMES,
    ONE_EACH,
    Found,
    Task,
    check_equal,
    cut_small,
    dense,
    every_rule,
    head_of,
    seen_by,
    shared,
)

SEEDS = [5, 6, 7]
SEVERAL = [[3, 5], [9], [], [10], [3, 4], [7, 8], [4], [6, 9], [], [6], [5]]
LOSSES: list[LossConfig] = [softmax.Config(label_smoothing=0.1), softmax.Config(over="domain"), focal.Config()]
LOSSES += [bce.Config(), proxy_anchor.Config()]


def tasks() -> list[Task]:
    fixed = {adacos.Config: {"dynamic": False}}  # a scale that is found needs all classes
    rules = every_rule(lambda config: config(sample_rate=0.3, sub_centres=2, **fixed.get(config, {})))
    found = [Task(rule, softmax.Config()) for rule in rules]
    found += [Task(arcface.Config(sample_rate=0.3, logits_mb=mb), loss) for loss in LOSSES for mb in (0, 64)]
    return [*found, Task(arcface.Config(sample_rate=0.3), softmax.Config(), labels=SEVERAL)]


def sample(task: Task, seed: int, step: int = 3) -> Tensor:
    """Which of all classes one process compares with."""
    head = head_of(task, Alone())
    head.draw(seed=seed, step=step)
    head.active(task.class_P)
    ((row_R, _),) = head.sampled
    return torch.zeros(len(NAMES), dtype=torch.bool).index_fill(0, row_R, True)


# --- the step, and its slow twin

OPTIMIZERS: list[OptimizerConfig] = [adamw.Config(lr=0.05), sgd.Config(lr=0.05), lion.Config(lr=0.01)]
OTHERS = [[9], *ONE_EACH[:2], *[[9]] * 8]
MICRO = [Task(arcface.Config(sample_rate=0.3), softmax.Config(), labels=labels) for labels in (ONE_EACH, OTHERS)]
STEPS, SCALE = 4, 8.0


class Stepped(NamedTuple):
    norms: list[float]
    tensors: dict[str, Tensor]


def stepped(world: World, config: OptimizerConfig) -> Stepped:
    """Steps of two micro-batches whose gradients come `SCALE` times too large, and are clipped by half."""
    head, norms = head_of(MICRO[0], world), []
    half = CentreStep({"": head}, config)
    for step in range(STEPS):
        for task in MICRO:
            first = sum(COUNTS[world.size][: world.rank])
            emb_ND = task.emb_BD[first : first + COUNTS[world.size][world.rank]].clone().requires_grad_()
            head.draw(seed=0, step=step)
            value = task.loss.value(seen_by(task, head, world, emb_ND, COUNTS[world.size]))
            (value.loss * SCALE).backward()  # type: ignore[no-untyped-call]
        before = {name: tensor.clone() for name, tensor in half.tensors().items()}
        touched_C = torch.zeros(len(head.class_names), dtype=torch.bool)
        for row_R, _ in head.sampled:
            touched_C[row_R] = True
        norms.append(float(half.squared_norm(scale=SCALE)) ** 0.5)
        half.step(lr_factor=0.5, clip_factor=0.5)
        for name, tensor in half.tensors().items():
            assert torch.equal(tensor[~touched_C], before[name][~touched_C]), f"{name} of a class that was not sampled"
            assert not touched_C.any() or not torch.equal(tensor[touched_C], before[name][touched_C]), name
        assert head.sampled == [] and head.centre_CKD.grad is None
    return Stepped(norms, {name: tensor.clone() for name, tensor in half.tensors().items()})


def by_the_twin(config: OptimizerConfig) -> Stepped:
    """torch's own optimizer over the whole table; what it did to classes that were not sampled is taken back."""
    table, norms = nn.Parameter(MICRO[0].centre_CKD.clone()), []
    optimizer: torch.optim.Optimizer
    match config:
        case adamw.Config():
            optimizer = torch.optim.AdamW([table], lr=config.lr / 2, betas=config.betas, eps=config.eps, weight_decay=0)
        case sgd.Config():
            optimizer = torch.optim.SGD([table], lr=config.lr / 2, momentum=config.momentum)
        case _:
            optimizer = Lion([table], lr=config.lr / 2)
    config.make_state(optimizer, table, step=0, moments=None)
    for step in range(STEPS):
        grad, is_in_C = torch.zeros_like(table), torch.zeros(len(NAMES), dtype=torch.bool)
        for task in MICRO:
            kept_C = sample(task, seed=0, step=step)
            grad += dense(task, kept_C, table.detach()).grad_centre
            is_in_C |= kept_C
        norms.append(float(grad.square().sum()) ** 0.5)
        table.grad = grad * 0.5
        held = {"centre": table.detach(), **{name: optimizer.state[table][name] for name in config.moments}}
        before = {name: tensor.clone() for name, tensor in held.items()}
        optimizer.step()
        for name, tensor in held.items():
            tensor[~is_in_C] = before[name][~is_in_C]
    return Stepped(norms, held)


# --- on ranks


def on_ranks(world: World) -> tuple[list[list[Found]], list[int], list[Stepped]]:
    cut_small()
    numbers = []
    for seed in SEEDS:
        head = head_of(tasks()[0], world)
        head.draw(seed=seed, step=3)
        numbers.append(len(head.active(tasks()[0].class_P)))
    found = [[shared(task, world, seed=seed) for task in tasks()] for seed in SEEDS]
    return found, numbers, [stepped(world, config) for config in OPTIMIZERS]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_loss_gradients_and_steps_are_those_over_the_sampled_classes_on_any_number_of_ranks(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(centres, "_BLOCK_MB", {})
    cases = tasks()
    per_rank = run_ranks(on_ranks, ranks) if ranks > 1 else [on_ranks(Alone())]
    for at, seed in enumerate(SEEDS):
        for number, task in enumerate(cases):
            kept_C = sample(task, seed)
            assert not kept_C.all() and kept_C[task.class_P].all()
            check_equal([found[at][number] for found, _, _ in per_rank], dense(task, kept_C), task)
    if ranks == 4:
        assert any(0 in numbers for _, numbers, _ in per_rank), (
            "a rank none of whose classes is sampled must be among them"
        )
    for number, config in enumerate(OPTIMIZERS):
        wanted = by_the_twin(config)
        tables = [steps[number].tensors for _, _, steps in per_rank]
        for _, _, steps in per_rank:
            assert steps[number].norms == pytest.approx(wanted.norms, rel=1e-6), "the squares are added up in float32"
        for name, tensor in wanted.tensors.items():
            together = torch.cat([table[name] for table in tables])
            torch.testing.assert_close(together, tensor, rtol=1e-9, atol=1e-12, msg=f"{name} of {config!r}")


# --- chance


def test_the_rate_is_the_share_of_other_classes_and_every_step_draws_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 standard deviations of that many throws; classes in several blocks of numbers."""
    monkeypatch.setattr(centres, "_BLOCK", 700)
    names, rate, steps = [f"toys/{n:04d}" for n in range(2000)], 0.3, 60
    head = Head(arcface.Config(sample_rate=rate), names, dim=2, world=Alone(), seed=0)
    own = torch.arange(0, 2000, 40)
    chosen_SC = torch.zeros(2 * steps, len(names), dtype=torch.bool)
    for step in range(2 * steps):
        head.draw(seed=step // steps, step=step % steps)
        head.active(own)
        chosen_SC[step, head.sampled.pop()[0]] = True
    assert chosen_SC[:, own].all()
    is_other_C = torch.ones(len(names), dtype=torch.bool).index_fill(0, own, False)
    others_SC = chosen_SC[:, is_other_C].double()
    assert abs(float(others_SC.mean()) - rate) < 4 * (rate * (1 - rate) / others_SC.numel()) ** 0.5
    of_class_C = others_SC.mean(0)
    assert float((of_class_C - rate).abs().max()) < 5.5 * (rate * (1 - rate) / (2 * steps)) ** 0.5, (
        "no class is left out"
    )
    both = (others_SC[1:] * others_SC[:-1]).mean()
    assert float(both) == pytest.approx(rate**2, abs=0.005), "a step tells nothing of the next"


def test_a_head_draws_the_same_classes_whatever_heads_there_are_beside_it() -> None:
    """A run's config may come back with its losses in another order."""

    def samples(*names: str) -> dict[str, list[int]]:
        found = {name: head_of(MICRO[0], Alone()) for name in ("", *names)}
        aux = {name: Term(softmax.Config(), found[name]) for name in names}
        learner = Learner(nn.Identity(), found[""], softmax.Config(), Alone(), aux=aux)
        learner.draw(seed=0, step=3)
        for head in found.values():
            head.active(torch.zeros(0, dtype=torch.int64))
        return {name: head.sampled.pop()[0].tolist() for name, head in found.items()}

    several = samples("one", "two", "three")
    assert several == samples("three", "two", "one")
    assert several | samples("two") == several
    assert len({tuple(rows) for rows in several.values()}) > 1, "heads do not all draw the same"


def test_a_left_out_step_forgets_its_sample_and_evaluation_leaves_none() -> None:
    task = Task(dynamic_arcface.Config(sample_rate=0.3), softmax.Config())
    head = head_of(task, Alone())
    table, before = Table(head, adamw.Config()), head.centre_CKD.detach().clone()
    head.eval()
    task.loss.value(seen_by(task, head, Alone(), task.emb_BD, [11]))
    assert head.sampled == []
    head.train()
    value = task.loss.value(seen_by(task, head, Alone(), task.emb_BD.clone().requires_grad_(), [11]))
    value.loss.backward()  # type: ignore[no-untyped-call]
    table.collect(1.0)
    table.forget()
    table.collect(1.0)
    table.step(lr_factor=1.0, clip_factor=1.0)
    assert torch.equal(head.centre_CKD, before)
