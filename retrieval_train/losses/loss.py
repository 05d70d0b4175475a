"""What every loss is made of: a file `losses/<name>.py` with a frozen `Config`.

A loss sees one micro-batch of all ranks and answers with one number that is the same on every rank. Its backward gives each
rank a share of the gradient; over the ranks the shares add up to the gradient of that number, none is counted twice.

Legend: N rows of this rank, B rows of all ranks, P (row, label) pairs, D dimensions, U unlabelled rows of this rank.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from retrieval_train.config import Section

if TYPE_CHECKING:
    from torch import Tensor, nn

    from retrieval_train.losses.classes import Classes
    from retrieval_train.world import World


@dataclass(frozen=True)
class Seen:
    """One micro-batch behind the embedder. `_N`: of this rank; `_B`, `_P`: of all ranks, in rank order, the same on each."""

    world: World
    counts: tuple[int, ...]
    """Rows of every rank: my rows begin at sum(counts[:rank])."""
    emb_ND: Tensor
    """Embeddings of my rows, not normalised, with gradient."""
    emb_BD: Tensor
    """All ranks' embeddings; the backward brings each rank the gradients that all ranks have for its rows."""
    label_B: Tensor
    """int64; the first label of an image with several, -1 for none."""
    domain_B: Tensor
    """int64 positions in the run's domains."""
    row_P: Tensor
    """Row of each (row, label) pair, ascending; rows without a label have no pair ..."""
    class_P: Tensor
    """... and its class."""
    classes: Classes | None = None
    """The class centres, where there is a head."""
    own_classes: Mapping[str, Classes] = field(default_factory=dict)
    """Class centres that the loss asked for by `heads`."""
    extra_NE: Tensor | None = None
    """What the layers that the loss asked for by `layers` made of my rows; None where they were not run."""
    strong_ND: Tensor | None = None
    """My rows seen a second time, strongly augmented ..."""
    strong_extra_NE: Tensor | None = None
    unlabelled_UD: Tensor | None = None
    """... and rows without labels, seen both ways."""
    unlabelled_strong_UD: Tensor | None = None
    unlabelled_counts: tuple[int, ...] = ()
    state: dict[str, Tensor] = field(default_factory=dict)
    """The loss's running state; changed in place, by training batches only."""
    is_training: bool = True

    @property
    def first(self) -> int:
        """Where my rows begin in the global batch."""
        return sum(self.counts[: self.world.rank])

    @cached_property
    def unit_ND(self) -> Tensor:
        from torch.nn import functional

        return functional.normalize(self.emb_ND, dim=-1)

    @cached_property
    def unit_BD(self) -> Tensor:
        from torch.nn import functional

        return functional.normalize(self.emb_BD, dim=-1)

    @cached_property
    def overlap_NB(self) -> Tensor:
        """How many labels each of my rows shares with each row of the global batch, int64; 0 where one has none.

        A row shares its labels with itself too.
        """
        import torch

        if len(self.row_P) == int((self.label_B >= 0).sum()):  # no image has several
            mine_N = self.label_B[self.first : self.first + len(self.emb_ND)]
            return ((mine_N[:, None] == self.label_B[None]) & (mine_N >= 0)[:, None]).long()
        distinct, class_P = self.class_P.unique(return_inverse=True)
        has_BQ = torch.zeros(len(self.label_B), len(distinct), device=class_P.device)
        has_BQ[self.row_P, class_P] = 1
        return (has_BQ[self.first : self.first + len(self.emb_ND)] @ has_BQ.T).round().long()

    @cached_property
    def is_self_NB(self) -> Tensor:
        """Where a row of mine meets itself."""
        import torch

        mine_N = torch.arange(self.first, self.first + len(self.emb_ND), device=self.label_B.device)
        return mine_N[:, None] == torch.arange(len(self.label_B), device=self.label_B.device)[None]


class Value(NamedTuple):
    """What a loss answers."""

    loss: Tensor
    """The same number on every rank; its backward gives this rank's share."""
    row_B: Tensor | None = None
    """The loss of every row, the same on every rank, without gradient; None where it has no rows of its own."""


class LossConfig(Section):
    """Base of all losses."""

    name: str
    """The loss: the name of a file in losses/."""

    needs_head: ClassVar[bool] = False
    """Whether it compares embeddings with class centres."""
    needs_cosines: ClassVar[bool] = False
    """Whether those scores must be cosines: no linear head."""
    needs_all_classes: ClassVar[bool] = False
    """Whether it needs the logits of all classes at once: none may be left out by sampling."""
    needs_strong: ClassVar[bool] = False
    """Whether it needs a second view of each image (data.strong)."""
    takes_unlabelled: ClassVar[bool] = False
    """Whether it uses images without labels (data.unlabelled)."""
    many_labels: ClassVar[bool] = True
    """Whether an image may have several labels."""
    compares_rows: ClassVar[bool] = False
    """Whether rows are compared with each other: smaller micro-batches would then be another loss."""

    @abstractmethod
    def value(self, seen: Seen) -> Value:
        """The loss of a micro-batch. Collective."""

    def layers(self, *, num_features: int, dim: int, num_domains: int) -> nn.Module | None:
        """Layers to be trained with the embedder and left out of the export: called with (features_NF, emb_ND), they give
        (N, E). Built from the random numbers as they stand."""
        return None

    def heads(self, *, dim: int) -> dict[str, tuple[Any, int]]:
        """Class centres of its own: name -> (a margin rule's settings as a mapping with its `name`, dimensions)."""
        return {}

    def first_state(self, *, dim: int) -> dict[str, Tensor]:
        """Running state before the first step: equal on all ranks, saved with the checkpoint."""
        return {}


def spread(part: Tensor, world: World) -> Tensor:
    """The sum over the ranks of each rank's part, as a number whose gradient is that of this rank's part."""
    from retrieval_train.losses.sharded import Spread

    total: Any = Spread.apply(part, world)
    return total  # type: ignore[no-any-return]


def of_rows(loss_N: Tensor, seen: Seen) -> Value:
    """The mean over the global batch of what each rank knows of its own rows."""
    part = loss_N.sum() / len(seen.label_B)
    return Value(spread(part, seen.world), seen.world.gather(loss_N.detach(), list(seen.counts)))
