"""The engine protocol: the only owner of gradients. Nobody else calls backward, clips or steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field

from retrieval_train.config import Section, place

if TYPE_CHECKING:
    from torch import Tensor, nn

    from retrieval_train.data.batch import Batch
    from retrieval_train.engine.optimizers.optimizer import OptimizerConfig
    from retrieval_train.engine.schedule import Rates
    from retrieval_train.engine.snapshot import Snapshot
    from retrieval_train.learner import Learner

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Report:
    """The figures of one step, the same on every rank but for times."""

    step: int
    """Steps done, this one included."""
    loss: float
    lr_of_group: dict[str, float]
    """The learning rate of every parameter group, the class centres included."""
    grad_norm: float
    """Over all parameters, each counted once, before clipping."""
    images: int
    """Rows of the global batch ..."""
    rows: int
    """Images of this rank that went through the embedder: second views and images without labels too."""
    step_s: float
    """How long the step took, without the wait for its rows."""
    wait_s: float
    """How long this rank waited for its rows."""
    forward_s: float
    """Parts of `step_s`: the forward, collectives included; on a GPU how long it took to be queued."""
    backward_s: float
    update_s: float
    embed_s: float
    """The part of `forward_s` that is this rank's own images through the embedder: no rank waits for another in it, but under
    ZeRO 3, where weights come from all of them."""
    image_px: int
    """Side of the images."""
    loss_of_domain: dict[str, float] = field(default_factory=dict)
    """The mean of the main loss of every domain that had rows."""
    loss_of_term: dict[str, float] = field(default_factory=dict)
    """Each loss without its weight, where there are several."""
    skipped: str = ""
    """Why nothing was stepped: "loss", "gradient" or "overflow" (of fp16, which mends itself); empty: it was."""
    loss_scale: float | None = None
    """Of fp16."""

    @property
    def lr(self) -> float:
        """The largest of the embedder's groups."""
        return max(lr for name, lr in self.lr_of_group.items() if name != "centres")


class Engine(Protocol):
    step: int
    """Steps done, those left out included: where the order of samples stands."""
    lr_scale: float
    """Multiplies every learning rate; lowered after a roll-back."""

    def train_step(self, micro_batches: Sequence[Batch]) -> Report: ...

    def snapshot(self, extra: dict[str, Any]) -> Snapshot:
        """This rank's share of the whole training state, copied to the CPU: training may go on. Collective."""
        ...

    def load(self, folder: Path, *, new_classes: bool = False) -> dict[str, Any]:
        """Take the state back, whatever stage and world size wrote it; the `extra` that was saved. Collective.

        A class that it has no centre of is an error, but with `new_classes`: then that centre stays what it is.
        """
        ...

    def embedding(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """The embedder as it stands, for evaluation: uint8 (N, 3, H, W) on the rank's device -> (N, D).

        Ranks may embed different numbers of batches inside the block; its end is collective.
        """
        ...

    def replicated(self) -> Mapping[str, Tensor]:
        """Tensors that must be equal, bit by bit, on all ranks."""
        ...

    def close(self) -> None: ...


class EngineConfig(Section):
    """Base of all engines."""

    name: str
    """The engine: the name of a file in engine/."""
    precision: Precision = "fp32"
    """bf16, fp16: matrix products in 16 bits by autocast; weights, gradients and the class centres stay float32."""
    loss_scale: float | None = Field(default=None, gt=0)
    """fp16 only: multiplies the loss so that small gradients survive; null finds it: halved at an overflow, doubled
    after 2,000 good steps."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm, taken over all parameters of all ranks; 0 never clips."""
    accumulate: int = Field(default=1, ge=1, json_schema_extra=place())
    """Micro-batches that make one step."""
    checkpoint_activations: bool = Field(default=False, json_schema_extra=place())
    """Compute each block's activations again in the backward instead of keeping them: about a third more time for a
    fraction of the memory."""
    compile: bool = Field(default=False, json_schema_extra=place())
    """torch.compile each block: slower start, faster steps on GPUs."""

    @abstractmethod
    def build(self, learner: Learner, optimizer: OptimizerConfig, schedule: Rates, *, seed: int) -> Engine: ...

    def prepare(self, embedder: nn.Module) -> None:
        """Before an engine wraps it."""
        embedder.precision = self.precision  # type: ignore[assignment]
        if self.checkpoint_activations:
            embedder.checkpoint_activations()  # type: ignore[operator]
        if self.compile:
            embedder.compile_blocks()  # type: ignore[operator]

    def memory(self, *, on_gpu: bool) -> dict[str, Any]:
        """What `memory.Load` wants to know of the engine."""
        return {}

    def problems(self) -> list[tuple[str, str]]:
        """What of the outside world does not fit: (key, what to do)."""
        if self.loss_scale is not None and self.precision != "fp16":
            return [("loss_scale", f"is for precision fp16, this is {self.precision}; leave it out")]
        return []
