"""What every margin rule is made of. A head is a margin rule: a file `heads/<name>.py` with a frozen `Config`.

A rule says two things: what becomes of the scores of an image's own classes (`target`), and of all others (`others`). The
first are few, known on every rank and differentiated by autograd. The second are many, spread over the ranks and computed
block by block; with nearly all rules they are only multiplied by a scale.

Legend: B rows of the global batch, P (row, label) pairs (P = B where every image has one label), C classes of a block.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from retrieval_train.config import Section, place

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Targets:
    """The scores of the images' own classes: of the whole global batch, the same on every rank."""

    cosine_P: Tensor
    """Cosine of each row with each of its classes (the best sub-centre), in [-1, 1]; raw products for a linear rule."""
    row_P: Tensor
    """Rows of the pairs, ascending: 0, 1, 2 ... where every image has one label."""
    norm_B: Tensor
    """Length of each embedding before it was normalised."""
    margin_P: Tensor | None = None
    """The margin of each pair's class, for rules whose classes have margins of their own."""

    @property
    def norm_P(self) -> Tensor:
        return self.norm_B[self.row_P]


class RuleConfig(Section):
    """Base of all rules: how scores become logits."""

    name: str
    """The rule: the name of a file in heads/."""
    scale: float = Field(default=30.0, gt=0)
    """s: what the cosines are multiplied by before the softmax."""
    sub_centres: int = Field(default=1, ge=1, le=255)
    """K centres a class: an embedding is compared with the nearest one (sub-centre ArcFace, ECCV 2020)."""
    sample_rate: float = Field(default=1.0, gt=0, le=1)
    """Share of the classes that a step compares with, beside those of its images (PartialFC, CVPR 2022)."""
    products: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products with 16-bit factors; the scores of the images' own classes stay float32."""
    shard_within: Literal["world", "node"] = Field(default="world", json_schema_extra=place())
    """node: every node has all class centres, shared by its ranks; only gradients travel between nodes."""
    logits_mb: int = Field(default=2048, ge=0, json_schema_extra=place())
    """Memory for this rank's logits from forward to backward; those that do not fit are computed again."""

    is_cosine: ClassVar[bool] = True
    """False: raw products instead of cosines, and centres keep their length."""
    only_scales: ClassVar[bool] = True
    """Whether the other classes' logits are `factor(state)` times their scores; else they are `others`."""
    many_labels: ClassVar[bool] = True
    """Whether an image may have several labels."""

    @property
    def has_bias(self) -> bool:
        """Whether the last column of the centres is added to the score as it is."""
        return False

    @abstractmethod
    def target(self, targets: Targets, state: State) -> Tensor:
        """The logits (P,) of the images' own classes. Differentiated by autograd."""

    def factor(self, state: State) -> Tensor | float:
        """What the other classes' scores are multiplied by."""
        return self.scale

    def others(self, cosine_BC: Tensor, targets: Targets, state: State) -> Tensor:
        """The logits (B, C) of other classes, element by element. Differentiated by autograd; `targets` has no gradient."""
        return self.factor(state) * cosine_BC

    def margins(self, count_C: Tensor) -> Tensor | None:
        """A margin for each of all C classes, from their numbers of training images; None: this rule has none."""
        return None

    def first_state(self, num_classes: int) -> dict[str, Tensor]:
        """Running state before the first step: kept beside the class centres, equal on all ranks, saved with them."""
        return {}

    def observe(self, targets: Targets, state: State, log_sum_others: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The running state for this and the next steps, from a training batch. Without gradient.

        `log_sum_others(s)` is log(sum over the other classes of exp(s cosine)), (B,), float32: a pass of its own over all
        classes, and collective.
        """
        return {}

    def penalty(self, norm_B: Tensor) -> Tensor | None:
        """What is added to each row's loss, (B,). Differentiated by autograd."""
        return None
