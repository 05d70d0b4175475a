"""Speed and memory of a training run, for the tracker; the machine, for the log."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from jobs.failure import Kind
from retrieval_train.engine.flops import ImageFlops, head_flops, peak_flops, utilisation
from retrieval_train.engine.memory import Load
from retrieval_train.engine.shortage import out_of_memory_words
from retrieval_train.engine.stragglers import clock_skew_s, host_facts

if TYPE_CHECKING:
    from jobs.train import Config
    from retrieval_train.engine.engine import Precision, Report
    from retrieval_train.heads.centres import Head
    from retrieval_train.learner import Learner
    from retrieval_train.world import World

log = logging.getLogger(__name__)


class Speed:
    """Model FLOPs a second of this rank, over its device's peak where that is known, and the peak of memory."""

    def __init__(self, learner: Learner, flops_of_px: Mapping[int, ImageFlops], precision: Precision) -> None:
        self._learner, self._world, self._flops_of_px = learner, learner.world, flops_of_px
        device = learner.world.device
        self._peak = peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None

    def of_step(self, report: Report) -> dict[str, float]:
        flops = self._flops_of_px[report.image_px].training * report.rows
        for head in self._learner.heads.values():
            classes, sub_centres, dim = head.centre_CKD.shape
            share = head.rule.sample_rate / _nodes_of(head)  # a node's classes meet the rows of that node
            flops += share * head_flops(rows=report.images, classes=classes, sub_centres=sub_centres, dim=dim)
        elapsed_s = report.step_s + report.wait_s
        used = utilisation(flops, elapsed_s, self._peak)
        return {"tflops_rank": round(flops / elapsed_s / 1e12, 4)} | ({} if used is None else {"mfu": round(used, 4)})

    def of_ranks(self, report: Report) -> dict[str, float]:
        """The largest of all ranks. Collective."""
        mine = torch.tensor(peak_bytes(self._world.device), dtype=torch.float64, device=self._world.device)
        return {"memory_peak_gb": round(float(self._world.max(mine)) / 2**30, 3)}


def peak_bytes(device: torch.device) -> float:
    """Of GPU memory that torch took, or of a CPU rank's process, since it began."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def load_of(config: Config, learner: Learner) -> Load:
    """What is asked of each rank's memory; of several heads the largest counts. Call it before the engine wraps the
    embedder."""
    engine, parameters = config.engine, list(learner.embedder.parameters())
    head = max(learner.heads.values(), key=lambda head: head.num_classes * head.centre_CKD[0].numel(), default=None)
    return Load(
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        frozen=sum(p.numel() for p in parameters if not p.requires_grad),
        ranks=learner.world.size,
        moments=len(config.optimizer.moments),
        rows=config.data.batch,
        accumulate=engine.accumulate,
        **(_of_head(head) if head is not None else {}),
        **engine.memory(on_gpu=learner.world.device.type == "cuda"),
    )


def _of_head(head: Head) -> dict[str, Any]:
    sub_centres, dim = head.centre_CKD.shape[1:]
    return {
        "classes": head.num_classes,
        "sub_centres": sub_centres,
        "dim": dim,
        "sample_rate": head.rule.sample_rate,
        "logits_mb": head.rule.logits_mb,
        "block_mb": head.block_mb,
        "nodes": _nodes_of(head),
    }


def _nodes_of(head: Head) -> int:
    """Nodes that have all class centres each; 1 where all ranks share them."""
    return head.nodes.size if head.nodes is not None else 1


class OutOfMemory(ValueError):
    """What was held, and the settings that would fit."""

    failure: ClassVar[Kind] = "out_of_memory"


@contextlib.contextmanager
def memory_told(load: Load, config: Config, world: World) -> Iterator[None]:
    """An out-of-memory error of the block in words for its user."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        words = out_of_memory_words(
            error,
            load=load,
            rank=world.rank,
            engine=config.engine.name,
            is_checkpointing=config.engine.checkpoint_activations,
            allocated=int(peak_bytes(world.device)),
            capacity=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),  # a GPU's own error says its own
        )
        if words is None:
            raise
        raise OutOfMemory(words) from error


def tell_machine(world: World) -> None:
    """Each rank's machine into its log, and a warning where the clocks differ. Collective."""
    log.info("machine: %s", ", ".join(f"{name} {value}" for name, value in host_facts().items()))
    clock_skew_s(world)
