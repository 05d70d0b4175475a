"""Embedder, head and loss behind one forward; says which parameters are replicated and which are sharded by class.

Legend: N rows of this rank, B rows of all ranks, C classes of this rank, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from retrieval_train.data.batch import Batch
from retrieval_train.heads.centres import Head
from retrieval_train.losses.loss import LossConfig
from retrieval_train.world import World


@dataclass(frozen=True)
class Learner:
    """What is trained. The embedder is replicated (ZeRO's business), the head's centres are sharded by class."""

    embedder: nn.Module
    head: Head
    loss: LossConfig
    world: World

    def forward(self, embed: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """The loss of the micro-batch over all ranks, the same number on every rank.

        `embed` is the embedder as the engine wraps it. Backward gives this rank's centres their full gradient and the
        embedder the share of this rank's rows: summed over the ranks that is the gradient of the global loss.
        """
        emb_ND = embed(batch.image_NCHW).to(self.head.centre_CKD.dtype)
        emb_BD = self.world.gather(emb_ND, list(batch.counts))
        target_B = self.world.gather(batch.label_N, list(batch.counts))
        logits_BC = self.head(emb_BD, target_B)
        first, num_classes = self.head.first, self.head.num_classes
        return self.loss.value(logits_BC, target_B, first_class=first, num_classes=num_classes, world=self.world)
