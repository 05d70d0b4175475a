"""What every neck is made of: a file `necks/<name>.py` with a frozen `Config`. Features (N, F) -> embedding (N, D)."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from retrieval_train.config import Section

if TYPE_CHECKING:
    from torch import nn


class NeckConfig(Section):
    """Base of all necks."""

    name: str
    """The neck: the name of a file in models/necks/."""

    @abstractmethod
    def build(self, num_features: int) -> nn.Module: ...

    @abstractmethod
    def dim(self, num_features: int) -> int:
        """Dimensions of the embedding."""
