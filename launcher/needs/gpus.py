"""GPUs by the names that people and schedulers have for them: how much memory torch finds there, and the name torch has."""

from __future__ import annotations

import re
from dataclasses import dataclass

from retrieval_train.config import ConfigError


@dataclass(frozen=True)
class Gpu:
    name: str
    gib: float
    """As torch counts it, which is a little less than the datasheet's."""
    device_name: str | None = None
    """What torch calls it, by which its speed is known (`engine.flops.peak_flops`); None: only its memory is known."""


KNOWN = (
    Gpu("t4", 14.6, "Tesla T4"),
    Gpu("v100-16", 15.8, "Tesla V100-SXM2-16GB"),
    Gpu("a10g", 22.1, "NVIDIA A10G"),
    Gpu("l4", 22.2, "NVIDIA L4"),
    Gpu("a10", 22.2, "NVIDIA A10"),
    Gpu("rtx3090", 23.6, "NVIDIA GeForce RTX 3090"),
    Gpu("rtx4090", 23.6, "NVIDIA GeForce RTX 4090"),
    Gpu("a30", 23.6, "NVIDIA A30"),
    Gpu("v100-32", 31.7, "Tesla V100-SXM2-32GB"),
    Gpu("a100-40", 39.4, "NVIDIA A100-SXM4-40GB"),
    Gpu("a40", 44.4, "NVIDIA A40"),
    Gpu("l40", 44.4, "NVIDIA L40"),
    Gpu("l40s", 44.4, "NVIDIA L40S"),
    Gpu("a6000", 47.4, "NVIDIA RTX A6000"),
    Gpu("mi250x", 64.0, "AMD Instinct MI250X"),
    Gpu("h100-80", 79.1, "NVIDIA H100 80GB HBM3"),
    Gpu("a100-80", 79.2, "NVIDIA A100-SXM4-80GB"),
    Gpu("gh200", 94.5, "NVIDIA GH200"),
    Gpu("h20", 95.0, "NVIDIA H20"),
    Gpu("h200", 139.8, "NVIDIA H200"),
    Gpu("b200", 178.4, "NVIDIA B200"),
    Gpu("mi300x", 191.7, "AMD Instinct MI300X"),
)
"""By memory. A name with a size is that of one of two."""

_NOISE = re.compile(
    r"nvidia|amd|tesla|geforce|instinct|quadro|sxm\d?|pcie|hbm\d?e?|[\s_-]+|gb(?=$|[\s_-])", re.IGNORECASE
)


def find(text: str) -> Gpu:
    """The GPU of that name (h100-80, "NVIDIA A100-SXM4-40GB", nvidia_h100_80gb_hbm3), or with that many GB.

    Raises ConfigError that names those there are.
    """
    if re.fullmatch(r"\d+(\.\d+)?( ?GB)?", text.strip(), re.IGNORECASE):
        gib = float(re.sub("[^0-9.]", "", text))
        if gib > 0:
            return Gpu(f"{gib:g} GB", gib)
    name = _bare(text)
    found = [gpu for gpu in KNOWN if name in (_bare(gpu.name), _bare(gpu.device_name or ""))]
    found = found or [gpu for gpu in KNOWN if name and name == _bare(gpu.name.partition("-")[0])]  # without a size
    if not found:
        names = ", ".join(gpu.name for gpu in KNOWN)
        problem = f"{text!r} is no GPU that is known here; there are: {names}, or a number of GB"
        raise ConfigError("estimate", [("gpu", problem)])
    return found[0]  # of two sizes the smaller one


def _bare(text: str) -> str:
    return _NOISE.sub("", text).lower()
