"""Learning rates of an optimizer's groups, and the norm of gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def squared_norm(tensors: Iterable[Tensor | None]) -> Tensor:
    """The sum of squares over all entries, float32; 0 where there is no gradient."""
    import torch

    parts = [tensor.float().square().sum() for tensor in tensors if tensor is not None]
    return torch.stack(parts).sum() if parts else torch.zeros(())


def lr_of_group(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The learning rate of each named group; groups of one name have one."""
    return {group["name"]: float(group["lr"]) for group in optimizer.param_groups}
