"""The evaluation transform: what timm does with the same settings."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.data import create_transform, resolve_data_config

from retrieval_train.data.decode import decode
from retrieval_train.data.view import View, resize
from retrieval_train.models.backbones.timm import Config, view_of
from tests.retrieval_train.data.pictures import as_tensor, encode, mean_difference, photo

MODELS = [
    "resnet50.a1_in1k",  # shorter side, bicubic, crop .95
    "resnet18.tv_in1k",  # bilinear, .875
    "vit_tiny_patch16_224.augreg_in21k",
    "vit_base_patch16_siglip_224.webli",  # squashed
    "vit_small_patch16_lingbot.robbyant",  # squashed, bilinear
    "deepseek_vit_412m.deepseek_v4_flash_vision_exp",  # with a border
]


def by_timm(pretrained_cfg: dict[str, Any], image_px: int, image: Any) -> torch.Tensor:
    told = resolve_data_config({"input_size": (3, image_px, image_px)}, pretrained_cfg=pretrained_cfg)
    out: torch.Tensor = create_transform(**told, is_training=False, normalize=False)(image)
    return out


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [(320, 240), (203, 311), (90, 91), (900, 260)])
@pytest.mark.parametrize("image_px", [64, 70])
def test_a_view_of_a_backbone_is_the_transform_of_timm(model: str, size: tuple[int, int], image_px: int) -> None:
    pretrained_cfg = timm.get_pretrained_cfg(model)
    if pretrained_cfg is None:
        pytest.skip(f"this timm has no {model}")
    image = photo(*size)
    found = view_of(pretrained_cfg.to_dict()).apply(as_tensor(image), image_px)
    expected = by_timm(pretrained_cfg.to_dict(), image_px, image)
    assert found.shape == expected.shape == (3, image_px, image_px)
    assert mean_difference(found, expected) < 0.5
    assert (found.int() - expected.int()).abs().max() <= 3  # Pillow rounds between its two passes as well


def test_every_pretrained_model_has_a_view() -> None:
    for name in timm.list_models(pretrained=True)[::7]:
        assert view_of(timm.get_pretrained_cfg(name).to_dict()).crop <= 1


def test_a_built_backbone_brings_its_view_along() -> None:
    built = Config(model="vit_tiny_patch16_224", image_px=32, blocks=1, weights="none").build()
    assert built.view == View(resize="shorter", crop=0.9)


@pytest.mark.parametrize("mode", ["squeeze", "shorter", "longer"])
@pytest.mark.parametrize("size", [(1, 1), (8, 5), (5, 8), (300, 20), (33, 32)])
def test_any_image_becomes_the_square(mode: Any, size: tuple[int, int]) -> None:
    view = View(resize=mode, crop=0.9)
    first, again = (view.apply(as_tensor(photo(*size)), 24) for _ in range(2))
    assert first.shape == (3, 24, 24) and first.dtype == torch.uint8
    assert torch.equal(first, again)


def test_the_border_has_its_colour_and_nothing_is_cut_off() -> None:
    seen = View(resize="longer", border=(1, 2, 3)).apply(as_tensor(photo(200, 50)), 40)
    assert (seen[:, :15].permute(1, 2, 0) == torch.tensor([1, 2, 3], dtype=torch.uint8)).all()
    assert torch.equal(seen[:, 15:25], resize(as_tensor(photo(200, 50)), 10, 40))


def test_resizing_does_not_depend_on_how_the_image_lies_in_memory() -> None:
    image_CHW = as_tensor(photo())
    for view_CHW in (image_CHW, image_CHW[:, 3:99, 7:201]):
        assert torch.equal(resize(view_CHW, 50, 60), resize(view_CHW.contiguous(), 50, 60))


@pytest.mark.parametrize("view", [View(), View(resize="shorter", crop=0.875), View(resize="longer")])
def test_decoding_for_a_view_costs_next_to_nothing_of_the_image(view: View) -> None:
    image = encode(photo(512, 400), quality=92)
    scaled_CHW = decode(image, key="k", min_side=view.min_side(48))
    assert scaled_CHW.shape[1] < 400
    assert mean_difference(view.apply(scaled_CHW, 48), view.apply(decode(image, key="k"), 48)) < 1.5
