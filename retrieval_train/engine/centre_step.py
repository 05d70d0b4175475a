"""Steps and stores the class centres of this rank: the half of a step that is sharded by class and not ZeRO's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from retrieval_train.engine import checkpoint
from retrieval_train.engine.params import set_lr, squared_norm
from retrieval_train.engine.state_file import CheckpointError
from retrieval_train.heads.centres import Head
from retrieval_train.world import World

if TYPE_CHECKING:
    from retrieval_train.engine.optimizers.optimizer import OptimizerConfig


class CentreStep:
    """Every rank owns its rows, so nothing is averaged; only the norm is summed over the ranks."""

    def __init__(self, head: Head, optimizer: OptimizerConfig, world: World) -> None:
        self._head = head
        self._world = world
        self._config = optimizer
        self._optimizer = optimizer.build([optimizer.head_group(head)])
        optimizer.make_state(self._optimizer, head.centre_CKD, step=0, moments=None)

    @property
    def lr(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def squared_norm(self, *, scale: float = 1.0) -> Tensor:
        """The sum of squared gradients over all ranks' centres, after they were divided by `scale`. Collective."""
        for parameter in self._head.parameters():
            if parameter.grad is not None and scale != 1.0:
                parameter.grad.div_(scale)
        mine = squared_norm(parameter.grad for parameter in self._head.parameters())
        return self._world.sum(mine.to(self._world.device))

    def step(self, *, lr_factor: float, clip_factor: float) -> None:
        set_lr(self._optimizer, lr_factor)
        for parameter in self._head.parameters():
            if parameter.grad is not None and clip_factor != 1:
                parameter.grad.mul_(clip_factor)
        self._optimizer.step()
        self.forget()

    def forget(self) -> None:
        """Drop the gradients: this step is left out."""
        self._optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The centres of this rank and their moments, for a checkpoint."""
        centre = self._head.centre_CKD
        kept = self._optimizer.state[centre]
        return {"centre": centre.detach()} | {kind: kept[kind] for kind in self._config.moments}

    def load(self, folder: Path, *, updates: int) -> None:
        """Take this rank's classes from whichever parts hold them. Raises CheckpointError for a class in none."""
        names = self._head.class_names
        found = checkpoint.read_centres(folder, names)
        lacking = self._head.take(found.get("centre", {}))
        if lacking:
            few = ", ".join(lacking[:3])
            raise CheckpointError(
                f"{folder} has no centres for {len(lacking)} of the classes ({few} ...); "
                "were classes added since? start a new run with `init.model` set to this run's export"
            )
        centre = self._head.centre_CKD
        moments = None
        if updates:
            rows = {kind: [found[kind][name] for name in names] for kind in self._config.moments}
            moments = {kind: torch.stack(tables).to(centre) for kind, tables in rows.items()}
        self._config.make_state(self._optimizer, centre, step=updates, moments=moments)
