"""What a contestant is asked to build, and the inputs that all of them see. Standard library and torch only.

Legend: B rows of the global batch, N rows of this rank, C classes of this rank, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Generator, Tensor

Step = Callable[[], float]
"""Forward, backward and update; gives the loss."""

MARGIN, SCALE = 0.5, 64.0
"""ArcFace's own (Deng et al., CVPR 2019): radians, and what cosines are multiplied by."""
LR = 1e-3
_PART = 4096


@dataclass(frozen=True)
class Task:
    """One contestant's part in one race."""

    classes: int
    """Of all ranks."""
    dim: int = 512
    batch: int = 256
    """Rows of all ranks."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    sample_rate: float = 1.0
    products: Literal["fp32", "bf16"] = "fp32"
    """Factors of our matrix products."""
    rank: int = 0
    ranks: int = 1
    cores: tuple[int, ...] = ()
    """This rank's CPUs; empty leaves it alone."""
    threads: int = 1
    seed: int = 0

    @property
    def rows(self) -> range:
        """The rows of the global batch that are this rank's."""
        return range(self.batch * self.rank // self.ranks, self.batch * (self.rank + 1) // self.ranks)

    @property
    def counts(self) -> list[int]:
        """Rows of every rank."""
        bounds = [self.batch * rank // self.ranks for rank in range(self.ranks + 1)]
        return [stop - start for start, stop in zip(bounds, bounds[1:], strict=False)]

    @property
    def mine(self) -> range:
        """The classes that are this rank's."""
        return range(self.classes * self.rank // self.ranks, self.classes * (self.rank + 1) // self.ranks)


def embeddings(task: Task) -> Tensor:
    """(N, D), a leaf: this rank's rows."""
    import torch

    emb_BD = torch.randn(task.batch, task.dim, generator=_generator(task, 1))
    return emb_BD[task.rows.start : task.rows.stop].clone().requires_grad_()


def labels(task: Task) -> Iterator[Tensor]:
    """(B,) of every step, without end: each has its own, so that a sample of the classes is another every time."""
    import torch

    generator = _generator(task, 2)
    while True:
        yield torch.randint(task.classes, (task.batch,), generator=generator)


def fill_centres(centre_CD: Tensor, task: Task) -> None:
    """This rank's centres, in place: the same for every contestant, and no second table."""
    import torch

    generator = _generator(task, 3 + task.rank)
    for part_cD in centre_CD.split(_PART):
        part_cD.copy_(torch.randn(part_cD.shape, generator=generator))


def _generator(task: Task, which: int) -> Generator:
    import torch

    return torch.Generator().manual_seed(task.seed * 1_000_003 + which)
