"""Softmax cross-entropy over classes that are spread over the ranks: two small reductions instead of all logits.

Legend: B rows of the global batch, C classes of this rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from retrieval_train.losses.loss import LossConfig

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.world import World


class Config(LossConfig):
    """-log softmax(logits)[target] of every row."""

    name: Literal["softmax"] = "softmax"
    """The loss."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """The share of the target that is spread evenly over all classes."""

    def rows(self, logits_BC: Tensor, target_B: Tensor, *, first_class: int, num_classes: int, world: World) -> Tensor:
        """The loss of every row of the global batch, the same on every rank; the gradient is of this rank's classes."""
        from retrieval_train.losses.sharded import ShardedCrossEntropy

        smoothing = self.label_smoothing
        loss: Any = ShardedCrossEntropy.apply(logits_BC, target_B, first_class, num_classes, smoothing, world)
        return loss  # type: ignore[no-any-return]
