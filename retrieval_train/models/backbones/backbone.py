"""What every backbone is made of: a file `backbones/<name>.py` with a frozen `Config`."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from retrieval_train.config import Section
from retrieval_train.data.view import View

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Built:
    """A backbone ready to be trained or to embed."""

    module: nn.Module
    """float RGB (N, 3, H, W), normalised -> features (N, F)."""
    num_features: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    view: View
    """How images were resized and cropped for it when it was pretrained, or are for its kind of network."""


class BackboneConfig(Section):
    """Base of all backbones."""

    name: str
    """The backbone: the name of a file in models/backbones/."""
    image_px: int = Field(default=224, ge=8)
    """Side of the square image that goes in."""

    @abstractmethod
    def build(self, *, with_weights: bool = True) -> Built:
        """`with_weights=False` leaves the pretrained weights out, where others are loaded right after."""

    @property
    @abstractmethod
    def is_pretrained(self) -> bool: ...

    def problems(self) -> list[tuple[str, str]]:
        """What of the outside world does not fit: (key, what to do)."""
        return []

    def weights_file(self) -> Path | None:
        return None
