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

    def of(tensor: Tensor) -> Tensor:
        if tensor.ndim < 2:
            return tensor.float().square().sum()
        # row by row: no squares of a whole table of class centres in memory; one norm over all of it would be 0.5% off
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        norm: Tensor = torch.linalg.vector_norm(tensor, dim=-1, dtype=dtype)
        return norm.float().square().sum()

    parts = [of(tensor) for tensor in tensors if tensor is not None]
    return torch.stack(parts).sum() if parts else torch.zeros(())


def lr_of_group(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The learning rate of each named group; groups of one name have one."""
    return {group["name"]: float(group["lr"]) for group in optimizer.param_groups}
