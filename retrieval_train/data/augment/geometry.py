"""Where the pixels of an augmented image lie in the original: a crop's box, and a map for what is turned or bent.

Everything that moves pixels is one map from the crop's window to the original, so that pixels are interpolated once before
they are resized, and none outside the window are computed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np

from retrieval_train.data.augment.draws import Stream

cv2.setNumThreads(1)  # ranks and workers share the cores

BORDERS = {
    "reflect": (cv2.BORDER_REFLECT_101, 0),
    "black": (cv2.BORDER_CONSTANT, 0),
    "grey": (cv2.BORDER_CONSTANT, 127),
    "white": (cv2.BORDER_CONSTANT, 255),
}


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_box(stream: Stream, height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float]) -> Box:
    """A random resized crop's box, as torchvision defines it: 10 tries, then the largest central one of a fitting ratio."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    least = height * width * scale[0]
    can_fit = least * ratio[0] < (width + 1) ** 2 and least / ratio[1] < (height + 1) ** 2
    for _ in range(10 if can_fit else 0):
        area = height * width * stream.within(scale)
        aspect = math.exp(stream.within((low, high)))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = stream.below(height - box_height + 1)
            left = stream.below(width - box_width + 1)
            return Box(top, left, box_height, box_width)
    box_width = min(width, max(round(height * ratio[1]), 1))
    box_height = min(height, max(round(width / ratio[0]), 1))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def draw_affine(stream: Stream, box: Box, *, degrees: float, shift: float, zoom: float, shear: float) -> np.ndarray:
    """(3, 3): a pixel of the box -> where it comes from in the box, turned around the box's middle."""
    angle = math.radians(stream.around(0, degrees))
    across, down = (stream.around(0, shift) * side for side in (box.width, box.height))
    size = 1 / stream.around(1, zoom)
    slant = stream.around(0, shear)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = turn @ np.array([[1, slant], [0, 1]]) * size
    middle = np.array([(box.width - 1) / 2, (box.height - 1) / 2])
    out = np.eye(3)
    out[:2, :2] = linear
    out[:2, 2] = middle - linear @ middle + [across, down]
    return out


def draw_perspective(stream: Stream, box: Box, *, strength: float) -> np.ndarray:
    """(3, 3): a pixel of the box -> where it comes from, when each corner moves by up to `strength` of the sides."""
    corners = np.array([[0, 0], [box.width, 0], [box.width, box.height], [0, box.height]], np.float32)
    moves = [
        [stream.around(0, strength) * box.width, stream.around(0, strength) * box.height] for _ in range(len(corners))
    ]
    out: np.ndarray = cv2.getPerspectiveTransform(corners, corners + np.array(moves, np.float32))
    return out


def cut_out(pixels_HWC: np.ndarray, box: Box, source: np.ndarray, border: str) -> np.ndarray:
    """The box's pixels, each taken from where `source` (3, 3) says it comes from."""
    origin = np.array([[1, 0, box.left], [0, 1, box.top], [0, 0, 1.0]])
    mode, level = BORDERS[border]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    options: dict[str, Any] = {"flags": flags, "borderMode": mode, "borderValue": (level,) * 3}
    size, matrix = (box.width, box.height), origin @ source
    out: np.ndarray
    if np.array_equal(matrix[2], [0, 0, 1]):
        out = cv2.warpAffine(pixels_HWC, matrix[:2], size, **options)
    else:
        out = cv2.warpPerspective(pixels_HWC, matrix, size, **options)
    return out


def bend(pixels_HWC: np.ndarray, stream: Stream, *, strength: float, smooth: float) -> np.ndarray:
    """Elastic deformation: every pixel comes from elsewhere, `strength` sides away on the root mean square."""
    height, width = pixels_HWC.shape[:2]
    side = max(height, width)
    noise_2HW = stream.many().random((2, height, width), dtype=np.float32) - 0.5
    moves = [cv2.GaussianBlur(noise_HW, (0, 0), smooth * side) for noise_HW in noise_2HW]
    across, down = (move * (strength * side / max(float(move.std()), 1e-9)) for move in moves)
    row_H1 = np.arange(height, dtype=np.float32)[:, None]
    column_W = np.arange(width, dtype=np.float32)
    out: np.ndarray = cv2.remap(
        pixels_HWC, column_W + across, row_H1 + down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return out
