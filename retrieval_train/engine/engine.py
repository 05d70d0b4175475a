"""The engine protocol: the only owner of gradients. Nobody else calls backward, clips or steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field

from retrieval_train.config import Section

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.data.batch import Batch
    from retrieval_train.engine.params import Optimizer
    from retrieval_train.engine.schedule import Schedule
    from retrieval_train.learner import Learner


@dataclass(frozen=True)
class Report:
    """The figures of one step, the same on every rank but for times."""

    step: int
    """Steps done, this one included."""
    loss: float
    lr: float
    grad_norm: float
    """Over all parameters, each counted once, before clipping."""
    images: int
    """Rows of the global batch."""
    step_s: float
    wait_s: float
    """How long this rank waited for its rows."""
    image_px: int
    """Side of the images."""
    loss_of_domain: dict[str, float] = field(default_factory=dict)
    """The mean loss of every domain that had rows."""

    @classmethod
    def of(cls, micro_batches: Sequence[Batch], **figures: Any) -> Report:
        """The figures of a step over these micro-batches, which know its rows and the wait for them."""
        images = sum(sum(batch.counts) for batch in micro_batches)
        wait_s, image_px = sum(batch.wait_s for batch in micro_batches), micro_batches[0].image_NCHW.shape[-1]
        return cls(images=images, wait_s=wait_s, image_px=image_px, **figures)


class NotFinite(Exception):
    """The loss or a gradient is not a finite number: nothing was stepped."""


class Engine(Protocol):
    step: int

    def train_step(self, micro_batches: Sequence[Batch]) -> Report: ...

    def save(self, folder: Path, extra: dict[str, Any]) -> None:
        """Write the whole training state into `folder`, which is there and empty. Collective."""
        ...

    def load(self, folder: Path) -> dict[str, Any]:
        """Take the state back, whatever stage and world size wrote it; the `extra` that was saved. Collective."""
        ...

    def trained_weights(self) -> dict[str, Tensor]:
        """The embedder's trained tensors, whole and float32, on rank 0's CPU; else {}. Collective."""
        ...

    def close(self) -> None: ...


class EngineConfig(Section):
    """Base of all engines."""

    name: str
    """The engine: the name of a file in engine/."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products in bfloat16 by autocast; weights, gradients and the class centres stay float32."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm, taken over all parameters of all ranks; 0 never clips."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches that make one step."""

    @abstractmethod
    def build(self, learner: Learner, optimizer: Optimizer, schedule: Schedule, *, seed: int) -> Engine: ...
