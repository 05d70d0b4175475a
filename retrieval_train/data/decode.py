"""Image bytes -> uint8 RGB tensor: rotated as EXIF says, transparency flattened on white."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def decode(image: bytes, *, key: str) -> Tensor:
    """uint8 (3, H, W). Raises ValueError that names the sample when the bytes are no image."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return torch.from_numpy(np.array(_rgb(ImageOps.exif_transpose(opened)))).permute(2, 0, 1)
    except Exception as error:  # Pillow's parsers raise struct.error, zlib.error, IndexError ... for broken files
        raise ValueError(f"'{key}' does not decode ({error}); run `shards check` on its set") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # convert() would clip 16 bits at 255: all white
        values = np.asarray(image, np.float64)
        low, high = values.min(), max(values.max(), values.min() + 1)
        return Image.fromarray(((values - low) / (high - low) * 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
