"""RandAugment (Cubuk et al., 2020), with the operations and strengths that torchvision gives it. All uint8 (H, W, 3)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from retrieval_train.data.augment.colour import Colours, recolour
from retrieval_train.data.augment.draws import Stream
from retrieval_train.data.augment.geometry import Box, cut_out

MOST = 30  # magnitudes are 0 to 30
MOST_SHIFT = 150 / 331  # of the side; the paper's images had 331 pixels


def _move(pixels_HWC: np.ndarray, kind: str, amount: float) -> np.ndarray:
    height, width = pixels_HWC.shape[:2]
    source = np.eye(3)
    if kind == "rotate":
        angle = np.radians(30 * amount)
        source[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        source[:2, 2] = middle - source[:2, :2] @ middle
    elif kind.startswith("shear"):
        across = kind == "shear_x"
        source[(0, 1) if across else (1, 0)] = 0.3 * amount
    else:
        across = kind == "translate_x"
        source[0 if across else 1, 2] = int(MOST_SHIFT * amount * (width if across else height))
    return cut_out(pixels_HWC, Box(0, 0, height, width), source, "black")


def _colour(pixels_HWC: np.ndarray, kind: str, amount: float) -> np.ndarray:
    factor = 1 + 0.9 * amount
    if kind == "brightness":
        return recolour(pixels_HWC, Colours(brightness=factor))
    if kind == "contrast":
        return recolour(pixels_HWC, Colours(contrast=factor))
    return recolour(pixels_HWC, Colours(saturation=factor))


def _tone(pixels_HWC: np.ndarray, kind: str, amount: float) -> np.ndarray:
    from torchvision.transforms.v2 import functional

    image_CHW = torch.from_numpy(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1)
    if kind == "sharpness":
        image_CHW = functional.adjust_sharpness(image_CHW, 1 + 0.9 * amount)
    elif kind == "posterize":
        image_CHW = functional.posterize(image_CHW, 8 - round(4 * amount))
    elif kind == "solarize":
        image_CHW = functional.solarize(image_CHW, 255 * (1 - amount))
    elif kind == "autocontrast":
        image_CHW = functional.autocontrast(image_CHW)
    else:
        image_CHW = functional.equalize(image_CHW)
    return np.ascontiguousarray(image_CHW.permute(1, 2, 0).numpy())


SIGNED: dict[str, Callable[[np.ndarray, str, float], np.ndarray]] = {
    "shear_x": _move,
    "shear_y": _move,
    "translate_x": _move,
    "translate_y": _move,
    "rotate": _move,
    "brightness": _colour,
    "saturation": _colour,
    "contrast": _colour,
    "sharpness": _tone,
}
"""Operations whose amount, a share of the largest, may be negative."""
UNSIGNED = {"posterize": _tone, "solarize": _tone, "autocontrast": _tone, "equalize": _tone}
NAMES = ("identity", *SIGNED, *UNSIGNED)


def randaugment(pixels_HWC: np.ndarray, stream: Stream, *, n: int, magnitude: int) -> np.ndarray:
    """n operations, one after another."""
    for _ in range(n):
        kind = NAMES[stream.below(len(NAMES))]
        sign = -1 if stream.random() < 0.5 else 1
        pixels_HWC = perform(pixels_HWC, kind, magnitude / MOST * (sign if kind in SIGNED else 1))
    return pixels_HWC


def perform(pixels_HWC: np.ndarray, kind: str, amount: float) -> np.ndarray:
    """One operation; `amount` is between -1 and 1."""
    if kind == "identity":
        return pixels_HWC
    return (SIGNED | UNSIGNED)[kind](pixels_HWC, kind, amount)
