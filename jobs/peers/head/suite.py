"""The head of this package, as a training run's engine steps it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.peers.head.task import LR, MARGIN, SCALE, Step, Task, embeddings, fill_centres, labels

if TYPE_CHECKING:
    from retrieval_train.engine.optimizers.optimizer import OptimizerConfig
    from retrieval_train.world import World


def build(task: Task, world: World) -> Step:
    import torch

    from retrieval_train.engine.centre_step import CentreStep
    from retrieval_train.heads import arcface
    from retrieval_train.heads.centres import Head
    from retrieval_train.losses import softmax
    from retrieval_train.losses.loss import Seen

    rule = arcface.Config(margin=MARGIN, scale=SCALE, sample_rate=task.sample_rate, products=task.products)
    names = [f"benchmark/{number:09d}" for number in range(task.classes)]
    head = Head(rule, names, dim=task.dim, world=world, seed=task.seed)
    fill_centres(head.centre_CKD.detach().flatten(0, 1), task)
    centres, loss = CentreStep({"": head}, _optimizer(task)), softmax.Config()
    emb_ND, drawn, counts = embeddings(task), labels(task), tuple(task.counts)
    row_B = torch.arange(task.batch)
    steps = 0

    def step() -> float:
        nonlocal steps
        head.draw(seed=task.seed, step=steps)
        steps += 1
        label_B = next(drawn)
        emb_BD = world.gather(emb_ND, list(counts))
        value = loss.value(Seen(world, counts, emb_ND, emb_BD, label_B, label_B * 0, row_B, label_B, head))
        value.loss.backward()
        centres.squared_norm()  # the engine clips, and reports it
        centres.step(lr_factor=1.0, clip_factor=1.0)
        emb_ND.grad = None
        return float(value.loss.detach())

    return step


def _optimizer(task: Task) -> OptimizerConfig:
    from retrieval_train.engine.optimizers import adamw, sgd

    if task.optimizer == "sgd":
        return sgd.Config(lr=LR, momentum=0.0)
    return adamw.Config(lr=LR)
