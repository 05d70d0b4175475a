"""Class centres as a loss sees them: logits of this rank's classes, block by block, and their gradient on the way back.

Legend: B rows of the global batch, P (row, label) pairs, C classes of this rank, c classes of a block, b rows of a block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.losses.loss import Seen
    from retrieval_train.world import World


class Scored(Protocol):
    """One micro-batch against the classes. Not differentiated by autograd: a loss hands gradients back itself."""

    target_logit_P: Tensor
    """The logits of the pairs, with their margins, on every rank."""
    penalty_B: Tensor
    """What the rule adds to each row's loss."""
    factor: float
    """What cosines are multiplied by to be logits."""
    num_classes_B: Tensor
    """How many classes each row is compared with, over all ranks: those of its domain, or all."""
    num_blocks: int
    keeps: bool
    """Whether what a loss computes from the blocks may be kept until the backward: else the blocks are asked for again."""

    @property
    def row_P(self) -> Tensor: ...

    @property
    def class_P(self) -> Tensor: ...

    def block(self, number: int) -> tuple[Tensor, Tensor | slice]:
        """Logits (b, c) of some classes of this rank, and which rows they are of; slice(None): all rows.

        -inf at the pairs, which are among the targets. They are the caller's to overwrite.
        """
        ...

    def rows(self, number: int) -> Tensor | slice: ...

    def take(self, number: int, grad_bc: Tensor, factor_b: Tensor | None = None) -> None:
        """The gradient by a block's logits: `grad_bc`, times `factor_b` row by row; what it says of the pairs is left out.

        Overwrites `grad_bc`.
        """
        ...

    def take_targets(self, grad_P: Tensor) -> None:
        """The gradient by the pairs' logits, of the whole loss, the same on every rank."""
        ...

    def take_penalty(self, grad_B: Tensor) -> None: ...

    def gradients(self) -> tuple[Tensor, Tensor]:
        """By the embeddings (B, D), this rank's share, and by its centres (C, K, D)."""
        ...


class Classes(Protocol):
    """The class centres of this rank."""

    num_classes: int
    """Over all ranks."""
    class_names: list[str]
    """Of this rank's classes."""
    domain_C: Tensor
    """int64: the domain of each class of this rank, as batches number them."""
    first: int
    """Global id of this rank's first class."""
    world: World
    """The ranks that share the classes: all, or those of this node."""

    def active(self, class_P: Tensor) -> Tensor:
        """The centres (C, K, D) that this step compares with, as a leaf of the graph."""
        ...

    def score(self, emb_BD: Tensor, centre_CKD: Tensor, row_P: Tensor, class_P: Tensor, *, own_domain: bool) -> Scored:
        """Collective. `own_domain`: each row is compared with the classes of its own domain only."""
        ...

    def cosines(self, emb_BD: Tensor) -> Tensor:
        """Scores (B, C) of all classes of this rank, raw products for a linear head, by autograd: all in memory at once."""
        ...

    def logits(self, emb_BD: Tensor) -> Tensor:
        """`cosines` times the head's scale: logits without margins."""
        ...


class BlockLoss(Protocol):
    """A loss over class logits whose backward is written out."""

    @property
    def own_domain(self) -> bool:
        """Whether rows are compared with the classes of their own domain only."""
        ...

    def over_blocks(self, scored: Scored, world: World) -> tuple[Tensor, Any]:
        """The loss of every row (B,), the same on every rank, and what `take_back` wants to know. Collective."""
        ...

    def take_back(self, scored: Scored, memo: Any, grad_B: Tensor, world: World) -> None:
        """Hand the gradients to `scored`, for the gradient `grad_B` by the rows' losses."""
        ...


def by_blocks(loss: BlockLoss, seen: Seen, classes: Classes) -> tuple[Tensor, Tensor]:
    """The loss of every row (B,), and what the margin rule adds to it (B,), the same on every rank.

    The backward gives this rank's share of the gradient.
    """
    from retrieval_train.losses.sharded import OverBlocks

    centre_CKD = classes.active(seen.class_P)
    found: Any = OverBlocks.apply(seen.emb_BD, centre_CKD, seen.row_P, seen.class_P, loss, classes)
    loss_B, penalty_B = found
    return loss_B, penalty_B


def needed(classes: Classes | None) -> Classes:
    assert classes is not None, "the config was checked: this loss has a head"
    return classes
