"""How an image becomes the network's square when nothing is random: evaluation, export, and the base of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from retrieval_train.config import Section

if TYPE_CHECKING:
    from torch import Tensor


class View(Section):
    """Resize, then centre crop."""

    resize: Literal["squeeze", "shorter"] = "squeeze"
    """squeeze: both sides to the same length, nothing cut off; shorter: the shorter side, aspect kept."""
    crop: float = Field(default=1.0, gt=0.1, le=1)
    """Share of the resized side that the centre crop keeps."""

    def apply(self, image_CHW: Tensor, image_px: int) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, image_px, image_px)."""
        from torchvision.transforms.v2 import functional

        side = round(image_px / self.crop)
        size = [side, side] if self.resize == "squeeze" else [side]
        bicubic = functional.InterpolationMode.BICUBIC
        resized = functional.resize(image_CHW, size, interpolation=bicubic, antialias=True)
        out: Tensor = functional.center_crop(resized, [image_px, image_px])
        return out
