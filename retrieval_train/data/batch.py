"""What the loader hands to the learner: the rows of one (micro-)batch that this rank reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bad:
    """A sample that could not be read; another one took its row."""

    step: int
    row: int
    """Of the global batch."""
    set: str
    shard: str
    place: int
    """Row of the shard."""
    reason: str
    stream: int = 0
    """0: of the labelled rows, 1: of the unlabelled ones."""


@dataclass(frozen=True)
class Batch:
    """N rows of this rank out of the B rows that all ranks read at this step. N may differ between ranks."""

    image_NCHW: Tensor
    """uint8 RGB; the embedder normalises."""
    label_N: Tensor
    """int64 class ids of the run's joint label space (data/labels.py), the least of an image with several; -1: none."""
    counts: tuple[int, ...]
    """The rows of every rank in this micro-batch, in rank order."""
    weight: float
    """This micro-batch's share of the rows of the global batch: 1 without gradient accumulation."""
    domain_N: Tensor | None = None
    """int64 positions in the run's domains; of `unlabelled` rows, in those of their own mixture."""
    strong_NCHW: Tensor | None = None
    """The same images augmented strongly, where `data.strong` asks for a second view."""
    pair_row_P: Tensor | None = None
    """int64 rows of this rank's rows, ascending, one entry for each label of each row, in a run where images of any set have
    several; None where all images have one label, and of `unlabelled` rows."""
    pair_class_P: Tensor | None = None
    """int64 class ids of the same label space, beside `pair_row_P`, ascending within a row."""
    unlabelled: Batch | None = None
    """Rows without labels that come along, where `data.unlabelled` asks for them."""
    wait_s: float = 0.0
    """How long the step waited for these rows."""
    read_s: float = 0.0
    """How long workers read them ..."""
    decode_s: float = 0.0
    """... and decoded and augmented them, in seconds of one core."""
    row_N: tuple[int, ...] = ()
    """Their rows of the global batch; `unlabelled` rows have a global batch of their own, which counts from 0 too."""
    key_N: tuple[str, ...] = ()
    """The keys of their samples; empty texts for images that data.cache_gb keeps, unless data.ledger asks for them."""
    bad: tuple[Bad, ...] = ()
    """Samples that were to be in these rows and could not be read."""

    def to(self, device: torch.device) -> Batch:
        moved = {
            name: tensor.to(device, non_blocking=True)
            for name in ("image_NCHW", "label_N", "domain_N", "strong_NCHW", "pair_row_P", "pair_class_P")
            if (tensor := getattr(self, name)) is not None
        }
        unlabelled = self.unlabelled.to(device) if self.unlabelled else None
        return replace(self, **moved, unlabelled=unlabelled)
