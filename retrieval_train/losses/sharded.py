"""Cross-entropy whose classes are spread over the ranks, with its backward written out.

Each rank knows the logits of its own classes only. Two reductions of B numbers give every rank the normaliser and the
target's logit; the gradient of a rank's logits then needs no other rank. (PartialFC, An et al., CVPR 2022, section 3.)

Legend: B rows of the global batch, C classes of this rank, R rows whose target is on this rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrieval_train.world import World


class ShardedCrossEntropy(torch.autograd.Function):
    """apply(logits_BC, target_B, first_class, num_classes, smoothing, world) -> each row's loss, (B,)."""

    @staticmethod
    def forward(
        ctx: Any, logits_BC: Tensor, target_B: Tensor, first: int, num_classes: int, smoothing: float, world: World
    ) -> Tensor:
        column_B = target_B - first
        row_R = ((column_B >= 0) & (column_B < logits_BC.shape[1])).nonzero(as_tuple=True)[0]
        column_R = column_B[row_R]
        largest_B = world.max(logits_BC.amax(dim=1))
        probability_BC = (logits_BC - largest_B[:, None]).exp_()
        parts_B3 = logits_BC.new_zeros(len(logits_BC), 3)  # sum of exponentials, target's logit, sum of logits
        parts_B3[:, 0] = probability_BC.sum(dim=1)
        parts_B3[row_R, 1] = logits_BC[row_R, column_R]
        if smoothing:
            parts_B3[:, 2] = logits_BC.sum(dim=1)
        sum_B, target_logit_B, total_B = world.sum(parts_B3).unbind(dim=1)
        probability_BC /= sum_B[:, None]
        ctx.save_for_backward(probability_BC, row_R, column_R)
        ctx.smoothing, ctx.num_classes = smoothing, num_classes
        expected_B = (1 - smoothing) * target_logit_B + smoothing / num_classes * total_B
        return sum_B.log() + largest_B - expected_B

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        probability_BC, row_R, column_R = ctx.saved_tensors
        grad_BC = probability_BC.clone() if not ctx.smoothing else probability_BC - ctx.smoothing / ctx.num_classes
        grad_BC[row_R, column_R] -= 1 - ctx.smoothing
        return grad_BC * grads[0][:, None], None, None, None, None, None
