"""The forward of one micro-batch as every engine does it: seeded, and weighted by its rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retrieval_train.data.batch import Batch
from retrieval_train.learner import Learner


def seeded(seed: int, step: int, rank: int) -> None:
    """Dropout and the like follow from (seed, step, rank): a resumed run draws what the first would have drawn."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank) % 2**63)


def global_loss(learner: Learner, embed: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """This micro-batch's share of the mean loss over the global batch; the same number on every rank."""
    return learner.forward(embed, batch.to(learner.world.device)) * batch.weight
