"""What all optimizers share: parameter groups with a peak learning rate each, and state that can be taken out and put back.

A group is the tensors of one part, or of one layer of the backbone, that decay or do not. Its `name` says whose learning
rate it has; the decaying and the other tensors of a part share it.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from retrieval_train.choice import Chosen
from retrieval_train.config import Section
from retrieval_train.engine.optimizers.sam import Sam

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from retrieval_train.heads.centres import Head

Beta = Annotated[float, Field(ge=0, lt=1)]
Group = dict[str, Any]


class OptimizerConfig(Section):
    """Base of all optimizers: three parts with a learning rate each, the backbone, the neck and the class centres."""

    name: str
    """The optimizer: the name of a file in engine/optimizers/."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the neck, and of the other parts where they name none."""
    backbone_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the backbone (LoRA included)."""
    head_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the class centres."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Each block's learning rate over that of the block after it; the last block has backbone_lr. Null: one for all."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decay of matrices; biases, norms and class centres (whose length has no effect) have none."""
    sam: Sam | None = None
    """Sharpness-aware steps: plain engine and ZeRO stage 0."""

    has_step: ClassVar[bool] = False
    """Whether each tensor's state counts its steps."""

    @property
    @abstractmethod
    def moments(self) -> tuple[str, ...]:
        """What is kept beside each tensor, of its shape, in the names that torch gives it."""

    @abstractmethod
    def build(self, groups: list[Group]) -> torch.optim.Optimizer: ...

    def problem(self, engine: str, stage: int | None) -> str | None:
        """Why this optimizer cannot run on that engine (`stage` is ZeRO's; None elsewhere), and what can."""
        if self.sam and stage:
            return (
                f"sam moves whole weights along whole gradients between two passes, and {engine} at stage {stage} leaves "
                "each rank pieces of them; set engine.stage=0 or engine.name=plain, or leave optimizer.sam out"
            )
        return None

    def groups(self, embedder: nn.Module) -> list[Group]:
        """The trained parameters, each in one group, that carries its peak learning rate as `peak_lr`."""
        layers = find_layers(name for name, _ in embedder.named_parameters()) if self.layer_decay is not None else {}
        last = max(layers.values(), default=0)
        if self.layer_decay is not None and not last:
            raise ValueError(
                f"optimizer.layer_decay is {self.layer_decay}, but this backbone has no blocks: none of its tensors is "
                "named 'blocks.<n>.'; set optimizer.layer_decay=null"
            )
        found: dict[tuple[str, float, bool], list[Tensor]] = {}
        for name, parameter in embedder.named_parameters():
            if parameter.requires_grad:
                part, peak = self._part(name, layers.get(name, last), last)
                found.setdefault((part, peak, parameter.ndim > 1), []).append(parameter)
        return [self._group(part, tensors, peak, decays=decays) for (part, peak, decays), tensors in found.items()]

    def head_group(self, head: Head) -> Group:
        return self._group("centres", list(head.parameters()), self.head_lr or self.lr, decays=False)

    def _part(self, name: str, layer: int, last: int) -> tuple[str, float]:
        """Whose learning rate a tensor has, and its peak."""
        if not name.startswith("backbone."):
            return "neck", self.lr
        peak = self.backbone_lr or self.lr
        if self.layer_decay is None:
            return "backbone", peak
        part = f"backbone.block{layer - 1:02d}" if layer else "backbone.stem"
        return part, peak * self.layer_decay ** (last - layer)

    def _group(self, name: str, tensors: list[Tensor], peak: float, *, decays: bool) -> Group:
        decay = self.weight_decay if decays else 0.0
        return {"name": name, "params": tensors, "lr": peak, "peak_lr": peak, "weight_decay": decay}

    def make_state(
        self, optimizer: torch.optim.Optimizer, tensor: Tensor, step: int, moments: Mapping[str, Tensor] | None
    ) -> None:
        """Give `tensor` the state that the optimizer would have left there after `step` steps; zeros without `moments`."""
        import torch

        state = {name: torch.zeros_like(tensor) for name in self.moments}
        if moments is not None:
            for name, moment in state.items():
                given = moments[name]
                assert given.shape == moment.shape, f"{name} has shape {tuple(given.shape)}, not {tuple(moment.shape)}"
                moment.copy_(given)
        optimizer.state[tensor] = state
        self.set_step(optimizer, tensor, step)

    def set_step(self, optimizer: torch.optim.Optimizer, tensor: Tensor, step: int) -> None:
        """Make the optimizer count `step` steps for `tensor`, where it counts."""
        import torch

        if self.has_step:  # the fused kernels read it where the tensor is, the others on the CPU
            device = tensor.device if optimizer.defaults["fused"] else "cpu"
            optimizer.state[tensor]["step"] = torch.tensor(float(step), dtype=torch.float32, device=device)


_BLOCK = re.compile(r"(?:^|\.)blocks\.\d+\.")


def find_layers(names: Iterable[str]) -> dict[str, int]:
    """The layer of each backbone tensor: 0 is the stem, 1 the first block. Names come in the model's own order.

    A tensor outside of the blocks goes with the block before it: the last norm with the last block.
    """
    layers: dict[str, int] = {}
    blocks: list[str] = []
    for name in names:
        if name.startswith("backbone."):
            layers[name] = len(blocks)
            if found := _BLOCK.search(name):
                block = name[: found.end()]
                if block not in blocks:
                    blocks.append(block)
                layers[name] = blocks.index(block) + 1
    return layers


def may_fuse(groups: Iterable[Group]) -> bool:
    """Whether to take fused kernels: on the CPU their last digit depends on how tensors are cut, so not there for what ZeRO
    cuts. Class centres are the ranks' own, and so large that a step is as slow as memory: one pass instead of ten."""
    return all(tensor.is_cuda or group.get("name") == "centres" for group in groups for tensor in group["params"])


def _adamw_unless_named(value: Any) -> Any:
    """Checked here and not in the union, which would put the name that nobody wrote into each mistake's path."""
    if isinstance(value, Mapping) and "name" not in value:
        from retrieval_train.engine.optimizers.adamw import Config

        return Config.model_validate(value)
    return value


AnyOptimizer = Annotated[
    OptimizerConfig, Chosen("retrieval_train.engine.optimizers"), BeforeValidator(_adamw_unless_named)
]
"""The type of a config's field: `name` chooses the file, adamw where there is none."""
