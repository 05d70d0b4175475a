"""What is random about a training image. Every draw follows from (seed, step, row), whatever worker or rank makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from retrieval_train.config import Section

if TYPE_CHECKING:
    from torch import Tensor


Share = Annotated[float, Field(gt=0, le=1)]


class Augment(Section):
    """Random rotation, crop, flip, colours and erasing, in this order; a value of 0 leaves an operation out."""

    crop_scale: tuple[Share, Share] = (0.7, 1.0)
    """Least and largest share of the area that the random crop keeps."""
    crop_ratio: tuple[float, float] = (0.8, 1.25)
    """Least and largest width over height of the crop."""
    rotate_degrees: float = Field(default=0.0, ge=0, le=180)
    """Largest rotation either way."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of a left-right flip; leave it 0 where text or handedness tells classes apart."""
    jitter: float = Field(default=0.2, ge=0, le=1)
    """Largest relative change of brightness, contrast and saturation."""
    hue: float = Field(default=0.02, ge=0, le=0.5)
    """Largest change of hue, in turns."""
    grey: float = Field(default=0.0, ge=0, le=1)
    """Probability that all colour is taken away."""
    erase: float = Field(default=0.0, ge=0, le=1)
    """Probability that a random rectangle is blanked."""

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _in_order(cls, pair: tuple[float, float]) -> tuple[float, float]:
        if not 0 < pair[0] <= pair[1]:
            raise ValueError(f"{list(pair)} is no range; the first value must be positive and not above the second")
        return pair

    def apply(self, image_CHW: Tensor, image_px: int, *, seed: int) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, image_px, image_px), drawn from `seed`; the global generator is left alone."""
        import torch
        from torchvision.transforms import v2

        bicubic = v2.InterpolationMode.BICUBIC
        steps: list[torch.nn.Module] = []
        if self.rotate_degrees:
            bilinear = v2.InterpolationMode.BILINEAR
            steps.append(v2.RandomRotation(self.rotate_degrees, interpolation=bilinear, fill=127))
        size, scale, ratio = (image_px, image_px), self.crop_scale, self.crop_ratio
        steps.append(v2.RandomResizedCrop(size, scale=scale, ratio=ratio, interpolation=bicubic, antialias=True))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip(self.flip))
        if self.jitter or self.hue:
            steps.append(v2.ColorJitter(self.jitter, self.jitter, self.jitter, self.hue))
        if self.grey:
            steps.append(v2.RandomGrayscale(self.grey))
        if self.erase:
            steps.append(v2.RandomErasing(self.erase, value=127))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for step in steps:
                image_CHW = step(image_CHW)
        return image_CHW
