"""The operations that take more than one number: each with its probability and its strengths."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from retrieval_train.config import Section

Share = Annotated[float, Field(gt=0, le=1)]
Chance = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Fill = Literal["black", "grey", "white", "noise"]
Name = Literal[
    "flip",
    "affine",
    "perspective",
    "elastic",
    "jitter",
    "hsv_shift",
    "rgb_shift",
    "grey",
    "clahe",
    "sharpen",
    "emboss",
    "rain",
    "noise",
    "blur",
    "motion",
    "jpeg",
]


def check_range(pair: tuple[float, float]) -> tuple[float, float]:
    if not pair[0] <= pair[1]:
        raise ValueError(f"{list(pair)} is no range; the first value must not be above the second")
    return pair


class Operation(Section):
    """What every operation has."""

    p: Chance = 1.0
    """Probability; within a group of one_of, the weight."""


class Perspective(Operation):
    """The corners move, each on its own."""

    strength: float = Field(default=0.1, gt=0, lt=0.5)
    """Largest move of a corner, as a share of the side."""


class Elastic(Operation):
    """Neighbouring pixels are pulled the same way, distant ones another."""

    strength: float = Field(default=0.02, gt=0, lt=0.5)
    """Standard deviation of the moves, as a share of the side."""
    smooth: float = Field(default=0.06, gt=0, le=0.5)
    """How far away neighbours are: standard deviation of a Gaussian, as a share of the side."""


class HsvShift(Operation):
    """Shifts in the HSV space; jitter's hue and saturation are relative changes."""

    hue: float = Field(default=0.0, ge=0, le=0.5)
    """Largest shift of the hue, in turns."""
    saturation: float = Field(default=0.0, ge=0, le=255)
    """Largest shift of the saturation, of 255."""
    value: float = Field(default=0.0, ge=0, le=255)
    """Largest shift of the value, of 255."""


class RgbShift(Operation):
    """Red, green and blue are shifted, each on its own."""

    levels: float = Field(default=10.0, gt=0, le=255)
    """Largest shift, of 255."""


class Clahe(Operation):
    """The lightness's histogram is equalised in 8 x 8 tiles (contrast-limited adaptive histogram equalisation)."""

    clip: float = Field(default=2.0, ge=1)
    """Limit of the contrast's gain."""


class Mix(Operation):
    """A filtered image is mixed with the image itself."""

    share: tuple[Share, Share] = (0.2, 0.5)
    """Least and largest share of the filtered one."""

    _in_order = field_validator("share")(check_range)


class Blur(Operation):
    """Gaussian blur."""

    sigma: tuple[Positive, Positive] = (0.1, 2.0)
    """Least and largest standard deviation, in pixels of the network's square."""

    _in_order = field_validator("sigma")(check_range)


class Motion(Operation):
    """The image is smeared along a line of any direction."""

    length: tuple[Positive, Positive] = (3.0, 10.0)
    """Least and largest length of the line, in pixels of the network's square."""

    _in_order = field_validator("length")(check_range)


class Noise(Operation):
    """Independent Gaussian noise on every pixel and colour."""

    std: tuple[Positive, Positive] = (3.0, 10.0)
    """Least and largest standard deviation, of 255."""

    _in_order = field_validator("std")(check_range)


class Rain(Operation):
    """Thin bright streaks, all in one direction, on a darker image."""

    density: float = Field(default=2.0, gt=0, le=20)
    """Streaks for every 1,000 pixels."""
    length: float = Field(default=0.09, gt=0, le=1)
    """Of a streak, as a share of the side."""
    brightness: float = Field(default=0.7, gt=0, le=1)
    """What is left of the light."""


class Jpeg(Operation):
    """Compressed and decoded again."""

    quality: tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]] = (40, 95)
    """Least and largest quality."""

    _in_order = field_validator("quality")(check_range)


class RandAugment(Section):
    """Cubuk et al., 2020: n of 14 operations, drawn with repetition, all of one magnitude."""

    n: int = Field(default=2, ge=1, le=14)
    """How many operations."""
    magnitude: int = Field(default=9, ge=0, le=30)
    """Their strength, of 30."""


class OneOf(Section):
    """Of several operations at most one is applied to an image."""

    p: Chance = 0.5
    """Probability that one is applied."""
    among: tuple[Name, ...] = Field(min_length=2)
    """The operations; each is drawn in proportion to its own p, and one that is left out never."""
