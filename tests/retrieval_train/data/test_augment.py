"""Augmentation: what follows from the seed, what the presets are, and what each operation does."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from retrieval_train.config import ConfigError, check, dump, load
from retrieval_train.data.augment.augment import Augment
from retrieval_train.data.augment.draws import Draws
from retrieval_train.data.augment.pipeline import choose, draw_crop
from retrieval_train.data.augment.presets import PRESETS
from retrieval_train.data.decode import decode
from retrieval_train.data.view import View
from tests.retrieval_train.data.pictures import as_tensor, encode, mean_difference, photo

ROOT = Path(__file__).resolve().parents[3]
PHOTO = as_tensor(photo(96, 72))
SQUARE = as_tensor(photo(90, 90))  # of a 4:3 photo, a square crop of 90% of the area takes the middle: no other fits
ODD = {
    "grey": decode(encode(photo(40, 30).convert("L")), key="k"),
    "tiny": as_tensor(photo(8, 5)),
    "dot": as_tensor(photo(1, 1)),
    "huge": as_tensor(photo(2200, 1500)),
    "strip": as_tensor(photo(400, 9)),
    "transparent": decode(encode(photo(40, 30).convert("RGBA"), "PNG"), key="k"),
}
ALONE: dict[str, dict[str, Any]] = {
    "crop": {"crop_scale": [0.3, 0.5]},
    "flip": {"flip": 1},
    "rotate": {"rotate_degrees": 20},
    "shift": {"shift": 0.3},
    "zoom": {"zoom": 0.3},
    "shear": {"shear": 0.3},
    "perspective": {"perspective": {}},
    "elastic": {"elastic": {}},
    "jitter": {"jitter": 0.4},
    "hue": {"hue": 0.3},
    "hsv_shift": {"hsv_shift": {"saturation": 60}},
    "rgb_shift": {"rgb_shift": {"levels": 40}},
    "grey": {"grey": 1},
    "clahe": {"clahe": {}},
    "sharpen": {"sharpen": {}},
    "emboss": {"emboss": {}},
    "rain": {"rain": {}},
    "noise": {"noise": {}},
    "blur": {"blur": {"sigma": [1, 2]}},
    "motion": {"motion": {}},
    "jpeg": {"jpeg": {"quality": [10, 20]}},
    "erase": {"erase": 1},
}


def digest(preset: str, seed: int) -> str:
    pixels = Augment(preset=preset).apply(SQUARE, 40, seed=seed).contiguous().numpy()
    return hashlib.sha256(pixels.tobytes()).hexdigest()


# --- the config


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_written_out_in_full_and_read_back(preset: str, tmp_path: Path) -> None:
    augment = Augment(preset=preset)
    (tmp_path / "a.yaml").write_text(dump(augment))
    assert load(Augment, tmp_path / "a.yaml") == augment
    assert Augment.model_validate(augment.model_dump()) == augment


def test_presets_have_the_published_values_and_nothing_beside_them() -> None:
    light, siglip = Augment(preset="openclip"), Augment(preset="siglip")
    assert (light.crop_scale, light.crop_ratio, light.jitters, light.hue) == ((0.9, 1.0), (1.0, 1.0), (0, 0, 0), 0)
    assert light.chances() == {}
    assert siglip.chances() == {"jitter": 1.0} and siglip.jitters == (0.4, 0.4, 0.4) and siglip.hue == 0
    assert Augment(preset="unifex_custom").chances() == {"flip": 0.5, "jitter": 1.0}
    assert Augment(preset="ucu_strong").erase_with == ("black", "noise")
    assert Augment().chances() == {"jitter": 1.0}


def test_what_is_given_beside_a_preset_wins_number_by_number() -> None:
    changed = Augment.model_validate({"preset": "ucu_strong_resnet", "flip": 0.5, "blur": {"p": 1.0}, "jitter": 0})
    assert (changed.flip, changed.jitter, changed.rotate_degrees) == (0.5, 0, 15)
    assert changed.blur is not None and (changed.blur.p, changed.blur.sigma) == (1.0, (0.1, 2.0))
    without = Augment.model_validate({"preset": "ucu_strong_resnet", "blur": None})
    assert "blur" not in without.chances()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"preset": "openclp"}, r"preset +'openclp' is unknown; there are: none, openai_clip"),
        ({"crop_scale": [0.9, 0.5]}, r"crop_scale +\[0\.9, 0\.5\] is no range"),
        ({"crop_scale": [0, 0.5]}, "crop_scale"),
        ({"jitter": 3}, "jitter"),
        ({"jitter": "0.3"}, "jitter +'0.3' is text where a number is needed"),
        ({"blur": {"sgima": [1, 2]}}, r"blur\.sgima +unknown key; did you mean blur\.sigma\?"),
        ({"blur": {"sigma": [2, 1]}}, r"blur\.sigma +\[2\.0, 1\.0\] is no range"),
        ({"one_of": [{"among": ["rain", "blur"]}, {"among": ["blur", "noise"]}]}, "one_of +blur named more than once"),
        ({"one_of": [{"among": ["rain", "snow"]}]}, r"one_of\.0\.among\.1 +'snow' is not allowed"),
    ],
)
def test_a_mistake_is_told_with_its_place(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check(Augment, values, where="augment")


def test_nothing_is_imported_before_an_image_comes() -> None:
    code = (
        "import sys, retrieval_train.data.augment.augment; print({'torch', 'cv2', 'torchvision'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()"]


# --- the seed


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("odd", ODD)
def test_every_preset_takes_every_image(preset: str, odd: str) -> None:
    augment = Augment(preset=preset)
    for seed in (0, 2**63 - 1):
        first = augment.apply(ODD[odd], 24, seed=seed)
        assert first.shape == (3, 24, 24) and first.dtype == torch.uint8
        assert torch.equal(first, augment.apply(ODD[odd], 24, seed=seed))


def test_another_process_draws_the_same() -> None:
    module = "tests.retrieval_train.data.test_augment"
    code = f"from {module} import *; import torch; torch.set_num_threads(2); print(*[digest(p, 5) for p in PRESETS])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [digest(preset, 5) for preset in PRESETS]


def test_seeds_differ() -> None:
    for preset in PRESETS.keys() - {"none", "openai_clip"}:
        assert len({digest(preset, seed) for seed in range(12)}) > 4, preset


def test_no_generator_of_the_process_is_read_or_moved() -> None:
    drawn = []
    for state in (1, 2):
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
        drawn.append([digest(preset, seed) for preset in PRESETS for seed in range(3)])
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
        assert before == after
    assert drawn[0] == drawn[1]


def test_the_image_itself_is_left_alone() -> None:
    image_CHW = PHOTO.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    before = image_CHW.clone()
    for name in PRESETS:
        for size in (24, 72):
            Augment(preset=name, crop_scale=(1.0, 1.0)).apply(image_CHW, size, seed=1)
    assert torch.equal(image_CHW, before)


def test_an_added_operation_leaves_the_other_draws_as_they_were() -> None:
    plain = Augment(preset="siglip")
    flipped = Augment(preset="siglip", flip=1, erase=0.5)
    for seed in range(20):
        expected = plain.apply(PHOTO, 32, seed=seed).flip(-1)
        found = flipped.apply(PHOTO, 32, seed=seed)
        is_same = (found == expected).all(dim=0)
        assert is_same.float().mean() > 0.6  # all but the rectangle


# --- how often


def test_operations_happen_as_often_as_their_probability_says() -> None:
    augment = Augment.model_validate({"preset": "none", "flip": 0.3, "blur": {"p": 0.5}, "grey": 0.1})
    counts = dict.fromkeys(("flip", "blur", "grey"), 0)
    both, num = 0, 4000
    for seed in range(num):
        chosen = choose(augment, Draws(seed))
        both += {"flip", "blur"} <= chosen
        for name in chosen:
            counts[name] += 1
    for name, p in augment.chances().items():
        assert abs(counts[name] - num * p) < 4 * np.sqrt(num * p * (1 - p))
    assert abs(both - num * 0.15) < 4 * np.sqrt(num * 0.15 * 0.85)  # independent


def test_of_a_group_one_is_applied_at_most_in_proportion_to_its_weight() -> None:
    group = {"p": 0.6, "among": ["rain", "noise", "motion"]}
    values = {"preset": "none", "rain": {"p": 0.25}, "noise": {"p": 0.75}, "one_of": [group]}
    augment, num = Augment.model_validate(values), 4000
    counts = {"": 0, "rain": 0, "noise": 0}
    for seed in range(num):
        chosen = choose(augment, Draws(seed))
        assert len(chosen) <= 1
        counts["".join(chosen)] += 1
    for name, p in (("", 0.4), ("rain", 0.15), ("noise", 0.45)):
        assert abs(counts[name] - num * p) < 4 * np.sqrt(num * p * (1 - p))


# --- where the pixels come from


def test_without_randomness_an_image_is_seen_as_in_evaluation() -> None:
    none = Augment(preset="none")
    for view in (View(), View(resize="shorter", crop=0.8), View(resize="longer")):
        assert torch.equal(none.apply(PHOTO, 32, seed=1, view=view), view.apply(PHOTO, 32))
    assert torch.equal(none.apply(PHOTO, 32, seed=1), View().apply(PHOTO, 32))
    clip = Augment(preset="openai_clip").apply(PHOTO, 32, seed=1, view=View())
    assert torch.equal(clip, View(resize="shorter").apply(PHOTO, 32))


@pytest.mark.parametrize("size", [(100, 100), (90, 130), (60, 200), (210, 40)])
@pytest.mark.parametrize(("scale", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.9, 1.0), (1.0, 1.0))])
def test_crops_are_distributed_as_those_of_torchvision(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    from torchvision.transforms import RandomResizedCrop

    augment, num = Augment(crop_scale=scale, crop_ratio=ratio), 1500
    ours = np.array([draw_crop(augment, *size, seed=seed) for seed in range(num)], float)
    image = torch.empty(3, *size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(num)], float)
    top, left, height, width = ours.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all()
    spread = np.maximum(theirs.std(axis=0), ours.std(axis=0))
    assert (abs(ours.mean(axis=0) - theirs.mean(axis=0)) <= 4.5 * spread * np.sqrt(2 / num) + 1e-9).all()
    assert (abs(ours.std(axis=0) - theirs.std(axis=0)) <= 0.12 * spread + 1e-9).all()


@pytest.mark.parametrize("preset", [p for p in PRESETS if Augment(preset=p).crop_scale])
@pytest.mark.parametrize("size", [(500, 500), (333, 777), (900, 420)])
def test_what_is_decoded_suffices_for_every_crop(preset: str, size: tuple[int, int]) -> None:
    augment, px = Augment(preset=preset, sharpness=1.5), 40
    for seed in range(200):
        box = draw_crop(augment, *size, seed=seed)
        asked = augment.min_side_for(px, seed=seed)
        exact = asked(*size) if callable(asked) else asked
        for needed in (augment.min_side(px), exact):
            scale = needed / min(size)  # of a decode that has just that many pixels
            assert min(box.height, box.width) * scale >= 0.99 * 1.5 * px  # boxes are rounded to whole pixels
        assert exact <= augment.min_side(px) * 1.02


def test_a_crop_for_one_seed_is_the_same_from_a_scaled_decode() -> None:
    image = encode(photo(512, 384), quality=95)
    augment = Augment(preset="imagenet", sharpness=2.0)
    for seed in range(10):
        scaled_CHW = decode(image, key="k", min_side=augment.min_side_for(32, seed=seed))
        whole, other = (augment.apply(decode(image, key="k"), 32, seed=s) for s in (seed, seed + 1))
        scaled = augment.apply(scaled_CHW, 32, seed=seed)
        assert mean_difference(scaled, whole) < min(10, mean_difference(scaled, other) / 3)
    assert decode(image, key="k", min_side=augment.min_side_for(32, seed=0)).shape[1] < 384


@pytest.mark.parametrize("name", ALONE)
def test_every_operation_does_something(name: str) -> None:
    plain = Augment(preset="none").apply(PHOTO, 48, seed=3)
    alone = Augment.model_validate({"preset": "none", **ALONE[name]})
    found = alone.apply(PHOTO, 48, seed=3)
    share = float((found != plain).float().mean())
    assert share > (0.02 if name == "erase" else 0.2)
    assert (found.float() - plain.float()).abs().mean() < 90


def test_a_preset_of_which_all_is_left_out_does_nothing() -> None:
    plain = Augment(preset="none").apply(PHOTO, 48, seed=3)
    for name in PRESETS:
        left_out = {key: value for key, value in Augment().model_dump().items() if key not in ("preset", "sharpness")}
        left_out |= {"crop_scale": None, "jitter": 0, "hue": 0, "view": None}
        found = Augment.model_validate({**left_out, "preset": name}).apply(PHOTO, 48, seed=3)
        assert torch.equal(found, plain), name


def test_bad_ranges_in_python_are_refused_too() -> None:
    with pytest.raises(ValidationError, match="is no range"):
        Augment(erase_ratio=(2.0, 1.0))
