"""Steps and stores the class centres of this rank: the half of a step that is sharded by class and not ZeRO's.

Every head has a table and an optimizer. Where classes are sampled, a step touches their rows and their moments only: they
are taken out of the table, stepped as a small tensor and put back, so that it costs what the sample costs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from retrieval_train.engine import checkpoint
from retrieval_train.engine.params import set_lr, squared_norm
from retrieval_train.engine.state_file import CheckpointError
from retrieval_train.heads.centres import Head
from retrieval_train.learner import dotted

if TYPE_CHECKING:
    from retrieval_train.engine.optimizers.optimizer import OptimizerConfig

log = logging.getLogger(__name__)


class CentreStep:
    """Every rank owns its rows, so nothing is averaged; only the norm is summed over the ranks."""

    def __init__(self, heads: Mapping[str, Head], optimizer: OptimizerConfig) -> None:
        self._tables = {name: Table(head, optimizer) for name, head in heads.items()}

    def lr_of_group(self) -> dict[str, float]:
        """One learning rate for all heads; nothing where there is none."""
        found = [float(table.optimizer.param_groups[0]["lr"]) for table in self._tables.values()]
        return {"centres": found[0]} if found else {}

    def squared_norm(self, *, scale: float = 1.0) -> Tensor:
        """The sum of squared gradients over all ranks' centres, after they were divided by `scale`. Collective."""
        total = torch.zeros(())
        for table in self._tables.values():
            head, mine = table.head, table.collect(scale)
            squared = head.world.sum(mine.to(head.world.device))
            if head.nodes is not None:
                # each node clips and steps a copy of its own: sums that differ in rounding would drive the copies apart
                squared = head.nodes.max(squared)
            total = total + squared.to(total)
        return total

    def step(self, *, lr_factor: float, clip_factor: float) -> None:
        for table in self._tables.values():
            table.step(lr_factor=lr_factor, clip_factor=clip_factor)
        self.forget()

    def forget(self) -> None:
        """Drop the gradients: this step is left out."""
        for table in self._tables.values():
            table.forget()

    def tensors(self) -> dict[str, Tensor]:
        """The centres of this rank and their moments, for a checkpoint; nothing where another node has the same."""
        found: dict[str, Tensor] = {}
        for name, table in self._tables.items():
            if table.head.nodes is None or table.head.nodes.rank == 0:
                found |= {dotted(name, kind): tensor for kind, tensor in table.tensors().items()}
        return found

    @property
    def class_names(self) -> list[str]:
        """Of the rows of `tensors`."""
        return next((table.head.class_names for table in self._tables.values()), []) if self.tensors() else []

    def load(self, folder: Path, *, updates: int, new_classes: bool = False) -> None:
        """Take this rank's classes from whichever parts hold them. Collective.

        Raises CheckpointError for a class in none of them, on all ranks; with `new_classes` only where all are.
        """
        if not self._tables:
            return
        head = next(iter(self._tables.values())).head
        if new_classes:
            _tell_changed(folder, head)
        found = checkpoint.read_centres(folder, head.class_names)
        for prefix, table in self._tables.items():
            start = dotted(prefix, "")
            mine = {kind[len(start) :]: rows for kind, rows in found.items() if kind.startswith(start)}
            if new_classes and not table.head.world.any("centre" in mine):
                told = f"head '{prefix}'" if prefix else "the main head"
                log.warning("%s has no centres of %s: all begin at random", folder, told)
            table.load(folder, mine, updates=updates, new_classes=new_classes)


class Table:
    """The centres of one head under an optimizer."""

    def __init__(self, head: Head, config: OptimizerConfig) -> None:
        self.head, self._config = head, config
        self.optimizer = config.build([config.head_group(head)])
        config.make_state(self.optimizer, head.centre_CKD, step=0, moments=None)
        self._row_R: Tensor | None = None
        self._leaf: Tensor = head.centre_CKD
        """What has this step's gradient: the whole table, or its sampled rows."""

    def collect(self, scale: float) -> Tensor:
        """Bring the micro-batches' gradients together, over `scale`; the sum of their squares on this rank."""
        head = self.head
        self._row_R, self._leaf = _merged(head.sampled) if head.sampled else (None, head.centre_CKD)
        head.sampled = []
        grad = self._leaf.grad
        if grad is not None and head.nodes is not None:  # never with sampled rows: nodes would have sampled others
            grad = self._leaf.grad = head.nodes.sum(grad)
        if grad is not None and scale != 1.0:
            grad.div_(scale)
        return squared_norm([grad])

    def step(self, *, lr_factor: float, clip_factor: float) -> None:
        set_lr(self.optimizer, lr_factor)
        if self._leaf.grad is not None and clip_factor != 1:
            self._leaf.grad.mul_(clip_factor)
        if self._row_R is None:
            self.optimizer.step()
        else:
            self._step_rows(self._row_R)

    def _step_rows(self, row_R: Tensor) -> None:
        centre, leaf, optimizer = self.head.centre_CKD, self._leaf, self.optimizer
        whole = optimizer.state.pop(centre)
        optimizer.state[leaf] = dict(whole) | {kind: whole[kind][row_R] for kind in self._config.moments}
        optimizer.param_groups[0]["params"] = [leaf]
        optimizer.step()
        stepped = optimizer.state.pop(leaf)
        for kind in self._config.moments:
            whole[kind][row_R] = stepped.pop(kind)
        optimizer.param_groups[0]["params"] = [centre]
        optimizer.state[centre] = stepped | {kind: whole[kind] for kind in self._config.moments}
        with torch.no_grad():
            centre[row_R] = leaf

    def forget(self) -> None:
        self.head.sampled = []
        self._row_R, self._leaf = None, self.head.centre_CKD
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        centre = self.head.centre_CKD
        kept = self.optimizer.state[centre]
        return {"centre": centre.detach()} | {kind: kept[kind] for kind in self._config.moments}

    def load(
        self, folder: Path, found: Mapping[str, Mapping[str, Tensor]], *, updates: int, new_classes: bool = False
    ) -> None:
        """With `new_classes` those that nobody stored keep the centres that they have; their moments are zero."""
        rows = found.get("centre", {})
        lacking = self.head.take(rows)
        if not new_classes:
            _refuse(folder, lacking, self.head)
        centre, names = self.head.centre_CKD, self.head.class_names
        moments = None
        if updates:
            zero = torch.zeros(centre.shape[1:])
            of_kind = {
                kind: [found[kind][name] if name in rows else zero for name in names] for kind in self._config.moments
            }
            moments = {kind: torch.stack(tables).to(centre) for kind, tables in of_kind.items()}
        self._config.make_state(self.optimizer, centre, step=updates, moments=moments)


def _refuse(folder: Path, lacking: list[str], head: Head) -> None:
    """Raises CheckpointError on all ranks where any lacks classes."""
    if total := sum(head.world.every(len(lacking))):
        few = ", ".join([name for names in head.world.every(lacking[:3]) for name in names][:3])
        raise CheckpointError(
            f"{folder} has no centres for {total} of the classes ({few} ...); were classes added since? go on from it in a "
            "run of its own, with --continue-from and --force-config"
        )


def _tell_changed(folder: Path, head: Head) -> None:
    """Which classes came and went. Raises CheckpointError, on all ranks, where no class stayed."""
    stored = checkpoint.centre_names(folder)
    if not stored:
        return
    known = set(stored)
    new = [name for names in head.world.every([n for n in head.class_names if n not in known]) for name in names]
    few, gone = ", ".join(new[:3]), len(stored) - (head.num_classes - len(new))
    if len(new) == head.num_classes:
        raise CheckpointError(
            f"{folder} has centres of {len(stored)} classes ({', '.join(sorted(stored)[:3])} ...) and none of the {len(new)} "
            f"here ({few} ...): a class is known by its name, domain/label; begin a new run from that one's export, with "
            "init.model and init.centres=none"
        )
    if gone:
        log.warning("%s: %d of its classes are gone, and their centres with them", folder, gone)
    if new:
        log.warning("%d classes are new (%s ...): centres begin at random, moments at zero", len(new), few)


def _merged(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The sampled rows of all micro-batches, and one leaf with the sum of their gradients."""
    if len(parts) == 1:
        return parts[0]
    row_R = torch.cat([row for row, _ in parts]).unique()
    leaf = parts[0][1].new_empty(len(row_R), *parts[0][1].shape[1:])
    grad = torch.zeros_like(leaf)
    for row, part in parts:
        place = torch.searchsorted(row_R, row)
        leaf[place] = part.detach()
        if part.grad is not None:
            grad.index_add_(0, place, part.grad)
    leaf.grad = grad
    return row_R, leaf
