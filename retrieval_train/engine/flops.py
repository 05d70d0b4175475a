"""Model FLOPs: the multiplications and additions that a step needs, by which a device's use is judged (PaLM, 2022, app. B).

What is computed only to save memory (activation checkpointing, attention scores computed anew) does not count: a run that
computes more for the same step is not better used. Legend: B rows of the global batch, C classes, K sub-centres,
D dimensions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ImageFlops:
    """Of one image through the embedder."""

    forward: float
    training: float
    """Forward and backward: frozen tensors cost no gradient of their own, and nothing flows back past the first trained."""


def image_flops(embedder: nn.Module, *, image_px: int) -> ImageFlops:
    """Counted in one forward and backward of two images: matrix products, convolutions and attention.

    Call it before activation checkpointing, `compile` and ZeRO are switched on: the first would be counted twice, the
    others hide products or weights. Leaves gradients, buffers and the random state as they were.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = next(embedder.parameters()).device
    image = torch.zeros(2, 3, image_px, image_px, dtype=torch.uint8, device=device)  # two: batch norm refuses one
    grads = {parameter: parameter.grad for parameter in embedder.parameters()}
    buffers = {name: buffer.clone() for name, buffer in embedder.named_buffers()}
    embedder.zero_grad(set_to_none=True)
    embedder.draw(torch.arange(2, device=device))  # type: ignore[operator]
    try:
        with torch.random.fork_rng(), torch.enable_grad(), FlopCounterMode(display=False) as counter:
            out = embedder(image)
            forward = counter.get_total_flops()
            if out.requires_grad:
                out.float().square().sum().backward()
    finally:
        embedder.draw(None)  # type: ignore[operator]
        for parameter, grad in grads.items():
            parameter.grad = grad
        for name, value in buffers.items():
            embedder.get_buffer(name).copy_(value)
    anew = 0.0
    for operator, count in counter.get_flop_counts()["Global"].items():
        if "attention" in str(operator) and "backward" in str(operator):
            anew += count / 5  # fused attention keeps no scores: its fifth product computes them again
    return ImageFlops(forward / 2, (counter.get_total_flops() - anew) / 2)


def head_flops(*, rows: int, classes: int, sub_centres: int, dim: int) -> float:
    """Of a training step: (B, D) times (D, CK), and the two products of its backward.

    With all classes it is the cluster's, with one rank's classes (but all ranks' rows) that rank's.
    """
    return 3 * 2.0 * rows * classes * sub_centres * dim


Precision = Literal["fp32", "tf32", "bf16", "fp16"]


@dataclass(frozen=True)
class _Peak:
    """Dense peaks in TFLOP/s, tensor cores accumulating in float32; None: the device has no such products."""

    fp32: float
    tf32: float | None
    fp16: float
    bf16: float | None


# The vendors' datasheets (GeForce and RTX A6000: NVIDIA's whitepapers of GA102 and Ada), those with sparsity
# divided by two. B200: an eighth of HGX B200; MI250X: one of its two dies, which are devices of their own.
_PEAKS: dict[str, _Peak] = {
    r"V100S": _Peak(16.4, None, 130, None),
    r"V100-PCIE": _Peak(14, None, 112, None),
    r"V100-SXM[23]": _Peak(15.7, None, 125, None),
    r"T4": _Peak(8.1, None, 65, None),
    r"A10": _Peak(31.2, 62.5, 125, 125),
    r"A10G": _Peak(31.2, 35, 70, 70),
    r"A30": _Peak(10.3, 82, 165, 165),
    r"A40": _Peak(37.4, 74.8, 149.7, 149.7),
    r"RTX A6000": _Peak(38.7, 77.4, 154.8, 154.8),
    r"A100": _Peak(19.5, 156, 312, 312),
    r"L4": _Peak(30.3, 60, 121, 121),
    r"L40": _Peak(90.5, 90.5, 181, 181),
    r"L40S": _Peak(91.6, 183, 362, 362),
    r"H100 PCIe": _Peak(51, 378, 756, 756),
    r"H100 NVL": _Peak(60, 417.5, 835.5, 835.5),
    r"(H100|GH200)": _Peak(67, 494.5, 989.5, 989.5),
    r"H200 NVL": _Peak(60, 417.5, 835.5, 835.5),
    r"H200": _Peak(67, 494.5, 989.5, 989.5),
    r"B200": _Peak(75, 1125, 2250, 2250),
    r"RTX 3090": _Peak(35.6, 35.6, 71, 71),
    r"RTX 4090": _Peak(82.6, 82.6, 165.2, 165.2),
    r"MI250X": _Peak(47.9, None, 191.5, 191.5),
    r"MI300X": _Peak(163.4, 653.7, 1307.4, 1307.4),
}
_SAYS_NOTHING = r"(NVIDIA|AMD|Tesla|GeForce|Instinct|[- ]|PCIE|SXM\d*|HBM\d\w*|\d+ ?GB|OAM|OCP)*"


def peak_flops(device_name: str, precision: Precision) -> float | None:
    """Dense peak FLOP/s of a device by torch's name for it; None for a device or a precision that is not in the table.

    The whole name must be known: an `RTX 4090 Laptop GPU` is not an `RTX 4090`.
    """
    for name, peak in _PEAKS.items():
        if re.fullmatch(rf"{_SAYS_NOTHING}{name}{_SAYS_NOTHING}", device_name, re.IGNORECASE):
            tera: float | None = getattr(peak, precision)
            return tera * 1e12 if tera is not None else None
    return None


def utilisation(flops: float, step_s: float, peak: float | None) -> float | None:
    """The share of its peak at which a device worked: FLOPs of this rank's step over what it could have done in the time."""
    return flops / (step_s * peak) if peak else None
