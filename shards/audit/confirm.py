"""Whether two pictures with similar hashes really are the same picture, give or take an edit.

A hash cannot tell the flag of Vietnam from that of Kyrgyzstan. So both pictures are read again as 64 x 64 pixels, the
second is laid over the first (its best affine shift by enhanced correlation: Evangelidis and Psarakis, 2008), its
brightness and contrast are fitted, and what remains is looked at place by place: a copy is alike everywhere, two
drawings of a kind are not.
"""

from __future__ import annotations

import numpy as np

from shards.audit import pixels

SIDE_PX = 64
MOST_LEVELS = 16.0
"""The mean difference that is allowed in the worst window, in grey levels of 0 to 255."""
FULL_CONTRAST = 40.0
"""Standard deviation below which the allowance shrinks: in a dull picture everything is alike."""
WINDOW_PX = 9
BLUR_PX = 1.0
MOST_SHIFT = 0.12
"""Of the side: what a corner may move; more is no small crop."""
LEAST_CONTRAST, MOST_CONTRAST = 0.6, 1.7
LEAST_CORRELATION = 0.7
"""Below this no alignment is tried."""
STEPS, STEP_PRECISION = 20, 1e-3


def read_picture(data: bytes) -> np.ndarray:
    """uint8 of SIDE_PX x SIDE_PX x 3; Unreadable where the image is broken."""
    return pixels.reduce(pixels.decode(data, least_px=SIDE_PX, is_grey=False), SIDE_PX)


def are_alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether the rest of the difference is within the allowance."""
    return difference(one, other) <= MOST_LEVELS


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Grey levels in the worst window, as of a picture of full contrast; infinite where the two have little in common."""
    plain = rest(one, other)
    if plain <= MOST_LEVELS or correlation(one, other) < LEAST_CORRELATION:
        return plain
    laid_over = align(one, other)
    return plain if laid_over is None else min(plain, rest(one, laid_over))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of the colours of all pixels; 0 where one picture is blank."""
    deviations = one.std() * other.std()
    products = (one - one.mean(dtype=np.float32)) * (other - other.mean(dtype=np.float32))
    return float(products.mean() / deviations) if deviations else 0.0


def rest(one: np.ndarray, other: np.ndarray) -> float:
    """What remains in the worst window after fitting brightness and contrast."""
    import cv2

    first, second = (cv2.GaussianBlur(picture.astype(np.float32), (0, 0), BLUR_PX) for picture in (one, other))
    first = first - first.mean((0, 1))
    second = second - second.mean((0, 1))
    contrast = float((first * second).sum() / max(float((second * second).sum()), 1e-3))
    left = np.abs(first - float(np.clip(contrast, LEAST_CONTRAST, MOST_CONTRAST)) * second).mean(2)
    edge = WINDOW_PX // 2
    worst = float(cv2.blur(left, (WINDOW_PX, WINDOW_PX))[edge:-edge, edge:-edge].max())
    return worst * max(1.0, FULL_CONTRAST / max(float(first.std()), 1e-3))


def align(one: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """The other picture where it lies best on the one; None where it would have to move far, or lies nowhere."""
    import cv2

    first, second = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (one, other))
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, STEPS, STEP_PRECISION)
    start = np.eye(2, 3, dtype=np.float32)
    try:
        _, found = cv2.findTransformECC(first, second, start, cv2.MOTION_AFFINE, criteria)
    except cv2.error:  # it did not converge
        return None
    corners = np.array([[0, SIDE_PX, 0, SIDE_PX], [0, 0, SIDE_PX, SIDE_PX], [1, 1, 1, 1]], np.float32)
    if np.abs(found @ corners - corners[:2]).max() > MOST_SHIFT * SIDE_PX:
        return None
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    shape = (SIDE_PX, SIDE_PX)
    return np.asarray(cv2.warpAffine(other, found, shape, flags=flags, borderMode=cv2.BORDER_REPLICATE))
