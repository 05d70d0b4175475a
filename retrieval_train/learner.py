"""Embedder, head and loss behind one forward; says which parameters are replicated and which are sharded by class.

Legend: N rows of this rank, B rows of all ranks, C classes of this rank, D dimensions, M domains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retrieval_train.data.batch import Batch
from retrieval_train.heads.centres import Head
from retrieval_train.losses.loss import LossConfig
from retrieval_train.world import World


class Outcome(NamedTuple):
    """What one forward gives; the same numbers on every rank."""

    loss: Tensor
    """The mean over the rows of all ranks."""
    of_domain_2M: Tensor
    """Sum of the losses and number of rows of every domain; without gradient."""


@dataclass(frozen=True)
class Learner:
    """What is trained. The embedder is replicated (ZeRO's business), the head's centres are sharded by class."""

    embedder: nn.Module
    head: Head
    loss: LossConfig
    world: World
    domains: tuple[str, ...] = ()
    """What the batches' domain numbers stand for; their losses are reported one by one."""

    def forward(self, embed: Callable[[Tensor], Tensor], batch: Batch) -> Outcome:
        """The loss of the micro-batch over all ranks.

        `embed` is the embedder as the engine wraps it. Backward gives this rank's centres their full gradient and the
        embedder the share of this rank's rows: summed over the ranks that is the gradient of the global loss.
        """
        emb_ND = embed(batch.image_NCHW).to(self.head.centre_CKD.dtype)
        emb_BD = self.world.gather(emb_ND, list(batch.counts))
        domain_N = batch.domain_N if batch.domain_N is not None else torch.zeros_like(batch.label_N)
        known_B2 = self.world.gather(torch.stack([batch.label_N, domain_N], dim=1), list(batch.counts))
        target_B, domain_B = known_B2.unbind(dim=1)
        logits_BC = self.head(emb_BD, target_B)
        first, num_classes = self.head.first, self.head.num_classes
        loss_B = self.loss.rows(logits_BC, target_B, first_class=first, num_classes=num_classes, world=self.world)
        return Outcome(loss_B.mean(), self._by_domain(loss_B.detach(), domain_B))

    def _by_domain(self, loss_B: Tensor, domain_B: Tensor) -> Tensor:
        of_domain_2M = loss_B.new_zeros(2, len(self.domains) or 1, dtype=torch.float64)
        of_domain_2M[0].index_add_(0, domain_B, loss_B.double())
        of_domain_2M[1].index_add_(0, domain_B, torch.ones_like(loss_B, dtype=torch.float64))
        return of_domain_2M
