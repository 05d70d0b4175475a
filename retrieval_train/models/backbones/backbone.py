"""What every backbone is made of: a file `backbones/<name>.py` with a frozen `Config`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
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

    def size_problem(self, image_px: int) -> str | None:
        """Why no images of this size go in beside those of other sizes, where that can be told without building it."""
        return None

    def weights_file(self) -> Path | None:
        return None


def check_sizes(embedder: nn.Module, sizes: Sequence[int]) -> None:
    """One blank image of each size through the embedder. Raises ValueError for the first size that it cannot take."""
    import torch

    device, was_training = next(embedder.parameters()).device, embedder.training
    embedder.eval()  # batch statistics stay as they are, and one image is enough for them
    try:
        for image_px in sizes:
            with torch.no_grad():
                embedder(torch.zeros(1, 3, image_px, image_px, dtype=torch.uint8, device=device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the backbone takes no images of {image_px} px, which data.resolutions asks for ({error}); take other sizes or "
            "another backbone, or leave data.resolutions out"
        ) from None
    finally:
        embedder.train(was_training)
