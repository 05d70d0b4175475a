"""Colours: hue, saturation and value by the HSV space; all else is one linear map of (red, green, blue), applied once.

Brightness, contrast, saturation, shifts and the loss of colour are each linear up to a constant, so their product is a
3 x 4 matrix. What one after another would clip at 0 and 255 is clipped here at the end only.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

cv2.setNumThreads(1)  # ranks and workers share the cores

LUMA = np.array([0.2989, 0.587, 0.114])  # ITU-R BT.601


class Colours(NamedTuple):
    """What happens to the colours of one image; the defaults leave them as they are."""

    hue: float = 0.0
    """Shift, in turns."""
    hsv_saturation: float = 0.0
    """Shift of HSV's saturation, of 255."""
    hsv_value: float = 0.0
    """Shift of HSV's value, of 255."""
    brightness: float = 1.0
    """Factor."""
    contrast: float = 1.0
    """Factor of the distance from the image's mean grey level."""
    saturation: float = 1.0
    """Factor of the distance from the pixel's own grey level."""
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of red, green and blue, of 255."""
    is_grey: bool = False
    """Whether all colour goes."""


def recolour(pixels_HWC: np.ndarray, colours: Colours) -> np.ndarray:
    """uint8 -> uint8."""
    if colours.hue or colours.hsv_saturation or colours.hsv_value:
        pixels_HWC = shift_hsv(pixels_HWC, colours.hue, colours.hsv_saturation, colours.hsv_value)
    if colours[3:] == Colours()[3:]:
        return pixels_HWC
    mean_3 = np.array(cv2.mean(pixels_HWC)[:3])
    out: np.ndarray = cv2.transform(pixels_HWC, linear_map(colours, mean_3))
    return out


def linear_map(colours: Colours, mean_3: np.ndarray) -> np.ndarray:
    """(3, 4): what everything but the HSV shifts does to (red, green, blue, 1). `mean_3` is the image's mean colour."""
    factor = colours.brightness * colours.contrast
    own = 0.0 if colours.is_grey else factor * colours.saturation
    constant = (1 - colours.contrast) * colours.brightness * float(LUMA @ mean_3)
    matrix = np.empty((3, 4))
    matrix[:, :3] = LUMA * (factor - own)
    matrix[0, 0] += own
    matrix[1, 1] += own
    matrix[2, 2] += own
    shift = np.array(colours.shift)
    matrix[:, 3] = constant + (LUMA @ shift if colours.is_grey else shift)
    return matrix


def shift_hsv(pixels_HWC: np.ndarray, turns: float, saturation: float, value: float) -> np.ndarray:
    """In float32: OpenCV's 8-bit hue has 180 steps, which are up to 4 grey levels apart."""
    rgb_HWC = np.multiply(pixels_HWC, np.float32(1 / 255), dtype=np.float32)
    hsv_HWC = cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2HSV)
    # OpenCV takes a hue of more than 360 degrees for what is left after whole turns, but none below 0
    hsv_HWC = cv2.add(hsv_HWC, (360 * (turns % 1), saturation / 255, value / 255, 0), dst=hsv_HWC)
    if saturation or value:
        np.clip(hsv_HWC[..., 1:], 0, 1, out=hsv_HWC[..., 1:])
    out: np.ndarray = cv2.convertScaleAbs(cv2.cvtColor(hsv_HWC, cv2.COLOR_HSV2RGB), alpha=255)
    return out
