"""How an image becomes the network's square when nothing is random: evaluation, export, and the base of training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from retrieval_train.config import Section

if TYPE_CHECKING:
    from torch import Tensor

Level = Annotated[int, Field(ge=0, le=255)]
SHARPNESS = 2.0  # a scaled decode that keeps this much differs by 0.1 grey levels from a full one


class View(Section):
    """Resize, then centre crop."""

    resize: Literal["squeeze", "shorter", "longer"] = "squeeze"
    """squeeze: both sides to the same length, nothing cut off; shorter: the shorter side, aspect kept; longer: the longer
    side, aspect kept, with a border."""
    crop: float = Field(default=1.0, gt=0.1, le=1)
    """Share of the resized side that the centre crop keeps."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """What a pixel is made of; both average where they shrink."""
    border: tuple[Level, Level, Level] = (128, 128, 128)
    """Colour of the border, where resize is longer."""

    def min_side(self, image_px: int) -> int:
        """How many pixels the shorter side should have when an image is decoded for this."""
        return math.ceil(SHARPNESS * self.resized_px(image_px))

    def apply(self, image_CHW: Tensor, image_px: int) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, image_px, image_px)."""
        height, width = image_CHW.shape[1:]
        new_height, new_width = self._resized(height, width, image_px)
        resized_CHW = resize(image_CHW, new_height, new_width, interpolation=self.interpolation)
        if new_height < image_px or new_width < image_px:
            resized_CHW = self._bordered(resized_CHW, max(new_height, image_px), max(new_width, image_px))
        # the middle as torchvision rounds it
        top, left = (round((side - image_px) / 2) for side in resized_CHW.shape[1:])
        return resized_CHW[:, top : top + image_px, left : left + image_px]

    def _bordered(self, image_CHW: Tensor, height: int, width: int) -> Tensor:
        out_HWC = image_CHW.new_tensor(self.border).expand(height, width, 3).clone()
        top, left = (height - image_CHW.shape[1]) // 2, (width - image_CHW.shape[2]) // 2
        out_HWC[top : top + image_CHW.shape[1], left : left + image_CHW.shape[2]] = image_CHW.permute(1, 2, 0)
        return out_HWC.permute(2, 0, 1)

    def resized_px(self, image_px: int) -> int:
        """The length that resize gives a side."""
        return math.floor(image_px / self.crop)  # as timm rounds

    def _resized(self, height: int, width: int, image_px: int) -> tuple[int, int]:
        side = self.resized_px(image_px)
        if self.resize == "squeeze":
            return side, side
        if self.resize == "shorter":  # as torchvision rounds
            return (side, side * width // height) if height <= width else (side * height // width, side)
        scale = side / max(height, width)
        return max(round(height * scale), 1), max(round(width * scale), 1)


def resize(image_CHW: Tensor, height: int, width: int, *, interpolation: str = "bicubic") -> Tensor:
    """uint8 (3, H, W) -> uint8 (3, height, width); lies in memory as the image does."""
    from torch.nn.functional import interpolate

    # unsqueezed behind the permutation, so that torch sees rows of whole pixels and need not take them apart
    image_1CHW = image_CHW.permute(1, 2, 0).unsqueeze(0).permute(0, 3, 1, 2)
    return interpolate(image_1CHW, size=(height, width), mode=interpolation, antialias=True)[0]
