"""What every loss on class logits is made of: a file `losses/<name>.py` with a frozen `Config`."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from retrieval_train.config import Section

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.world import World


class LossConfig(Section):
    """Base of all losses."""

    name: str
    """The loss: the name of a file in losses/."""

    @abstractmethod
    def rows(self, logits_BC: Tensor, target_B: Tensor, *, first_class: int, num_classes: int, world: World) -> Tensor:
        """The loss of every row of the global batch, (B,), the same on every rank. `target_B` holds global class ids."""
