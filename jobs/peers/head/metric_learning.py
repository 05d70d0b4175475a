"""ArcFaceLoss of pytorch-metric-learning with torch's fused optimizers, in one process: it cannot share classes."""

from __future__ import annotations

import importlib
from typing import Any

from jobs.peers.head.task import LR, MARGIN, SCALE, Step, Task, embeddings, fill_centres, labels

losses: Any = importlib.import_module("pytorch_metric_learning.losses")


def build(task: Task, world: Any) -> Step:
    import math

    import torch

    assert task.ranks == 1, "classes are not shared"
    loss = losses.ArcFaceLoss(task.classes, task.dim, margin=math.degrees(MARGIN), scale=SCALE)
    fill_centres(loss.W.detach().T, task)
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[task.optimizer]
    optimizer = kind([loss.W], lr=LR, weight_decay=0.0, fused=True)
    emb_BD, drawn = embeddings(task), labels(task)

    def step() -> float:
        value = loss(emb_BD, next(drawn))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        emb_BD.grad = None
        return float(value.detach())

    return step
