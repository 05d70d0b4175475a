"""Binary cross-entropy: every class is a yes-or-no question of its own, so an image may have any number of labels.

Classes do not compete, so a rank needs nothing of the others' classes but the sum of their losses.

Legend: B rows of the global batch, P (row, label) pairs, b rows and c classes of a block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field

from retrieval_train.losses.classes import by_blocks, needed
from retrieval_train.losses.loss import LossConfig, Value

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.losses.classes import Scored
    from retrieval_train.losses.loss import Seen
    from retrieval_train.world import World


class Memo(NamedTuple):
    """What the backward wants to know."""

    scale_B: Tensor
    """What each row's sum over classes is multiplied by; 0 for a row without a label."""
    kept: list[Tensor]
    """sigmoid(logit) of each block; empty where there is no room."""


class Config(LossConfig):
    """-log sigmoid(logit) of an image's classes - log(1 - sigmoid(logit)) of all others, for every row."""

    name: Literal["bce"] = "bce"
    """The loss."""
    reduce: Literal["mean", "sum"] = "mean"
    """Over the classes; mean is torch's BCEWithLogitsLoss."""
    positive_weight: float = Field(default=1.0, gt=0)
    """Multiplies the part of an image's own classes."""

    needs_head: ClassVar[bool] = True

    @property
    def own_domain(self) -> bool:
        return False

    def value(self, seen: Seen) -> Value:
        loss_B, penalty_B = by_blocks(self, seen, needed(seen.classes))
        loss_B = loss_B + penalty_B
        return Value(loss_B.mean(), loss_B.detach())

    def over_blocks(self, scored: Scored, world: World) -> tuple[Tensor, Memo]:
        import torch
        from torch.nn import functional

        target_P, row_P = scored.target_logit_P, scored.row_P
        sum_B = torch.zeros_like(scored.num_classes_B)
        has_label_B = torch.zeros_like(sum_B).index_fill(0, row_P, 1)
        kept = []
        for number in range(scored.num_blocks):
            logit_bc, row_b = scored.block(number)
            sum_B[row_b] += functional.softplus(logit_bc).sum(1)
            if scored.keeps:
                kept.append(logit_bc.sigmoid_())
        sum_B = world.sum(sum_B).index_add(0, row_P, self.positive_weight * functional.softplus(-target_P))
        scale_B = has_label_B / (scored.num_classes_B if self.reduce == "mean" else 1)
        return sum_B * scale_B, Memo(scale_B, kept)

    def take_back(self, scored: Scored, memo: Memo, grad_B: Tensor, world: World) -> None:
        grad_B = grad_B * memo.scale_B
        for number in range(scored.num_blocks):
            probability_bc = memo.kept[number] if memo.kept else scored.block(number)[0].sigmoid_()
            scored.take(number, probability_bc, grad_B[scored.rows(number)])
        lacking_P = (-scored.target_logit_P).sigmoid()
        scored.take_targets(-self.positive_weight * lacking_P * grad_B[scored.row_P])
