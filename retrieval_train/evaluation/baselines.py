"""What a number is worth: the scores of chance, and of the pixels themselves.

Shapes: Q queries, H x W pixels, C colours, D dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from retrieval_train.evaluation.metrics import (
    METRICS,
    Scores,
    Truth,
    average_precision,
    mean_by_scope,
    mean_matches,
    recall,
)

if TYPE_CHECKING:
    from PIL import Image

SIDE_PX = 16


def chance(truth: Truth) -> Scores:
    """The exact expectation of every metric if each ranking of the whole index is equally likely."""
    judged_Q = truth.is_judged_Q
    values = {}
    for name, metric in METRICS.items():
        values[name] = np.full(len(judged_Q), np.nan)
        expect = _EXPECTATIONS[metric.value]
        values[name][judged_Q] = expect(truth.num_relevant_Q[judged_Q], num_images=len(truth.index_label_N), k=metric.k)
    return mean_by_scope(values, truth)


def raw_pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    """One image (PIL, or uint8 of shape H, W, 3) -> a vector of 768 float32: how far one gets without a
    model.

    The whole image is squeezed to 16 x 16 RGB (Pillow's BICUBIC, which averages where it shrinks; the aspect
    ratio is lost), flattened, freed of its mean over all 768 numbers and L2-normalised. An image of one
    colour has nothing left to compare: its vector is zero and its score with everything is 0.
    """
    from PIL import Image

    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image: {image.dtype} of shape {image.shape}; give uint8 of shape (height, width, 3)")
        image = Image.fromarray(image)
    small = image.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
    pixel_D = np.asarray(small, np.float64).reshape(-1)
    pixel_D = pixel_D - pixel_D.mean()
    length = np.linalg.norm(pixel_D)
    vector_D: np.ndarray = (pixel_D / length if length > 1e-6 else np.zeros_like(pixel_D)).astype(np.float32)
    return vector_D


def _expected_matches(num_relevant_Q: np.ndarray, *, num_images: int, k: int) -> np.ndarray:
    """Each rank that is read holds a relevant image with probability n / N, whatever k is."""
    value_Q: np.ndarray = num_relevant_Q / num_images
    return value_Q


def _expected_recall(num_relevant_Q: np.ndarray, *, num_images: int, k: int) -> np.ndarray:
    """1 - C(N - n, k) / C(N, k), as a product: the chance that k draws without replacement all miss."""
    drawn = np.arange(min(k, num_images))
    miss_QK = np.maximum(num_images - num_relevant_Q[:, None] - drawn, 0) / (num_images - drawn)
    value_Q: np.ndarray = 1 - miss_QK.prod(axis=1)
    return value_Q


def _expected_average_precision(num_relevant_Q: np.ndarray, *, num_images: int, k: int) -> np.ndarray:
    """Rank j is relevant with probability n / N; then each of the j - 1 ranks before it is with (n - 1) / (N
    - 1).
    """
    rank = np.arange(1, min(k, num_images) + 1)
    others_Q = (num_relevant_Q - 1) / max(num_images - 1, 1)
    precision_QK = (1 + (rank - 1) * others_Q[:, None]) / rank
    value_Q: np.ndarray = (num_relevant_Q / num_images) * precision_QK.sum(axis=1) / np.minimum(num_relevant_Q, k)
    return value_Q


_EXPECTATIONS = {
    mean_matches: _expected_matches,
    recall: _expected_recall,
    average_precision: _expected_average_precision,
}
