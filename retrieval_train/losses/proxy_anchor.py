"""Proxy-Anchor: every class centre pulls its images and pushes all others of the batch (Kim et al., CVPR 2020, equation 4).

The sums run over the batch, for each class by itself. A rank has all rows of the batch, so its classes need nothing of the
other ranks' but the count.

Legend: B rows of the global batch, P (row, label) pairs, b rows and c classes of a block, Q distinct classes of the batch.
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

    kept: list[tuple[Tensor, Tensor]]
    """exp(v - log sum exp v) and the slope of log(1 + sum exp v) of each block; empty where there is no room."""
    grad_P: Tensor
    """By the pairs' logits."""


class Config(LossConfig):
    """mean over the batch's classes of log(1 + sum exp(-alpha (cos - delta))) over their images, and mean over all classes of
    log(1 + sum exp(alpha (cos + delta))) over the other images. alpha is the head's scale; the paper has 32."""

    name: Literal["proxy_anchor"] = "proxy_anchor"
    """The loss."""
    delta: float = Field(default=0.1, ge=0, lt=2)
    """Margin, a difference of cosines."""

    needs_head: ClassVar[bool] = True
    needs_cosines: ClassVar[bool] = True
    compares_rows: ClassVar[bool] = True

    @property
    def own_domain(self) -> bool:
        return False

    def value(self, seen: Seen) -> Value:
        loss_B, penalty_B = by_blocks(self, seen, needed(seen.classes))
        return Value((loss_B + penalty_B).mean())

    def over_blocks(self, scored: Scored, world: World) -> tuple[Tensor, Memo]:
        """Every row is told the whole loss: it belongs to classes, not to rows."""
        import torch
        from torch.nn import functional

        shift = scored.factor * self.delta
        num_classes = scored.num_classes_B[0]
        pushed, kept = scored.num_classes_B.new_zeros(()), []
        for number in range(scored.num_blocks):
            share_bc, slope_c, log_c = self._pushed(scored, number, shift)
            pushed = pushed + functional.softplus(log_c).sum()
            if scored.keeps:
                kept.append((share_bc, slope_c))
        exponent_P = shift - scored.target_logit_P
        distinct_Q, place_P = scored.class_P.unique(return_inverse=True)
        log_Q = _log_sum(exponent_P, place_P, len(distinct_Q))
        pulled = functional.softplus(log_Q).sum() / max(len(distinct_Q), 1)
        grad_P = -(exponent_P - log_Q[place_P]).exp() * log_Q.sigmoid()[place_P] / max(len(distinct_Q), 1)
        loss = pulled + world.sum(pushed) / num_classes
        return torch.zeros_like(scored.num_classes_B) + loss, Memo(kept, grad_P)

    def take_back(self, scored: Scored, memo: Memo, grad_B: Tensor, world: World) -> None:
        grad = grad_B.sum()
        for number in range(scored.num_blocks):
            if memo.kept:
                share_bc, slope_c = memo.kept[number]
            else:
                share_bc, slope_c, _ = self._pushed(scored, number, scored.factor * self.delta)
            scored.take(number, share_bc.mul_(slope_c * (grad / scored.num_classes_B[0])))
        scored.take_targets(memo.grad_P * grad)

    def _pushed(self, scored: Scored, number: int, shift: float) -> tuple[Tensor, Tensor, Tensor]:
        """Each row's share of a class's sum, the slope of log(1 + sum), and log(sum)."""
        import torch

        exponent_bc, _ = scored.block(number)
        exponent_bc += shift
        log_c = exponent_bc.logsumexp(0)
        finite_c = log_c.clamp(min=torch.finfo(log_c.dtype).min)  # -inf where all rows are of this class
        return exponent_bc.sub_(finite_c).exp_(), log_c.sigmoid(), log_c


def _log_sum(value_P: Tensor, place_P: Tensor, size: int) -> Tensor:
    """log(sum of exp) of the values of each place."""
    import torch

    largest = value_P.new_full((size,), -torch.inf).scatter_reduce(0, place_P, value_P, "amax")
    return value_P.new_zeros(size).index_add(0, place_P, (value_P - largest[place_P]).exp()).log() + largest
