"""What a rank holds in memory, by arithmetic alone: before a run is submitted, and in words when the memory did not suffice.

Bytes for P trained and F frozen parameters on W ranks. ZeRO's docs count what must be held; here is what DeepSpeed 0.19
holds (`zero/stage_1_and_2.py`, `zero/stage3.py`), k moments a parameter, w bytes a weight:

    stage       weights       float32 copy     moments      gradients    while updating
    0           w (P + F)     0, if w < 4 4P   4kP          wP           wP: the bucket in which all are summed
    1           w (P + F)     4P / W           4kP / W      wP           4P / W: this rank's share, copied
    2           w (P + F)     4P / W           4kP / W      wP / W       4P / W
    3           w (P + F)/W   4P / W           4kP / W      wP / W       4P / W

One group of parameters is taken to be nearly all: ZeRO updates group by group. Not in it: activations, a travelling tensor or
two, and the allocator's own loss.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

Stage = Literal[0, 1, 2, 3]
Place = Literal["device", "cpu", "nvme"]

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Load:
    """What is asked of the ranks. A planner fills it from a config, a run from what it built."""

    trained: int
    """Parameters of the embedder that are trained."""
    frozen: int = 0
    """Those that are not."""
    ranks: int = 1
    """World size."""
    stage: Stage = 0
    """ZeRO stage; the plain engine holds what stage 0 holds."""
    weight_bytes: Literal[2, 4] = 4
    """2: weights and gradients in 16 bits, with float32 copies; 4: float32 (autocast changes nothing here)."""
    moments: int = 2
    """What the optimizer keeps beside each parameter: 2 Adam and LAMB, 1 Lion and SGD with momentum, 0 SGD."""
    optimizer: Place = "device"
    """Where ZeRO keeps the float32 copy, its gradients and the moments (stage 1 and up)."""
    weights: Place = "device"
    """Where ZeRO 3 keeps this rank's part of the weights."""
    bucket_bytes: int = 0
    """ZeRO's buffer in which gradients travel (twice that where communication overlaps at stages 1 and 2)."""
    max_live: int = 10**9
    """Parameters that ZeRO 3 may keep whole between their uses: below it, the whole model is there after a forward."""
    classes: int = 0
    """Class centres of all ranks, each counted once."""
    nodes: int = 1
    """Nodes that hold all of them each, and compare them with the rows of their own ranks; 1: all ranks share them."""
    sub_centres: int = 1
    """Centres of a class."""
    dim: int = 0
    """Dimensions of an embedding."""
    rows: int = 0
    """Rows of the global batch."""
    accumulate: int = 1
    """Micro-batches that make one step."""
    sample_rate: float = 1.0
    """Share of the classes that a step compares with; those of its images, which come on top, are taken to be few."""
    logits_mb: int = 2048
    """Logits of this rank that are kept from forward to backward, in MiB; what does not fit is computed again."""
    block_mb: float = 256
    """Logits that are computed at once: 256 MiB on a GPU, 2 on the CPU."""

    @property
    def rows_at_once(self) -> int:
        """Rows of the largest micro-batch of a rank: its activations are in memory together."""
        return -(-self.rows // (self.ranks * self.accumulate))


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, on its device but for `host`."""

    weights: int
    """As the forward uses them, trained and frozen."""
    float32_copy: int
    """ZeRO's own copy of the trained weights, which the optimizer steps."""
    moments: int
    gradients: int
    updating: int
    """A second copy of gradients, only while they are summed and stepped: the embedder's, or those of centres over nodes."""
    gathered: int
    """Weights of other ranks, only from forward to backward (stage 3)."""
    buckets: int
    centres: int
    """This rank's class centres with gradient and moments; of sampled classes also the copy that is compared with."""
    logits: int
    """Of one micro-batch against this rank's classes, where they are kept, and a block or two; with micro-batches also
    the gradient that is added to that of those before. Only from forward to backward."""
    host: int
    """What was offloaded, in the host's memory; pinned buffers for NVMe are not counted."""

    @property
    def held(self) -> int:
        """What is there in every phase of a step."""
        return self.weights + self.float32_copy + self.moments + self.gradients + self.buckets + self.centres

    @property
    def total(self) -> int:
        """The most at a time, without activations: what only the forward needs is gone when the update begins."""
        return self.held + max(self.gathered + self.logits, self.updating)


def memory_of(load: Load) -> Memory:
    """Raises ValueError for an offload that the stage does not have."""
    _check(load)
    share = _ceil(load.trained, load.ranks if load.stage >= 1 else 1)
    weights = load.weight_bytes * (load.trained + load.frozen)
    is_split, is_offloaded = load.stage == 3, load.optimizer != "device"
    float32_copy = 4 * share if load.stage >= 1 or load.weight_bytes < 4 else 0
    moments = 4 * load.moments * share
    gradients = load.weight_bytes * (share if load.stage >= 2 else load.trained)
    updating = 4 * share if load.stage >= 1 else gradients
    gathered = min(weights, load.weight_bytes * load.max_live) if is_split and load.ranks > 1 else 0
    weights = _ceil(weights, load.ranks) if is_split else weights
    host = 0
    if is_offloaded:
        in_cpu = float32_copy + moments + 4 * share if load.optimizer == "cpu" else 0
        host += in_cpu + load.weight_bytes * share  # stages 1, 2: what goes back to the device; 3: gradients that come
        gradients = 0 if load.stage >= 2 else gradients
        float32_copy = moments = updating = 0
    if load.weights != "device":
        host += weights if load.weights == "cpu" else 0
        weights = 0
    centres, logits, summed = _of_head(load)
    return Memory(
        weights=weights,
        float32_copy=float32_copy,
        moments=moments,
        gradients=gradients,
        updating=max(updating, summed),
        gathered=gathered,
        buckets=load.bucket_bytes if load.stage >= 1 else 0,
        centres=centres,
        logits=logits,
        host=host,
    )


def _of_head(load: Load) -> tuple[int, int, int]:
    """`centres`, `logits`, and the gradient's copy while nodes sum it."""
    classes = _ceil(load.classes, load.ranks // load.nodes)
    table = 4 * classes * load.sub_centres * load.dim
    sampled, is_sampled = int(table * load.sample_rate), load.sample_rate < 1
    # a sample is copied; that of each micro-batch stays until the step
    gradients = 2 * sampled * load.accumulate if is_sampled else table
    compared = _ceil(load.rows, load.accumulate * load.nodes) * int(classes * load.sample_rate)
    kept = 4 * compared if 4 * compared <= load.logits_mb * MIB else 0
    choices = compared if kept and load.sub_centres > 1 else 0  # a byte that says which sub-centre is the nearest
    block = min(4 * compared * load.sub_centres, int(load.block_mb * MIB)) * (
        1 if kept else 2
    )  # the last one and the next
    added = table if load.accumulate > 1 and not is_sampled else 0
    return table * (1 + load.moments) + gradients, kept + choices + block + added, table if load.nodes > 1 else 0


def _check(load: Load) -> None:
    for name in ("trained", "frozen", "classes", "rows", "moments", "bucket_bytes"):
        if getattr(load, name) < 0:
            raise ValueError(f"{name} {getattr(load, name)} is negative")
    if load.ranks < 1 or load.accumulate < 1:
        raise ValueError(f"{load.ranks} ranks and {load.accumulate} micro-batches: both are at least 1")
    if load.nodes < 1 or load.ranks % load.nodes:
        raise ValueError(f"{load.ranks} ranks on {load.nodes} nodes: every node has as many")
    if load.optimizer != "device" and load.stage == 0:
        raise ValueError(f"optimizer on {load.optimizer} at stage 0: ZeRO offloads it at stages 1, 2 and 3")
    if load.weights != "device" and load.stage != 3:
        raise ValueError(f"weights on {load.weights} at stage {load.stage}: ZeRO offloads them at stage 3 only")


def _ceil(count: int, parts: int) -> int:
    return -(-count // parts)


def in_gib(memory: Memory) -> str:
    """The parts that are there, in words."""
    parts = [(field.name.replace("_", " "), getattr(memory, field.name)) for field in fields(memory)]
    return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts if size > 0 and name != "host") + " GiB"
