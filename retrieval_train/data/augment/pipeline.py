"""The operations of an Augment, one after another, on one image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from retrieval_train.data.augment import colour, geometry, texture
from retrieval_train.data.augment.draws import Draws
from retrieval_train.data.view import View, resize

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.data.augment.augment import Augment

COLOURS = {"jitter", "hsv_shift", "rgb_shift", "grey"}
LOCAL = {"clahe", "sharpen", "emboss", "rain", "noise", "blur", "motion", "jpeg"}


def augmented(augment: Augment, image_CHW: Tensor, image_px: int, *, seed: int, view: View | None) -> Tensor:
    """uint8 (3, H, W) -> uint8 (3, image_px, image_px)."""
    draws = Draws(seed)
    chosen = choose(augment, draws)
    square_CHW = _square(augment, image_CHW, image_px, draws, chosen, view)
    if "flip" in chosen:
        square_CHW = square_CHW.flip(-1)
    is_ready = not (chosen & (COLOURS | LOCAL) or "elastic" in chosen or augment.randaugment or augment.erase)
    if is_ready:
        return square_CHW
    pixels_HWC = np.ascontiguousarray(square_CHW.permute(1, 2, 0).numpy())
    if augment.elastic and "elastic" in chosen:
        stream, bent = draws.stream("elastic"), augment.elastic
        pixels_HWC = geometry.bend(pixels_HWC, stream, strength=bent.strength, smooth=bent.smooth)
    if augment.randaugment:
        from retrieval_train.data.augment.randaugment import randaugment

        stream, some = draws.stream("randaugment"), augment.randaugment
        pixels_HWC = randaugment(pixels_HWC, stream, n=some.n, magnitude=some.magnitude)
    if chosen & COLOURS:
        pixels_HWC = colour.recolour(pixels_HWC, draw_colours(augment, draws, chosen))
    if chosen & LOCAL:
        pixels_HWC = _changed_locally(augment, pixels_HWC, draws, chosen)
    if augment.erase:
        pixels_HWC = _erased(augment, pixels_HWC, draws)
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


def draw_crop(augment: Augment, height: int, width: int, *, seed: int) -> geometry.Box:
    """What an image of this size keeps; all of it without a random crop."""
    if augment.crop_scale is None:
        return geometry.Box(0, 0, height, width)
    stream = Draws(seed).stream("crop")
    return geometry.draw_box(stream, height, width, scale=augment.crop_scale, ratio=augment.crop_ratio)


def choose(augment: Augment, draws: Draws) -> set[str]:
    """The names of the operations that this image gets."""
    chances = augment.chances()
    if not chances:
        return set()
    chosen = set()
    for number, group in enumerate(augment.one_of):
        weights: dict[str, float] = {name: chances.pop(name) for name in group.among if name in chances}
        name = f"one_of {number}"
        if weights and draws.happens(name, group.p):
            chosen.add(draws.choice(name, weights))
    return chosen | {name for name, p in chances.items() if draws.happens(name, p)}


def draw_colours(augment: Augment, draws: Draws, chosen: set[str]) -> colour.Colours:
    """What happens to the colours of this image."""
    drawn = colour.Colours(is_grey="grey" in chosen)
    if "jitter" in chosen:
        stream = draws.stream("jitter")
        brightness, contrast, saturation = (stream.around(1, most) for most in augment.jitters)
        drawn = drawn._replace(brightness=brightness, contrast=contrast, saturation=saturation)
        drawn = drawn._replace(hue=stream.around(0, augment.hue))
    if augment.hsv_shift and "hsv_shift" in chosen:
        stream, hsv = draws.stream("hsv_shift"), augment.hsv_shift
        hue, saturation, value = (stream.around(0, most) for most in (hsv.hue, hsv.saturation, hsv.value))
        drawn = drawn._replace(hue=drawn.hue + hue, hsv_saturation=saturation, hsv_value=value)
    if augment.rgb_shift and "rgb_shift" in chosen:
        stream, most = draws.stream("rgb_shift"), augment.rgb_shift.levels
        red, green, blue = (stream.around(0, most) for _ in range(3))
        drawn = drawn._replace(shift=(red, green, blue))
    return drawn


def _square(
    augment: Augment, image_CHW: Tensor, image_px: int, draws: Draws, chosen: set[str], view: View | None
) -> Tensor:
    """Crop and resize, on the way turned as drawn."""
    height, width = image_CHW.shape[1:]
    box = draw_crop(augment, height, width, seed=draws.seed)
    if "affine" in chosen or "perspective" in chosen:
        source = _source(augment, box, draws, chosen)
        pixels_HWC = np.ascontiguousarray(image_CHW.permute(1, 2, 0).numpy())
        image_CHW = torch.from_numpy(geometry.cut_out(pixels_HWC, box, source, augment.border)).permute(2, 0, 1)
    elif augment.crop_scale:
        image_CHW = image_CHW[:, box.top : box.top + box.height, box.left : box.left + box.width]
    return resize(image_CHW, image_px, image_px) if augment.crop_scale else (view or View()).apply(image_CHW, image_px)


def _source(augment: Augment, box: geometry.Box, draws: Draws, chosen: set[str]) -> np.ndarray:
    """(3, 3): a pixel of the box -> where it comes from in the box."""
    source = np.eye(3)
    if "affine" in chosen:
        stream = draws.stream("affine")
        degrees, shift, zoom, shear = augment.rotate_degrees, augment.shift, augment.zoom, augment.shear
        source = geometry.draw_affine(stream, box, degrees=degrees, shift=shift, zoom=zoom, shear=shear)
    if augment.perspective and "perspective" in chosen:
        stream = draws.stream("perspective")
        source = source @ geometry.draw_perspective(stream, box, strength=augment.perspective.strength)
    return source


def _changed_locally(augment: Augment, pixels_HWC: np.ndarray, draws: Draws, chosen: set[str]) -> np.ndarray:
    if augment.clahe and "clahe" in chosen:
        pixels_HWC = texture.equalise(pixels_HWC, clip=augment.clahe.clip)
    for name, mix, kernel_33 in (
        ("sharpen", augment.sharpen, texture.SHARP_33),
        ("emboss", augment.emboss, texture.EMBOSSED_33),
    ):
        if mix and name in chosen:
            pixels_HWC = texture.mix_filtered(pixels_HWC, kernel_33, share=draws.stream(name).within(mix.share))
    if augment.rain and "rain" in chosen:
        stream, wet = draws.stream("rain"), augment.rain
        options = {"density": wet.density, "length": wet.length, "brightness": wet.brightness}
        pixels_HWC = texture.rain(pixels_HWC, stream, **options)
    if augment.noise and "noise" in chosen:
        stream = draws.stream("noise")
        pixels_HWC = texture.add_noise(pixels_HWC, stream, std=stream.within(augment.noise.std))
    if augment.blur and "blur" in chosen:
        pixels_HWC = texture.blur(pixels_HWC, sigma=draws.stream("blur").within(augment.blur.sigma))
    if augment.motion and "motion" in chosen:
        stream = draws.stream("motion")
        pixels_HWC = texture.smear(pixels_HWC, stream, length=stream.within(augment.motion.length))
    if augment.jpeg and "jpeg" in chosen:
        low, high = augment.jpeg.quality
        quality = low + draws.stream("jpeg").below(high - low + 1)
        pixels_HWC = texture.compress(pixels_HWC, quality=quality)
    return pixels_HWC


def _erased(augment: Augment, pixels_HWC: np.ndarray, draws: Draws) -> np.ndarray:
    for number, fill in enumerate(augment.erase_with):
        name = f"erase {number}"
        if draws.happens(name, augment.erase):
            scale, ratio = augment.erase_scale, augment.erase_ratio
            pixels_HWC = texture.erase(pixels_HWC, draws.stream(name), scale=scale, ratio=ratio, fill=fill)
    return pixels_HWC
