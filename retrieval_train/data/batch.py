"""What the loader hands to the learner: the rows of one (micro-)batch that this rank reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """N rows of this rank out of the B rows that all ranks read at this step. N may differ between ranks."""

    image_NCHW: Tensor
    """uint8 RGB; the embedder normalises."""
    label_N: Tensor
    """int64 class ids of the run's joint label space (data/labels.py)."""
    counts: tuple[int, ...]
    """The rows of every rank in this micro-batch, in rank order."""
    weight: float
    """This micro-batch's share of the rows of the global batch: 1 without gradient accumulation."""
    wait_s: float = 0.0
    """How long the step waited for these rows."""

    def pin_memory(self) -> Batch:
        """torch's loader looks for this name: page-locked rows reach the GPU while it computes."""
        return replace(self, image_NCHW=self.image_NCHW.pin_memory(), label_N=self.label_N.pin_memory())

    def to(self, device: torch.device) -> Batch:
        image, label = self.image_NCHW.to(device, non_blocking=True), self.label_N.to(device, non_blocking=True)
        return replace(self, image_NCHW=image, label_N=label)
