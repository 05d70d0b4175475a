"""Speed and memory of a training run, for the tracker."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import torch

from retrieval_train.engine.engine import Report

if TYPE_CHECKING:
    from jobs.train import Config
    from retrieval_train.learner import Learner


class Speed:
    """Model FLOPs a second and the peak of memory."""

    def __init__(self, config: Config, learner: Learner) -> None:
        self._world = learner.world

    def of_step(self, report: Report) -> dict[str, float]:
        return {}

    def of_ranks(self, report: Report) -> dict[str, float]:
        """The largest of all ranks. Collective."""
        mine = torch.tensor(_peak_bytes(self._world.device), dtype=torch.float64, device=self._world.device)
        return {"memory_peak_gb": round(float(self._world.max(mine)) / 2**30, 3)}


def _peak_bytes(device: torch.device) -> float:
    """Of GPU memory that torch took, or of a CPU rank's process, since it began."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
