"""Softmax cross-entropy over classes that are spread over the ranks: two small reductions instead of all logits.

Each rank goes through its classes block by block with a running maximum and sum (Milakov and Gimelshein, 2018); the ranks'
are merged by a maximum and a sum of B numbers each (PartialFC, An et al., CVPR 2022, section 3). The exponentials stay in the
blocks until the backward, where they only lack a factor for each row.

Legend: B rows of the global batch, P (row, label) pairs, b rows and c classes of a block.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field

from retrieval_train.losses.classes import by_blocks, needed
from retrieval_train.losses.loss import LossConfig, Value

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.losses.classes import Classes, Scored
    from retrieval_train.losses.loss import Seen
    from retrieval_train.world import World


class Memo(NamedTuple):
    """What the backward wants to know."""

    log_sum_B: Tensor
    """log of the sum of exp(logit) over all classes."""
    labels_B: Tensor
    """How many labels each row has."""
    kept: list[tuple[Tensor, Tensor]]
    """exp(logit - largest) and largest of each block; empty where there is no room."""


class Config(LossConfig):
    """-log softmax(logits)[label] of every row; of an image with several labels their mean."""

    name: Literal["softmax"] = "softmax"
    """The loss."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """The share of the target that is spread evenly over all classes that are compared with."""
    over: Literal["all", "domain"] = "all"
    """domain: a softmax of its own for every domain, over its classes only."""

    needs_head: ClassVar[bool] = True

    @property
    def own_domain(self) -> bool:
        return self.over == "domain"

    def value(self, seen: Seen) -> Value:
        return self.compared(seen, needed(seen.classes))

    def compared(self, seen: Seen, classes: Classes) -> Value:
        """With these class centres."""
        entropy_B, penalty_B = by_blocks(self, seen, classes)
        loss_B = self.rows(entropy_B) + penalty_B
        return Value(loss_B.mean(), loss_B.detach())

    def rows(self, entropy_B: Tensor) -> Tensor:
        """Each row's loss, of its cross-entropy."""
        return entropy_B

    def over_blocks(self, scored: Scored, world: World) -> tuple[Tensor, Memo]:
        import torch

        target_P, row_P = scored.target_logit_P, scored.row_P
        size = len(scored.num_classes_B)
        labels_B = torch.bincount(row_P, minlength=size).to(target_P.dtype)
        largest_B = target_P.new_full((size,), -math.inf)
        sums_B2 = target_P.new_zeros(size, 2)  # of exponentials, of logits
        kept = []
        for number in range(scored.num_blocks):
            logit_bc, row_b = scored.block(number)
            if self.label_smoothing:
                sums_B2[row_b, 1] += logit_bc.masked_fill(logit_bc == -math.inf, 0).sum(1)
            block_largest_b = logit_bc.amax(1).clamp(min=torch.finfo(logit_bc.dtype).min)
            power_bc = logit_bc.sub_(block_largest_b[:, None]).exp_()
            new_b = torch.maximum(largest_B[row_b], block_largest_b)
            sums_B2[row_b, 0] = (
                sums_B2[row_b, 0] * (largest_B[row_b] - new_b).exp() + power_bc.sum(1) * (block_largest_b - new_b).exp()
            )
            largest_B[row_b] = new_b
            if scored.keeps:
                kept.append((power_bc, block_largest_b))
        all_largest_B = world.max(largest_B).scatter_reduce(0, row_P, target_P, "amax")
        all_largest_B = all_largest_B.clamp(min=torch.finfo(target_P.dtype).min)
        sums_B2[:, 0] *= (largest_B - all_largest_B).exp()
        sum_B, total_B = world.sum(sums_B2).unbind(1)
        sum_B = sum_B.index_add(0, row_P, (target_P - all_largest_B[row_P]).exp())
        log_sum_B = sum_B.log() + all_largest_B
        expected_B = torch.zeros_like(sum_B).index_add(0, row_P, self._wanted(scored, labels_B) * target_P)
        expected_B += self.label_smoothing / scored.num_classes_B * total_B
        loss_B = torch.where(labels_B > 0, log_sum_B - expected_B, 0)
        return loss_B, Memo(log_sum_B, labels_B, kept)

    def take_back(self, scored: Scored, memo: Memo, grad_B: Tensor, world: World) -> None:
        import torch

        grad_B = torch.where(memo.labels_B > 0, grad_B, 0)
        for number in range(scored.num_blocks):
            if memo.kept:
                (power_bc, largest_b), row_b = memo.kept[number], scored.rows(number)
            else:
                power_bc, row_b = scored.block(number)
                largest_b = memo.log_sum_B[row_b]
                power_bc = power_bc.sub_(largest_b[:, None]).exp_()
            factor_b = (largest_b - memo.log_sum_B[row_b]).exp()
            if not self.label_smoothing:
                scored.take(number, power_bc, grad_B[row_b] * factor_b)
                continue
            share_b = self.label_smoothing / scored.num_classes_B[row_b]
            scored.take(number, power_bc.mul_(factor_b[:, None]).sub_(share_b[:, None]), grad_B[row_b])
        row_P = scored.row_P
        probability_P = (scored.target_logit_P - memo.log_sum_B[row_P]).exp()
        scored.take_targets((probability_P - self._wanted(scored, memo.labels_B)) * grad_B[row_P])

    def _wanted(self, scored: Scored, labels_B: Tensor) -> Tensor:
        """The probability that each pair should have."""
        row_P, smoothing = scored.row_P, self.label_smoothing
        return (1 - smoothing) / labels_B[row_P] + smoothing / scored.num_classes_B[row_P]
