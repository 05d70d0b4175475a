"""The forward of one micro-batch as every engine does it: seeded, in the run's precision, weighted by its rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retrieval_train.data.batch import Batch
from retrieval_train.learner import Learner


def seeded(seed: int, step: int, rank: int) -> None:
    """Dropout and the like follow from (seed, step, rank): a resumed run draws what the first would have drawn."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank) % 2**63)


def global_loss(learner: Learner, embed: Callable[[Tensor], Tensor], batch: Batch, precision: str) -> Tensor:
    """This micro-batch's share of the mean loss over the global batch; the same number on every rank."""
    batch = batch.to(learner.world.device)
    with torch.autocast(learner.world.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        return learner.forward(embed, batch) * batch.weight
