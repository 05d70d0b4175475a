"""What makes a sharded loss differentiable: each rank knows some rows and some classes, sums bring the rest.

Legend: B rows of the global batch, P (row, label) pairs, C classes of this rank, K sub-centres, D dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from retrieval_train.losses.classes import BlockLoss, Classes
    from retrieval_train.world import World


class OverBlocks(torch.autograd.Function):
    """apply(emb_BD, centre_CKD, row_P, class_P, loss, classes) -> each row's loss and its penalty, (B,) and (B,)."""

    @staticmethod
    def forward(
        ctx: Any, emb_BD: Tensor, centre_CKD: Tensor, row_P: Tensor, class_P: Tensor, loss: BlockLoss, classes: Classes
    ) -> tuple[Tensor, Tensor]:
        # bf16 cannot tell cosines near 1 apart, and there a margin's slope is steepest
        with torch.autocast(emb_BD.device.type, enabled=False):
            scored = classes.score(emb_BD, centre_CKD, row_P, class_P, own_domain=loss.own_domain)
            loss_B, ctx.memo = loss.over_blocks(scored, classes.world)
        ctx.scored, ctx.loss, ctx.world = scored, loss, classes.world
        return loss_B, scored.penalty_B

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        with torch.autocast(grads[0].device.type, enabled=False):
            ctx.loss.take_back(ctx.scored, ctx.memo, grads[0], ctx.world)
            ctx.scored.take_penalty(grads[1])
            grad_emb_BD, grad_centre_CKD = ctx.scored.gradients()
        ctx.scored = ctx.memo = None
        return grad_emb_BD, grad_centre_CKD, None, None, None, None


class Spread(torch.autograd.Function):
    """apply(part, world) -> the sum over the ranks; the gradient is that of this rank's part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, world: World) -> Tensor:
        return world.sum(part)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _LogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logit_BC: Tensor, world: World) -> Tensor:
        largest_B1 = world.max(logit_BC.amax(dim=1, keepdim=True))
        sum_B1 = world.sum((logit_BC - largest_B1).exp().sum(dim=1, keepdim=True))
        log_BC = logit_BC - largest_B1 - sum_B1.log()
        ctx.save_for_backward(log_BC)
        ctx.world = world
        return log_BC

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (log_BC,) = ctx.saved_tensors
        total_B1 = ctx.world.sum(grads[0].sum(dim=1, keepdim=True))
        return grads[0] - log_BC.exp() * total_B1, None


def log_softmax(logit_BC: Tensor, world: World) -> Tensor:
    """log softmax over the classes of all ranks, of this rank's classes, (B, C); collective, its backward too.

    Every rank's gradient is that of its own part of a loss: the backward adds up what they have for the normaliser.
    """
    log_BC: Any = _LogSoftmax.apply(logit_BC, world)
    return log_BC  # type: ignore[no-any-return]
