"""LAMB: Adam whose step is as long as the tensor it moves (You et al., ICLR 2020, algorithm 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from retrieval_train.engine.optimizers.adaptive import AdaptiveConfig
from retrieval_train.engine.optimizers.optimizer import Group

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Config(AdaptiveConfig):
    """LAMB. What does not decay steps as in Adam, the class centres too: their tensors differ with the number of ranks."""

    name: Literal["lamb"] = "lamb"
    """The optimizer."""
    weight_decay: float = Field(default=0.01, gt=0)
    """Decay of matrices, which are what is scaled: more than 0. Biases, norms and class centres have none."""
    eps: float = Field(default=1e-6, gt=0)
    """Added to the denominator."""

    has_step: ClassVar[bool] = False  # timm counts by group

    def problem(self, engine: str, stage: int | None) -> str | None:
        if stage:
            return (
                f"lamb scales the step of a tensor by that whole tensor's norm, and {engine} at stage {stage} steps pieces "
                "of tensors; set engine.stage=0 or engine.name=plain, or another optimizer.name, e.g. adamw"
            )
        return super().problem(engine, stage)

    def build(self, groups: list[Group]) -> torch.optim.Optimizer:
        from timm.optim import Lamb

        # no clipping of its own: the engine clips over all ranks' tensors, which this optimizer does not see
        built: torch.optim.Optimizer = Lamb(groups, betas=self.betas, eps=self.eps, max_grad_norm=None)
        return built

    def set_step(self, optimizer: torch.optim.Optimizer, tensor: Tensor, step: int) -> None:
        import torch

        for group in optimizer.param_groups:
            if any(tensor is one for one in group["params"]):
                group["step"] = torch.tensor(float(step), dtype=torch.float32)
