"""Model FLOPs against the closed formula of a ViT, and what a device could do."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from retrieval_train.engine.flops import head_flops, image_flops, peak_flops, utilisation
from retrieval_train.models import lora
from retrieval_train.models.backbones import timm
from retrieval_train.models.embedder import Embedder, build_embedder
from retrieval_train.models.necks import linear

DIM, DEPTH, PATCH, OUT, RANK, IMAGE_PX = 192, 4, 16, 64, 8, 80
PATCHES = (IMAGE_PX // PATCH) ** 2
TOKENS = PATCHES + 1


def vit(adapted_blocks: int = 0) -> Embedder:
    config = timm.Config(model="vit_tiny_patch16_224", image_px=IMAGE_PX, weights="none", blocks=DEPTH)
    embedder = build_embedder(config, linear.Config(out=OUT), seed=0)
    if adapted_blocks:
        lora.Config(rank=RANK, last_blocks=adapted_blocks).apply(embedder, seed=0)
    return embedder


def closed_formula(adapted_blocks: int = 0) -> tuple[float, float]:
    """Forward and training; 2 for a multiplication and an addition.

    Trained: twice the forward more. Frozen: once more for the input's gradient, where something in front is trained.
    """
    patches = 2 * PATCHES * 3 * PATCH**2 * DIM
    qkv, others = (
        2 * TOKENS * 3 * DIM**2,
        2 * TOKENS * 9 * DIM**2,
    )  # the output's projection: 1, the two of the MLP: 4 + 4
    scores = 2 * 2 * TOKENS**2 * DIM
    neck = 2 * DIM * OUT
    block = qkv + others + scores
    forward = patches + DEPTH * block + neck
    if not adapted_blocks:
        return forward, 3 * forward - patches  # the image has no gradient
    down, up = 2 * TOKENS * RANK * DIM * (1 + 1 + 1 + 4), 2 * TOKENS * RANK * DIM * (3 + 1 + 4 + 1)
    forward += adapted_blocks * (down + up)
    backward = adapted_blocks * (qkv + others + 2 * (scores + down + up)) + 2 * neck
    backward -= qkv + 2 * TOKENS * RANK * DIM  # the first adapted layer's input has none
    return forward, forward + backward


@pytest.mark.parametrize("adapted_blocks", [0, DEPTH // 2, DEPTH])
def test_counted_flops_are_those_of_the_closed_formula(adapted_blocks: int) -> None:
    forward, training = closed_formula(adapted_blocks)
    counted = image_flops(vit(adapted_blocks), image_px=IMAGE_PX)
    assert counted.forward == pytest.approx(forward, rel=0.002)
    assert counted.training == pytest.approx(training, rel=0.002)


def test_a_frozen_embedder_costs_its_forward_alone() -> None:
    counted = image_flops(vit().requires_grad_(False), image_px=IMAGE_PX)
    assert counted.training == counted.forward > 0


def test_counting_leaves_gradients_buffers_and_the_random_state_as_they_were() -> None:
    embedder = build_embedder(
        timm.Config(model="test_resnet", image_px=32, weights="none"), linear.Config(out=4), seed=0
    )
    weight = next(embedder.neck.parameters())
    weight.grad = torch.full_like(weight, 3.0)
    before = {name: value.clone() for name, value in embedder.state_dict().items()}
    random_state = torch.get_rng_state()
    image_flops(embedder, image_px=32)
    assert all(torch.equal(value, before[name]) for name, value in embedder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [p.grad is not None for p in embedder.parameters()].count(True) == 1
    assert weight.grad is not None and bool((weight.grad == 3).all())


def test_the_head_costs_three_products() -> None:
    emb_BD = torch.randn(5, 7, requires_grad=True)
    centre_SD = torch.randn(6 * 2, 7, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        (emb_BD @ centre_SD.T).sum().backward()
    assert head_flops(rows=5, classes=6, sub_centres=2, dim=7) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "tf32", 417.5),
        ("NVIDIA H200", "bf16", 989.5),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA L4", "fp16", 121),
        ("NVIDIA L40S", "fp16", 362),
        ("Tesla T4", "fp16", 65),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("AMD Instinct MI300X", "bf16", 1307.4),
    ],
)
def test_a_known_device_has_its_dense_peak(name: str, precision: str, tera: float) -> None:
    assert peak_flops(name, precision) == pytest.approx(tera * 1e12)  # type: ignore[arg-type]


def test_a_device_or_precision_that_is_not_known_has_no_peak_and_no_utilisation() -> None:
    for name in ("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A1000", "NVIDIA H100 MIG 1g.10gb", "cpu", ""):
        assert peak_flops(name, "bf16") is None, name
    assert peak_flops("Tesla V100-SXM2-16GB", "bf16") is None
    assert utilisation(1e12, 1.0, None) is None
    assert utilisation(3e14, 2.0, 300e12) == 0.5
