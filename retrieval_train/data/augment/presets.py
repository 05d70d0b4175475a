"""The augmentations of published systems, by name: what differs from an image that nothing random happens to.

Sizes that the originals give in pixels of a large image are in pixels of the network's square here. Where an original
names no probability, its library's default (0.5) stands.
"""

from __future__ import annotations

from typing import Any

NOTHING: dict[str, Any] = {"crop_scale": None, "crop_ratio": [1.0, 1.0], "jitter": 0.0, "hue": 0.0}
"""What the fields' own defaults would do at random, left out."""

USUAL_RATIO = [3 / 4, 4 / 3]
# no such crop fits into a photo of 4:3, and then it is the middle square that is taken, every time
LIGHT_CROP = {"crop_scale": [0.9, 1.0], "crop_ratio": [1.0, 1.0]}
RANDOM_CROP = {"crop_scale": [0.08, 1.0], "crop_ratio": USUAL_RATIO}

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "openai_clip": {"view": {"resize": "shorter", "crop": 1.0}},
    "openclip": LIGHT_CROP,
    "eva": LIGHT_CROP,
    "siglip": {**RANDOM_CROP, "jitter": 0.4},
    "unifex_custom": {**LIGHT_CROP, "flip": 0.5, "jitter": 0.4},
    "imagenet": {**RANDOM_CROP, "flip": 0.5},
    "randaugment": {**RANDOM_CROP, "flip": 0.5, "randaugment": {"n": 2, "magnitude": 9}},
    # retrieval with distractors: the weak and the strong view of its consistency loss
    "ucu_weak": {
        "crop_scale": [0.8, 1.0],
        "crop_ratio": USUAL_RATIO,
        "flip": 0.5,
        "rotate_degrees": 10,
        "border": "black",
        "jitter": 0.1,
        "jitter_p": 0.6,
    },
    "ucu_strong": {
        **RANDOM_CROP,
        "flip": 0.5,
        "rotate_degrees": 10,
        "border": "black",
        "jitter": 0.4,
        "hue": 0.1,
        "grey": 0.3,
        "erase": 0.2,
        "erase_with": ["black", "noise"],
        "erase_scale": [0.02, 0.2],
        "erase_ratio": [0.3, 3.3],
    },
    "ucu_strong_resnet": {
        "crop_scale": [0.2, 1.0],
        "crop_ratio": USUAL_RATIO,
        "rotate_degrees": 15,
        "border": "black",
        "jitter": 0.4,
        "jitter_p": 0.8,
        "blur": {"p": 0.3, "sigma": [0.1, 2.0]},
    },
    # whale identification
    "whales_heavy": {
        "rotate_degrees": 25,
        "shear": 0.2,
        "border": "reflect",
        "perspective": {"p": 0.5, "strength": 0.1},
        "elastic": {"p": 0.5},
        "rain": {"p": 0.5},
        "noise": {"p": 0.5, "std": [3.2, 7.1]},
        "blur": {"p": 0.5, "sigma": [0.8, 3.4]},
        "motion": {"p": 0.5, "length": [3, 10]},
        "rgb_shift": {"p": 1.0, "levels": 10},
        "jitter": [0.3, 0.1, 0.0],
        "hsv_shift": {"p": 1.0, "hue": 20 / 180, "saturation": 20, "value": 20},
        "clahe": {"p": 0.5, "clip": 2.0},
        "sharpen": {"p": 0.5},
        "emboss": {"p": 0.5},
        "one_of": [
            {"p": 0.5, "among": ["rain", "noise", "blur", "motion"]},
            {"p": 0.6, "among": ["rgb_shift", "jitter", "hsv_shift"]},
            {"p": 0.1, "among": ["clahe", "sharpen", "emboss"]},
            {"p": 0.3, "among": ["perspective", "elastic"]},
        ],
        "erase": 0.2,
        "erase_with": ["black"],
        "erase_scale": [0.04, 0.04],
        "erase_ratio": [1.0, 1.0],
    },
    # Google Universal Image Embedding 2022, first and sixth place
    "guiec_first": {
        "flip": 0.5,
        "jpeg": {"p": 0.5, "quality": [99, 100]},
        "shift": 0.2,
        "zoom": 0.2,
        "rotate_degrees": 10,
        "affine_p": 0.7,
        "border": "black",
        "erase": 0.5,
        "erase_with": ["black"],
        "erase_scale": [0.16, 0.16],
        "erase_ratio": [1.0, 1.0],
    },
    "guiec_sixth": {
        "flip": 0.5,
        "jpeg": {"p": 0.5, "quality": [99, 100]},
        "jitter": [0.1, 0.1, 0.0],
        "jitter_p": 0.5,
        "shift": 0.2,
        "zoom": 0.2,
        "rotate_degrees": 30,
        "affine_p": 0.7,
        "border": "black",
        "rgb_shift": {"p": 0.5, "levels": 5},
        "erase": 0.5,
        "erase_with": ["black"],
        "erase_scale": [0.01, 0.01],
        "erase_ratio": [1.0, 1.0],
    },
}


def resolve(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The values of a preset under those that are given; of an operation with several numbers, number by number."""
    return _over({**NOTHING, **PRESETS[name]}, given)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        lower = merged.get(key)
        merged[key] = _over(lower, value) if isinstance(lower, dict) and isinstance(value, dict) else value
    return merged
