"""A histogram as places on paper: which bins, how high, where the ticks stand. page.html draws it as SVG."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 40, 350, 10, 150
"""The frame that the bars stand in; labels lie outside it."""
MOST_BINS, LEAST_BINS = 30, 8
MAX_BAR = 36
"""Few bins are drawn as bars with air between them, not as slabs."""
LEAST_RATIO = 4
"""Where the largest value is fewer times the smallest, a log axis has nothing to say and the axis is linear."""


class Bar(NamedTuple):
    """One bin: left, top, width and height in the drawing, and what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    text: str


class Tick(NamedTuple):
    """A place on an axis, and its label."""

    at: float
    text: str


class Histogram(NamedTuple):
    """A drawing of WIDTH x HEIGHT."""

    bars: list[Bar]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def draw_histogram(values: np.ndarray, *, log: bool) -> Histogram:
    """Of at least one value, all finite and with `log` all above 0.

    Whole numbers get bins of whole numbers, so that no bin is empty only because no whole number lies in it.
    """
    assert len(values), "nothing to draw"
    low, high = float(values.min()), float(values.max())
    is_whole = bool(np.all(values == np.round(values)))
    is_log = log and high >= LEAST_RATIO * low
    num_bins = min(max(round(2 * math.sqrt(len(values))), LEAST_BINS), MOST_BINS)
    edges = (log_edges if is_log else linear_edges)(low, high, num_bins, is_whole=is_whole)
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]  # an edge may be off by a rounding error
    scale = np.log(edges) if is_log else edges

    def place(value: float) -> float:
        share = ((math.log(value) if is_log else value) - scale[0]) / (scale[-1] - scale[0])
        return round(float(LEFT + share * (RIGHT - LEFT)), 1)

    y_ticks = linear_ticks(0, int(counts.max()), least_step=1)
    top = max(int(counts.max()), y_ticks[-1])
    bars = []
    for left, right, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True):
        height = max(count / top * (BOTTOM - TOP), 1.5)  # one image among thousands is still seen
        text = f"{bin_name(left, right, is_whole=is_whole)}: {count:,}"
        if count:
            width = min(max(place(right) - place(left) - 1, 1), MAX_BAR)
            x = (place(left) + place(right) - width) / 2
            bars.append(Bar(round(x, 1), round(BOTTOM - height, 1), round(width, 1), round(height, 1), text))
    span = (low, high) if is_whole else (edges[0], edges[-1])  # no tick at a half that no value has
    ticks = log_ticks(*span) if is_log else linear_ticks(*span, least_step=1 if is_whole else 0)
    return Histogram(
        bars,
        [Tick(place(tick), short_number(tick)) for tick in ticks],
        [Tick(round(BOTTOM - tick / top * (BOTTOM - TOP), 1), short_number(tick)) for tick in y_ticks],
    )


def linear_edges(low: float, high: float, num_bins: int, *, is_whole: bool) -> np.ndarray:
    """Round numbers around all values; halves between whole numbers."""
    step = round_step((high - low) / num_bins, least=1 if is_whole else 0)
    first, last = math.floor(low / step), math.floor(high / step) + 1
    edges: np.ndarray = np.arange(first, last + 1) * step
    return edges - 0.5 if is_whole else edges


def log_edges(low: float, high: float, num_bins: int, *, is_whole: bool) -> np.ndarray:
    """Equal ratios from the smallest to the largest value; of whole numbers never fewer in a bin than in the one before."""
    if not is_whole:
        return np.geomspace(low, high, num_bins + 1)
    ratio = ((high + 1) / low) ** (1 / num_bins)
    edges, width = [low], 1
    while edges[-1] <= high:
        width = max(width, round(edges[-1] * (ratio - 1)))
        edges.append(edges[-1] + width)
    return np.array(edges) - 0.5


def linear_ticks(low: float, high: float, *, least_step: float = 0, num: int = 5) -> list[float]:
    """About `num` round numbers from low to high."""
    step = round_step((high - low) / num, least=least_step)
    return [tick * step for tick in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … from low to high; only powers of ten where that is enough."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return ticks if len(ticks) <= 7 else [tick for tick in ticks if math.log10(tick).is_integer()]


def round_step(least_span: float, *, least: float = 0) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below either; 1 where both are 0."""
    span = max(least_span, least)
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span))
    return next((digit * power for digit in (1, 2, 5) if digit * power >= span * (1 - 1e-9)), 10 * power)


def bin_name(left: float, right: float, *, is_whole: bool) -> str:
    """`7`, `8 to 11` for whole numbers, else `0.5 to 0.6`."""
    if not is_whole:
        return f"{short_number(left)} to {short_number(right)}"
    low, high = math.ceil(left), math.floor(right)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def short_number(value: float) -> str:
    """`0.25`, `800`, `20k`, `1.5M`: for the narrow places of a chart."""
    for power, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= power:
            return f"{value / (1e3 if letter == 'k' else power):.4g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
