"""What every margin rule is made of. A head is a margin rule: a file `heads/<name>.py` with a frozen `Config`.

Legend: B rows of the global batch, C classes of this rank, K sub-centres, D dimensions.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from retrieval_train.config import Section

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """What a rule sees: this rank's share of the scores of the whole batch."""

    cosine_BC: Tensor
    """Cosine of each embedding with each class of this rank (its best sub-centre), in [-1, 1], float32."""
    norm_B: Tensor
    """Length of each embedding before it was normalised."""
    first_class: int
    """Global id of this rank's first class: column c is class `first_class + c`."""

    def targets_here(self, target_B: Tensor) -> tuple[Tensor, Tensor]:
        """The rows whose class lies on this rank, and their columns: both (R,)."""
        column_B = target_B - self.first_class
        row_R = ((column_B >= 0) & (column_B < self.cosine_BC.shape[1])).nonzero(as_tuple=True)[0]
        return row_R, column_B[row_R]


class RuleConfig(Section):
    """Base of all rules: how cosines become logits."""

    name: str
    """The rule: the name of a file in heads/."""
    scale: float = Field(default=30.0, gt=0)
    """s: what the cosines are multiplied by before the softmax."""
    sub_centres: int = Field(default=1, ge=1)
    """K centres a class: an embedding is compared with the nearest one (sub-centre ArcFace, ECCV 2020)."""

    @abstractmethod
    def logits(self, scores: Scores, target_B: Tensor) -> Tensor:
        """This rank's logits (B, C) for the classes in `target_B` (global ids)."""
