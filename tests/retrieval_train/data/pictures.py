"""Images that tests of decoding and augmentation share: a photo, and what its files look like."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image


def photo(width: int = 320, height: int = 240) -> Image.Image:
    """A real photo: colours, edges, texture."""
    from skimage import data

    return Image.fromarray(data.astronaut()).resize((width, height), Image.Resampling.LANCZOS)


def encode(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def as_tensor(image: Image.Image) -> torch.Tensor:
    """uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def mean_difference(one_CHW: torch.Tensor, other_CHW: torch.Tensor) -> float:
    """In grey levels."""
    return float((one_CHW.float() - other_CHW.float()).abs().mean())
