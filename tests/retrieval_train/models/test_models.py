"""Backbone, neck, LoRA and export on real timm models."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from timm import create_model

from retrieval_train.data.view import View
from retrieval_train.models import exported, lora
from retrieval_train.models.backbones import timm
from retrieval_train.models.backbones.backbone import check_sizes
from retrieval_train.models.embedder import Embedder, build_embedder
from retrieval_train.models.exported import Card, ExportError, Start
from retrieval_train.models.necks import identity, linear

EVA = timm.Config(model="eva02_tiny_patch14_224", image_px=28, weights="none")
IMAGE = torch.randint(0, 255, (2, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def embedder(neck: linear.Config | identity.Config | None = None) -> Embedder:
    return build_embedder(EVA, neck or linear.Config(out=16), seed=1).eval()


def test_an_embedder_is_the_same_for_the_same_seed() -> None:
    first = embedder()(IMAGE)
    torch.randn(100)
    assert torch.equal(embedder()(IMAGE), first)
    assert first.shape == (2, 16)
    assert embedder(identity.Config())(IMAGE).shape == (2, 192)


def test_bf16_is_on_inside_even_where_a_wrapper_switches_autocast_off() -> None:
    model = embedder()
    exact = model(IMAGE)
    model.precision = "bf16"
    with torch.autocast("cpu", enabled=False):  # what DeepSpeed's forward does
        out = model(IMAGE)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)


def test_lora_starts_as_the_identity_learns_and_merges(tmp_path: Path) -> None:
    model = embedder()
    before = model(IMAGE)
    lora.Config(rank=4, last_blocks=2).apply(model, seed=0)
    torch.testing.assert_close(model(IMAGE), before)
    lora.check_alive(model, image_px=28)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith("neck.") for name in trained)
    assert {int(name.split("blocks.")[1].split(".")[0]) for name in trained if "blocks." in name} == {10, 11}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    adapted = model(IMAGE)
    assert (adapted - before).abs().max() > 1e-3
    lora.merge(model)
    torch.testing.assert_close(model(IMAGE), adapted, rtol=1e-4, atol=1e-5)


def test_adapters_are_drawn_from_the_seed_alone() -> None:
    drawn = []
    for seed in (0, 0, 1):
        model = embedder()
        lora.Config(rank=4, last_blocks=1).apply(model, seed=seed)
        drawn.append(torch.cat([p.flatten() for name, p in model.named_parameters() if "lora_A" in name]))
        torch.randn(3)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_an_adapter_that_is_never_called_is_found() -> None:
    model = embedder()
    lora.Config(targets=("qkv",), last_blocks=2).apply(model, seed=0)
    for module in model.backbone.modules():
        if getattr(module, "qkv_bias_separate", None) is True:
            module.qkv_bias_separate = False  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"4 trainable tensors get no gradient .*blocks\.10\.attn\.qkv\.lora_A"):
        lora.check_alive(model, image_px=28)


def test_the_look_for_dead_adapters_leaves_running_statistics_alone() -> None:
    config = timm.Config(model="test_resnet", image_px=32, weights="none")
    model = build_embedder(config, linear.Config(out=4), seed=0)
    assert model.training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lora.check_alive(model, image_px=32)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(IMAGE)
    assert not torch.equal(model.state_dict()["backbone.bn1.running_mean"], before["backbone.bn1.running_mean"])


def test_lora_without_a_fitting_layer_lists_the_layers_there_are() -> None:
    with pytest.raises(ValueError, match=r"no such layer in its blocks; there are: .*qkv"):
        lora.Config(targets=("to_q",)).apply(embedder(), seed=0)


def test_a_convolutional_net_takes_any_size() -> None:
    config = timm.Config(model="resnet10t", image_px=40, weights="none")
    model = build_embedder(config, identity.Config(), seed=0).eval()
    assert model(torch.zeros(1, 3, 40, 40, dtype=torch.uint8)).shape == (1, 512)


def test_a_transformer_takes_every_whole_number_of_patches_and_is_else_what_it_was() -> None:
    model = embedder()
    twin = create_model("eva02_tiny_patch14_224", img_size=28, num_classes=0).eval()
    twin.load_state_dict(model.backbone.state_dict())
    x = torch.randn(2, 3, 28, 28)
    assert torch.equal(model.backbone(x), twin(x))
    check_sizes(model, [14, 42, 56])
    with pytest.raises(ValueError, match=r"takes no images of 30 px, which data\.resolutions asks for \(.*patch size"):
        check_sizes(model.train(), [56, 30, 42])
    assert model.training and not any(p.grad is not None for p in model.parameters())
    assert EVA.size_problem(56) is None and "14 px; take 28 or 42" in str(EVA.size_problem(40))


def test_a_size_that_patches_do_not_fill_is_cut_as_the_pretrained_one_was() -> None:
    config = timm.Config(model="vit_small_patch14_reg4_dinov2", image_px=32, weights="none", blocks=1)
    model = build_embedder(config, identity.Config(), seed=0).eval()
    assert model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 384)
    with pytest.raises(ValueError, match="takes no images of 28 px"):
        check_sizes(model, [28])


@pytest.mark.parametrize(("name", "is_any_size"), [("test_convnext", True), ("cait_xxs24_224", False)])
def test_other_models_are_tried(name: str, is_any_size: bool) -> None:
    model = build_embedder(timm.Config(model=name, image_px=64, weights="none"), identity.Config(), seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if is_any_size:
        check_sizes(model, [32, 96])
    else:
        with pytest.raises(ValueError, match=r"of 32 px, .* \(Input height \(32\) doesn't match model \(64\)"):
            check_sizes(model, [32])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_unknown_model_names_near_ones() -> None:
    with pytest.raises(ValueError, match="timm has no 'eva02_tiny_patch99'; there are: eva02_tiny"):
        timm.Config(model="eva02_tiny_patch99", weights="none").build()


@pytest.mark.parametrize(("file", "told"), [("x.pth", "pickles"), ("none.safetensors", "does not exist")])
def test_a_weights_file_that_cannot_be_used_is_told_before_the_run(tmp_path: Path, file: str, told: str) -> None:
    assert told in timm.Config(model="resnet10t", weights=tmp_path / file).problems()[0][1]


def test_pretrained_weights_load_strictly_from_a_file() -> None:
    folder = os.environ.get("RETRIEVAL_WEIGHTS")
    if not folder:
        pytest.skip("RETRIEVAL_WEIGHTS is not set: no pretrained weights on this machine")
    file = Path(folder) / "vit_tiny_patch16_224.fp16.safetensors"
    config = timm.Config(model="vit_tiny_patch16_224", weights=file)
    built = config.build()
    from safetensors.torch import load_file

    stored = load_file(file)
    assert built.mean == built.std == (0.5, 0.5, 0.5)
    assert all(torch.equal(value, stored[name].float()) for name, value in built.module.state_dict().items())


def card() -> Card:
    start = Start(backbone=EVA, neck=linear.Config(out=16), seed=1)
    return Card(backbone=EVA, neck=linear.Config(out=16), view=View(crop=0.9), seed=1, began=start)


def test_an_export_gives_back_the_same_vectors_and_describes_itself(tmp_path: Path) -> None:
    model = embedder()
    with torch.no_grad():
        next(iter(model.neck.parameters())).add_(0.5)
    exported.save(tmp_path, model, card(), {"run": "x"})
    exported.save_centres(tmp_path, ["a/1", "b\n2"], torch.arange(8.0).view(2, 1, 4))
    assert torch.equal(exported.load(tmp_path)(IMAGE), model(IMAGE))
    told, values = exported.read_card(tmp_path)
    assert told == card()
    assert (values["dim"], values["normalised"], values["run"]) == (16, False, "x")
    assert exported.read_centres(tmp_path)["b\n2"].tolist() == [[4, 5, 6, 7]]
    torch.testing.assert_close(told.began.build().eval()(IMAGE), embedder()(IMAGE))


def test_a_folder_that_is_no_export_or_of_another_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"is no export: it has no model\.json"):
        exported.load(tmp_path)
    exported.save(tmp_path, embedder(), card(), {})
    values = json.loads((tmp_path / "model.json").read_text())
    values["model"]["neck"]["out"] = 17
    (tmp_path / "model.json").write_text(json.dumps(values))
    with pytest.raises(ExportError, match=r"is of another model: 1 tensors differ \(neck"):
        exported.load(tmp_path)
    values["schema"] = 99
    (tmp_path / "model.json").write_text(json.dumps(values))
    with pytest.raises(ExportError, match="schema 99"):
        exported.load(tmp_path)
