"""Steps and stores the class centres of this rank: the half of a step that is sharded by class and not ZeRO's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retrieval_train.engine import checkpoint
from retrieval_train.engine.params import MOMENTS, Optimizer, set_lr, squared_norm
from retrieval_train.heads.centres import Head
from retrieval_train.rundir import write_names
from retrieval_train.world import World


class CentreStep:
    """Every rank owns its rows, so nothing is averaged; only the norm is summed over the ranks."""

    def __init__(self, head: Head, optimizer: Optimizer, world: World) -> None:
        self._head = head
        self._world = world
        self._optimizer = optimizer.build([optimizer.head_group(head)])

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
            if parameter.grad is not None and clip_factor < 1:
                parameter.grad.mul_(clip_factor)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def save(self, folder: Path) -> None:
        """Write this rank's part."""
        centre = self._head.centre_CKD
        moments: dict[str, Any] = self._optimizer.state.get(centre, {})
        tensors = {"centre": centre} | {name: moments.get(name, torch.zeros_like(centre)) for name in MOMENTS}
        checkpoint.write_tensors(folder / f"centres-{self._world.rank:05d}.safetensors", tensors)
        write_names(folder / f"classes-{self._world.rank:05d}.txt", self._head.class_names)

    def load(self, folder: Path, *, updates: int) -> None:
        """Take this rank's classes from whichever parts hold them. Raises CheckpointError for a class in none."""
        found = checkpoint.read_centres(folder, self._head.class_names)
        lacking = self._head.take(found.get("centre", {}))
        if lacking:
            few = ", ".join(lacking[:3])
            raise checkpoint.CheckpointError(
                f"{folder} has no centres for {len(lacking)} of the classes ({few} ...); "
                "were classes added since? start a new run with `init.model` set to this run's export"
            )
        centre = self._head.centre_CKD
        state: dict[str, Any] = {"step": torch.tensor(float(updates))}
        for name in MOMENTS:
            rows = [found[name][class_name] for class_name in self._head.class_names]
            state[name] = torch.stack(rows).to(centre)
        self._optimizer.state[centre] = state
