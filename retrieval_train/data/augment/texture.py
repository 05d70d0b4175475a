"""Local changes: contrast, sharpness, blur, noise, rain, compression and erased rectangles. All uint8 (H, W, 3)."""

from __future__ import annotations

import math

import cv2
import numpy as np
import simplejpeg

from retrieval_train.data.augment.draws import Stream

cv2.setNumThreads(1)  # ranks and workers share the cores

SHARP_33 = np.array([[-1, -1, -1], [-1, 9, -1], [-1, -1, -1]], np.float32)
EMBOSSED_33 = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32)
LEVELS = {"black": 0, "grey": 127, "white": 255}
RAIN_LEVEL = 200
MOST_SLANT = 0.2  # of a streak of rain, sideways over downwards


def equalise(pixels_HWC: np.ndarray, *, clip: float) -> np.ndarray:
    """CLAHE on the lightness of CIELAB."""
    lab_HWC = cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2LAB)
    lab_HWC[..., 0] = cv2.createCLAHE(clip, (8, 8)).apply(np.ascontiguousarray(lab_HWC[..., 0]))
    out: np.ndarray = cv2.cvtColor(lab_HWC, cv2.COLOR_LAB2RGB)
    return out


def mix_filtered(pixels_HWC: np.ndarray, kernel_33: np.ndarray, *, share: float) -> np.ndarray:
    """The image and the filtered image, mixed: SHARP_33 sharpens, EMBOSSED_33 embosses."""
    mixed_33 = share * kernel_33
    mixed_33[1, 1] += 1 - share
    out: np.ndarray = cv2.filter2D(pixels_HWC, -1, mixed_33)
    return out


def blur(pixels_HWC: np.ndarray, *, sigma: float) -> np.ndarray:
    out: np.ndarray = cv2.GaussianBlur(pixels_HWC, (0, 0), sigma)
    return out


def smear(pixels_HWC: np.ndarray, stream: Stream, *, length: float) -> np.ndarray:
    """Motion blur along a line of this length and any direction."""
    half, angle = length / 2, math.pi * stream.random()
    reach = math.ceil(half)
    offset = np.arange(-reach, reach + 1)
    across_KK, down_KK = np.meshgrid(offset, offset)
    along_KK = across_KK * math.cos(angle) + down_KK * math.sin(angle)
    aside_KK = across_KK * math.sin(angle) - down_KK * math.cos(angle)
    # the line is a pixel wide, and what it covers of a pixel falls off linearly
    kernel_KK = np.clip(1 - np.abs(aside_KK), 0, 1) * np.clip(half + 0.5 - np.abs(along_KK), 0, 1)
    out: np.ndarray = cv2.filter2D(pixels_HWC, -1, (kernel_KK / kernel_KK.sum()).astype(np.float32))
    return out


def add_noise(pixels_HWC: np.ndarray, stream: Stream, *, std: float) -> np.ndarray:
    noise_HWC = stream.many().standard_normal(pixels_HWC.shape, dtype=np.float32) * np.float32(std)
    noise_HWC += pixels_HWC
    out: np.ndarray = np.clip(np.rint(noise_HWC), 0, 255).astype(np.uint8)
    return out


def rain(pixels_HWC: np.ndarray, stream: Stream, *, density: float, length: float, brightness: float) -> np.ndarray:
    """Streaks of a pixel's width and one slant; `density` for every 1,000 pixels, `length` as a share of the side."""
    height, width = pixels_HWC.shape[:2]
    drop = max(round(length * max(height, width)), 1)
    slant = round(stream.around(0, MOST_SLANT) * drop)
    count = max(round(density * height * width / 1000), 1)
    start_N2 = (stream.many().random((count, 2)) * [width + drop, height + drop]).astype(np.int32) - drop
    out = np.ascontiguousarray(pixels_HWC).copy()
    ends_N22 = np.stack([start_N2, start_N2 + np.array([slant, drop], np.int32)], axis=1)
    cv2.polylines(out, list(ends_N22), False, (RAIN_LEVEL,) * 3)
    wet: np.ndarray = cv2.convertScaleAbs(cv2.blur(out, (3, 3)), alpha=brightness)
    return wet


def compress(pixels_HWC: np.ndarray, *, quality: int) -> np.ndarray:
    """JPEG with 4:2:0 subsampling, as most cameras and programs write it."""
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels_HWC), quality, "RGB", "420")
    out: np.ndarray = simplejpeg.decode_jpeg(data, "RGB")
    return out


def erase(
    pixels_HWC: np.ndarray, stream: Stream, *, scale: tuple[float, float], ratio: tuple[float, float], fill: str
) -> np.ndarray:
    """A rectangle of this share of the area is filled; an image that no such rectangle fits into stays as it is."""
    height, width = pixels_HWC.shape[:2]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area, aspect = height * width * stream.within(scale), math.exp(stream.within((low, high)))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            top, left = (stream.below(side + 1) for side in (height - tall, width - wide))
            out = pixels_HWC.copy()
            part = out[top : top + tall, left : left + wide]
            part[...] = stream.many().integers(0, 256, part.shape, np.uint8) if fill == "noise" else LEVELS[fill]
            return out
    return pixels_HWC
