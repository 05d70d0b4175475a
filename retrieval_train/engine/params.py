"""Which parameters are stepped how: groups by part and weight decay, the optimizer over them, and their norm."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from retrieval_train.config import Section
from retrieval_train.engine.engine import NotFinite

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from retrieval_train.heads.centres import Head


Beta = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Section):
    """AdamW over three parts with a learning rate each: the backbone, the neck and the class centres."""

    name: Literal["adamw"] = "adamw"
    """The optimizer."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the neck, and of the other parts where they name none."""
    backbone_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the backbone (LoRA included)."""
    head_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the class centres."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decay of matrices; biases, norms and class centres (whose length has no effect) have none."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""

    def groups(self, embedder: nn.Module) -> list[dict[str, Any]]:
        """The trainable parameters in groups that carry their peak learning rate as `peak_lr`."""
        found: dict[tuple[str, bool], list[Tensor]] = {}
        for name, parameter in embedder.named_parameters():
            if parameter.requires_grad:
                part = "backbone" if name.startswith("backbone.") else "neck"
                found.setdefault((part, parameter.ndim > 1), []).append(parameter)
        return [
            self._group(tensors, lr=self.backbone_lr if part == "backbone" else None, decay=decays)
            for (part, decays), tensors in found.items()
        ]

    def head_group(self, head: Head) -> dict[str, Any]:
        return self._group(list(head.parameters()), lr=self.head_lr, decay=False)

    def _group(self, tensors: list[Any], *, lr: float | None, decay: bool) -> dict[str, Any]:
        peak = lr if lr is not None else self.lr
        return {"params": tensors, "lr": peak, "peak_lr": peak, "weight_decay": self.weight_decay if decay else 0.0}

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(groups, betas=self.betas, eps=self.eps)


MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps beside each tensor, in the names that torch and DeepSpeed give it."""


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def squared_norm(tensors: Iterable[Tensor | None]) -> Tensor:
    """The sum of squares over all entries, float32; 0 where there is no gradient."""
    import torch

    parts = [tensor.float().square().sum() for tensor in tensors if tensor is not None]
    return torch.stack(parts).sum() if parts else torch.zeros(())


def clip_factor(norm: float, limit: float) -> float:
    """What gradients are multiplied by so that their norm stays within `limit`; 1 where `limit` is 0.

    Raises NotFinite, before anything is stepped: the norm is the same on every rank, so all of them stop here.
    """
    if not math.isfinite(norm):
        raise NotFinite(f"gradient norm {norm}")
    return min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
