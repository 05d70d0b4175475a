"""No loader: one process decodes, crops and resizes bytes that lie in its memory, again and again.

What nobody can do without: simplejpeg at the DCT scale that is just large enough, torch's uint8 bicubic with
antialiasing on the crop. Images in other formats go through Pillow.
"""

from __future__ import annotations

import io
from itertools import cycle
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from jobs.peers.task import CROP_RATIO, CROP_SCALE, Stream, Task


def open_stream(task: Task) -> Stream:
    for image in cycle(read_all(task)):
        crop_and_resize(decode_scaled(image, task.image_px), task.image_px)
        yield 1


def read_all(task: Task) -> list[bytes]:
    """The bytes of every image."""
    return [path.read_bytes() for path in sorted(Path(task.files).rglob("*")) if path.is_file()]


def decode_scaled(image: bytes, image_px: int) -> Tensor:
    """uint8 (3, H, W) over (H, W, 3) memory, both sides at least `image_px` where the image has them."""
    if image.startswith(b"\xff\xd8"):
        try:
            height, width = simplejpeg.decode_jpeg_header(image)[:2]
            # other fractions than these cost more than they save
            factor = next((factor for factor in (8, 4, 2) if min(height, width) // factor >= image_px), 1)
            bounds = {"min_height": -(-height // factor), "min_width": -(-width // factor)}
            return torch.from_numpy(simplejpeg.decode_jpeg(image, "RGB", **bounds)).permute(2, 0, 1)
        except ValueError:  # CMYK
            pass
    return torch.from_numpy(np.array(Image.open(io.BytesIO(image)).convert("RGB"))).permute(2, 0, 1)


def crop_and_resize(image_CHW: Tensor, image_px: int) -> Tensor:
    """A random crop as uint8 (3, image_px, image_px)."""
    top, left, height, width = RandomResizedCrop.get_params(image_CHW, list(CROP_SCALE), list(CROP_RATIO))
    crop_1CHW = image_CHW[None, :, top : top + height, left : left + width]
    size = (image_px, image_px)
    return torch.nn.functional.interpolate(crop_1CHW, size, mode="bicubic", antialias=True)[0]
