"""What most people write: Pillow pixels, torchvision's transforms, float32 normalised image by image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobs.peers.task import CROP_RATIO, CROP_SCALE

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def build_transform(image_px: int) -> Callable[[Any], Any]:
    """Pillow image -> float32 (3, image_px, image_px): the training transform of the open_clip recipe."""
    from torchvision import transforms

    crop = transforms.RandomResizedCrop(
        image_px, scale=CROP_SCALE, ratio=CROP_RATIO, interpolation=transforms.InterpolationMode.BICUBIC
    )
    transform: Callable[[Any], Any] = transforms.Compose(
        [crop, as_rgb, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    return transform


def as_rgb(image: Any) -> Any:
    return image.convert("RGB")
