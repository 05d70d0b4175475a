"""Each operation against torchvision, or against what its words say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from retrieval_train.data.augment import randaugment, texture
from retrieval_train.data.augment.colour import Colours, recolour
from retrieval_train.data.augment.draws import Stream
from retrieval_train.data.augment.geometry import Box, cut_out, draw_affine
from tests.retrieval_train.data.pictures import photo

PHOTO_HWC = np.array(photo(96, 72))


def as_floats(pixels_HWC: np.ndarray) -> torch.Tensor:
    """(3, H, W) in [0, 1], where torchvision rounds nothing."""
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1).float() / 255


def differences(found_HWC: np.ndarray, expected_CHW: torch.Tensor) -> np.ndarray:
    """In grey levels."""
    expected = expected_CHW.permute(1, 2, 0).numpy() * 255.0
    return np.abs(found_HWC.astype(float) - expected)


@pytest.mark.parametrize("factor", [0.0, 0.6, 0.9, 1.0, 1.1, 1.4])
@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation"])
def test_a_change_of_colour_is_that_of_torchvision(kind: str, factor: float) -> None:
    change: dict[str, Any] = {kind: factor}
    found = recolour(PHOTO_HWC, Colours(**change))
    expected = getattr(functional, f"adjust_{kind}")(as_floats(PHOTO_HWC), factor)
    assert differences(found, expected).max() <= 1.01  # rounding, and the mean grey level is not rounded here


@pytest.mark.parametrize("factors", [(1.4, 0.6, 1.4), (0.6, 1.4, 0.6), (0.8, 1.2, 1.3), (1.2, 1.2, 1.2)])
def test_changes_in_one_step_are_those_one_after_another_where_nothing_is_clipped(
    factors: tuple[float, float, float],
) -> None:
    dim_HWC = (64 + PHOTO_HWC // 4).astype(np.uint8)
    brightness, contrast, saturation = factors
    found = recolour(dim_HWC, Colours(brightness=brightness, contrast=contrast, saturation=saturation))
    expected = functional.adjust_brightness(as_floats(dim_HWC), brightness)
    expected = functional.adjust_saturation(functional.adjust_contrast(expected, contrast), saturation)
    assert expected.min() > 0 and expected.max() < 1
    assert differences(found, expected).max() <= 1.01


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.02, 0.1, 0.25, 0.5])
def test_a_change_of_hue_is_that_of_torchvision(turns: float) -> None:
    found = recolour(PHOTO_HWC, Colours(hue=turns))
    assert differences(found, functional.adjust_hue(as_floats(PHOTO_HWC), turns)).max() <= 1.01


def test_without_colour_an_image_is_its_grey_levels() -> None:
    found = recolour(PHOTO_HWC, Colours(is_grey=True))
    assert differences(found, functional.rgb_to_grayscale(as_floats(PHOTO_HWC), 3)).max() <= 1.01
    assert (found == found[..., :1]).all()
    changed = recolour(PHOTO_HWC, Colours(is_grey=True, saturation=0.3, shift=(9, -9, 4)))
    assert (changed == changed[..., :1]).all()


def test_shifts_are_added() -> None:
    found = recolour(PHOTO_HWC, Colours(shift=(10, -20, 3)))
    assert (found == np.clip(PHOTO_HWC.astype(int) + np.array([10, -20, 3]), 0, 255)).all()
    brighter = recolour(PHOTO_HWC, Colours(hsv_value=20)).max(axis=2)
    assert (brighter == np.minimum(PHOTO_HWC.max(axis=2).astype(int) + 20, 255)).all()


def test_an_identity_cuts_out_the_box_and_half_a_turn_is_two_flips() -> None:
    box = Box(10, 20, 41, 33)
    inside = PHOTO_HWC[10:51, 20:53]
    assert (cut_out(PHOTO_HWC, box, np.eye(3), "black") == inside).all()
    half = np.array([[-1, 0, 32], [0, -1, 40], [0, 0, 1.0]])
    assert (cut_out(PHOTO_HWC, box, half, "black") == inside[::-1, ::-1]).all()


def test_the_middle_stays_where_it_is_however_it_is_turned() -> None:
    box = Box(0, 0, 41, 31)
    for seed in range(20):
        source = draw_affine(Stream(seed), box, degrees=180, shift=0, zoom=0.3, shear=0.3)
        assert np.allclose(source @ [15, 20, 1], [15, 20, 1])
        assert 1 / 1.3**2 - 1e-9 <= np.linalg.det(source) <= 1 / 0.7**2 + 1e-9


def test_a_shift_moves_by_its_share_of_the_side_at_most() -> None:
    box = Box(0, 0, 100, 200)
    moves = np.array([draw_affine(Stream(s), box, degrees=0, shift=0.2, zoom=0, shear=0)[:2, 2] for s in range(300)])
    assert (abs(moves) <= [40, 20]).all() and (abs(moves).max(axis=0) > [38, 19]).all()
    assert (moves.min(axis=0) < [-38, -19]).all()


@pytest.mark.parametrize("name", ["black", "grey", "white", "noise"])
def test_an_erased_rectangle_has_its_size_and_filling(name: str) -> None:
    image = np.full((100, 100, 3), 77, np.uint8)
    for seed in range(20):
        out = texture.erase(image, Stream(seed), scale=(0.1, 0.2), ratio=(0.5, 2.0), fill=name)
        rows, columns = np.nonzero((out != 77).any(axis=2))
        tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 0.09 < tall * wide / 10_000 < 0.21 and 0.45 < wide / tall < 2.2
        inside = out[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert len(np.unique(inside)) == (1 if name != "noise" else 256)
    assert (image == 77).all()


def test_noise_has_its_standard_deviation_and_no_bias() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    noise = texture.add_noise(grey, Stream(1), std=9.0).astype(float) - 128
    assert abs(noise.std() - 9) < 0.1 and abs(noise.mean()) < 0.15


@pytest.mark.parametrize("length", [3.0, 7.5, 20.0])
def test_motion_smears_a_dot_into_a_line_of_its_length(length: float) -> None:
    dot = np.zeros((61, 61, 3), np.uint8)
    dot[30, 30] = 255
    for seed in range(10):
        line = texture.smear(dot, Stream(seed), length=length)[..., 0].astype(float)
        rows, columns = np.nonzero(line)
        across, down = columns - 30, rows - 30
        cover = np.cov(np.stack([across, down]), aweights=line[rows, columns])
        short, long = np.linalg.eigvalsh(cover)
        assert math.sqrt(12 * max(long, 0)) == pytest.approx(length, abs=2)
        assert short < 0.5


def test_filters_leave_a_plain_image_as_it_is() -> None:
    plain = np.full((40, 40, 3), 90, np.uint8)
    for kernel in (texture.SHARP_33, texture.EMBOSSED_33):
        assert abs(texture.mix_filtered(plain, kernel, share=0.5).astype(int) - 90).max() <= 46 * abs(kernel.sum() - 1)
    assert (texture.blur(plain, sigma=2) == 90).all()
    assert abs(texture.compress(plain, quality=50).astype(int) - 90).max() <= 2


SIGNED = {"shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX", "translate_y": "TranslateY"}
SIGNED |= {"rotate": "Rotate", "brightness": "Brightness", "saturation": "Color", "contrast": "Contrast"}
SIGNED |= {"sharpness": "Sharpness"}
UNSIGNED = {"posterize": "Posterize", "solarize": "Solarize", "autocontrast": "AutoContrast", "equalize": "Equalize"}


@pytest.mark.parametrize("kind", [*SIGNED, *UNSIGNED])
@pytest.mark.parametrize("magnitude", [0, 4, 9, 17, 30])
def test_randaugment_does_what_that_of_torchvision_does(kind: str, magnitude: int) -> None:
    theirs = v2.RandAugment(num_magnitude_bins=31, interpolation=v2.InterpolationMode.BILINEAR, fill=0)
    name = {**SIGNED, **UNSIGNED}[kind]
    magnitudes, is_signed = theirs._AUGMENTATION_SPACE[name]
    image_CHW = torch.from_numpy(PHOTO_HWC).permute(2, 0, 1)
    amounts = magnitudes(31, *PHOTO_HWC.shape[:2])
    amount = 0.0 if amounts is None else float(amounts[magnitude])
    assert is_signed == (kind in SIGNED)
    for sign in (1, -1) if is_signed else (1,):
        expected = theirs._apply_image_or_video_transform(
            image_CHW, name, sign * amount, interpolation=theirs.interpolation, fill=theirs._fill
        )
        found = randaugment.perform(PHOTO_HWC, kind, sign * magnitude / 30)
        ours_moves = (
            [found]
            if kind not in ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
            else [found, randaugment.perform(PHOTO_HWC, kind, -sign * magnitude / 30)]
        )  # which way is the positive one is a matter of taste
        difference = min(np.abs(one.astype(float) - expected.permute(1, 2, 0).numpy()).mean() for one in ours_moves)
        assert difference < (3.0 if len(ours_moves) == 2 else 1.2)
