"""What is random about a training image. Every draw follows from one seed, whatever worker or rank makes it.

The order is fixed: crop with rotation, shear and perspective in one step, resize, flip, elastic, RandAugment, colours,
local contrast, rain and noise and blur, JPEG, erasing.

Legend: C colours, H x W pixels of the original, then of the network's square.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from retrieval_train.config import Section
from retrieval_train.data.augment.operations import (
    Blur,
    Chance,
    Clahe,
    Elastic,
    Fill,
    HsvShift,
    Jpeg,
    Mix,
    Motion,
    Noise,
    OneOf,
    Operation,
    Perspective,
    Positive,
    Rain,
    RandAugment,
    RgbShift,
    Share,
    check_range,
)
from retrieval_train.data.augment.presets import PRESETS, resolve
from retrieval_train.data.view import View

if TYPE_CHECKING:
    from torch import Tensor

Amount = Annotated[float, Field(ge=0, le=1)]


class Augment(Section):
    """A value of 0 or null leaves an operation out. A preset gives values to all fields; those given beside it win."""

    preset: str | None = None
    """The augmentation of a published system, by name; none: nothing is random."""
    sharpness: float = Field(default=1.25, ge=0.25, le=8)
    """A JPEG is decoded to a fraction of its size that leaves at least this many pixels for each that the crop ends up
    with, along a side. 1.25 differs by 0.5 grey levels from a full decode, 2 by 0.1 and is slower."""

    # where the pixels come from
    view: View | None = None
    """How an image becomes the network's square where crop_scale is null; null: as in evaluation."""
    crop_scale: tuple[Share, Share] | None = (0.7, 1.0)
    """Least and largest share of the area that the random crop keeps; null: no random crop."""
    crop_ratio: tuple[Positive, Positive] = (0.8, 1.25)
    """Least and largest width over height of the crop."""
    flip: Chance = 0.0
    """Probability of a left-right flip; leave it 0 where text or handedness tells classes apart."""
    rotate_degrees: float = Field(default=0.0, ge=0, le=180)
    """Largest rotation either way."""
    shift: Amount = 0.0
    """Largest shift either way, as a share of the side."""
    zoom: float = Field(default=0.0, ge=0, lt=1)
    """Largest relative change of the size of what is seen."""
    shear: Amount = 0.0
    """Largest slant either way: how far a row moves for each row above it."""
    affine_p: Chance = 1.0
    """Probability of rotation, shift, zoom and shear together."""
    border: Literal["grey", "black", "white", "reflect"] = "grey"
    """What is seen beyond the image's edge where it is turned or moved."""
    perspective: Perspective | None = None
    """Moves the corners."""
    elastic: Elastic | None = None
    """Bends the image."""
    randaugment: RandAugment | None = None
    """A few operations drawn from many."""

    # colours
    jitter: Amount | tuple[Amount, Amount, Amount] = 0.2
    """Largest relative change of brightness, contrast and saturation: one number for all, or one for each."""
    hue: float = Field(default=0.02, ge=0, le=0.5)
    """Largest change of hue, in turns."""
    jitter_p: Chance = 1.0
    """Probability of jitter and hue together."""
    hsv_shift: HsvShift | None = None
    """Shifts hue, saturation and value."""
    rgb_shift: RgbShift | None = None
    """Shifts red, green and blue."""
    grey: Chance = 0.0
    """Probability that all colour is taken away."""

    # local changes
    clahe: Clahe | None = None
    """Equalises the contrast of each part of the image."""
    sharpen: Mix | None = None
    """Mixes with a sharpened image."""
    emboss: Mix | None = None
    """Mixes with an embossed image."""
    rain: Rain | None = None
    """Rain."""
    noise: Noise | None = None
    """Gaussian noise."""
    blur: Blur | None = None
    """Gaussian blur."""
    motion: Motion | None = None
    """Motion blur."""
    jpeg: Jpeg | None = None
    """JPEG's own noise."""

    # rectangles
    erase: Chance = 0.0
    """Probability that a random rectangle is blanked; each has its own draw."""
    erase_with: tuple[Fill, ...] = ("grey",)
    """What each rectangle is filled with: as many rectangles as there are values."""
    erase_scale: tuple[Share, Share] = (0.02, 0.33)
    """Least and largest share of the area that a rectangle takes."""
    erase_ratio: tuple[Positive, Positive] = (0.3, 3.3)
    """Least and largest width over height of a rectangle."""

    one_of: tuple[OneOf, ...] = ()
    """Groups of operations of which an image gets one at most."""

    @model_validator(mode="before")
    @classmethod
    def _preset_below(cls, values: Any) -> Any:
        is_known = isinstance(values, dict) and values.get("preset") in PRESETS
        return resolve(values["preset"], values) if is_known else values

    @field_validator("preset")
    @classmethod
    def _is_known(cls, preset: str | None) -> str | None:
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"'{preset}' is unknown; there are: {', '.join(PRESETS)}")
        return preset

    @field_validator("crop_scale", "crop_ratio", "erase_scale", "erase_ratio")
    @classmethod
    def _in_order(cls, pair: tuple[float, float] | None) -> tuple[float, float] | None:
        return pair and check_range(pair)

    @field_validator("one_of")
    @classmethod
    def _once(cls, groups: tuple[OneOf, ...]) -> tuple[OneOf, ...]:
        names = [name for group in groups for name in group.among]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} named more than once; an operation belongs to one group at most")
        return groups

    @property
    def jitters(self) -> tuple[float, float, float]:
        """Of brightness, contrast and saturation."""
        return self.jitter if isinstance(self.jitter, tuple) else (self.jitter,) * 3

    @property
    def _least_share(self) -> float:
        """Shorter side of the smallest crop over the image's."""
        assert self.crop_scale is not None, "asked where there is a random crop"
        return math.sqrt(self.crop_scale[0] * min(self.crop_ratio[0], 1 / self.crop_ratio[1], 1.0))

    def min_side(self, image_px: int, *, view: View | None = None) -> int:
        """How many pixels the shorter side should have when an image is decoded for this, whatever is drawn.

        For an image that is decoded for one seed alone, `min_side_for` asks for less.
        """
        if self.crop_scale is None:
            side: float = (self.view or view or View()).resized_px(image_px)
        else:
            side = image_px / self._least_share
        return math.ceil(self.sharpness * side * (1 + self.zoom))

    def min_side_for(self, image_px: int, *, seed: int, view: View | None = None) -> int | Callable[[int, int], int]:
        """The same for one seed: where crops differ much, a function of the image's height and width (see `decode`)."""
        if self.crop_scale is None or self._least_share > 0.9:  # not worth drawing the crop twice
            return self.min_side(image_px, view=view)
        from retrieval_train.data.augment.pipeline import draw_crop

        least = self.sharpness * image_px

        def asked(height: int, width: int) -> int:
            if min(height, width) < 2 * least:  # too small to be scaled, whatever is drawn
                return math.ceil(least)
            box = draw_crop(self, height, width, seed=seed)
            share = min(box.height, box.width) / min(height, width)
            return math.ceil(least / share * (1 + self.zoom))

        return asked

    def apply(self, image_CHW: Tensor, image_px: int, *, seed: int, view: View | None = None) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, image_px, image_px), in memory (H, W, 3); follows from the arguments alone.

        `view` is the evaluation's, for an augmentation without a random crop.
        """
        from retrieval_train.data.augment.pipeline import augmented

        return augmented(self, image_CHW, image_px, seed=seed, view=self.view or view)

    def chances(self) -> dict[str, float]:
        """Operation -> its probability, or its weight within a group; those that are left out are not in it."""
        moves = self.rotate_degrees or self.shift or self.zoom or self.shear
        plain = {
            "flip": self.flip,
            "affine": self.affine_p if moves else 0.0,
            "jitter": self.jitter_p if any(self.jitters) or self.hue else 0.0,
            "grey": self.grey,
        }
        sections = {name: value.p for name, value in self if isinstance(value, Operation)}
        return {name: p for name, p in {**plain, **sections}.items() if p > 0}
