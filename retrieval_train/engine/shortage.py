"""Out of memory in words: what was asked for, what the rank holds by the estimate, and two settings that would fit.

The estimate (`memory`) knows all but the activations: those are the rest of what was in use, and proportional to the
rows that are in memory at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from retrieval_train.engine.memory import GIB, Load, in_gib, memory_of

CHECKPOINTED = 0.25
"""Assumed share of the activations that is left when each block keeps its input alone and computes the rest again: of n
blocks with m tensors each, 1/m + 1/n (Chen et al., 2016). That is 0.11 at n = 24, m = 15, and what is outside the blocks
stays."""

HEADROOM = 0.8
"""A change must fit into this share: the allocation failed on the way, and what would have come after it is not known."""

_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_KINDS = r"out of memory|can't allocate memory|cannot allocate memory|unable to allocate|CUBLAS_STATUS_ALLOC_FAILED"


@dataclass(frozen=True)
class Shortage:
    """What a failed allocation says, in bytes; None: it does not say."""

    asked: int | None = None
    allocated: int | None = None
    """By this process's tensors, before."""
    capacity: int | None = None
    """Of the device."""

    @classmethod
    def of(cls, error: BaseException) -> Shortage | None:
        """None: the error is of another kind. Knows those of torch on GPUs and on the CPU, of Python and of numpy."""
        text = str(error)
        is_torchs = isinstance(error, RuntimeError) and re.search(_KINDS, text, re.IGNORECASE)
        if not is_torchs and not isinstance(error, MemoryError):
            return None
        size = r"([\d.]+) (bytes|[KMGT]iB)"
        return cls(
            asked=_bytes(rf"(?:tried to|unable to) allocate {size}", text),
            allocated=_bytes(rf"{size} is allocated by PyTorch", text),
            capacity=_bytes(rf"total capacity of {size}", text),
        )


def _bytes(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text, re.IGNORECASE)
    return int(float(found[1]) * _UNITS[found[2]]) if found else None


@dataclass(frozen=True)
class Change:
    """A setting, and what is asked of the ranks with it."""

    setting: str
    load: Load
    activations: float = 1.0
    """What becomes of the activations."""

    @property
    def key(self) -> str:
        return self.setting.partition("=")[0]


def changes(load: Load, *, engine: str, is_checkpointing: bool) -> Iterator[Change]:
    """All single settings that hold less, the mildest first: first those that leave the training as it is."""
    for times in (2, 4, 8, 16, 32):
        if load.rows >= load.ranks * load.accumulate * times:
            more = replace(load, accumulate=load.accumulate * times)
            yield Change(f"engine.accumulate={more.accumulate}", more, more.rows_at_once / load.rows_at_once)
    if not is_checkpointing:
        yield Change("engine.checkpoint_activations=true", load, CHECKPOINTED)
    if engine == "zero":
        if load.ranks > 1:
            for stage in (1, 2, 3):
                if stage > load.stage:
                    yield Change(f"engine.stage={stage}", replace(load, stage=stage))
        if load.stage > 0 and load.optimizer == "device":
            yield Change("engine.offload.optimizer=cpu", replace(load, optimizer="cpu"))
    for part in (2, 4, 8, 16, 32):
        if load.rows >= load.ranks * load.accumulate * part:
            fewer = replace(load, rows=load.rows // part)
            yield Change(f"data.batch={fewer.rows}", fewer, fewer.rows_at_once / load.rows_at_once)


def out_of_memory_words(
    error: BaseException,
    *,
    load: Load,
    rank: int,
    engine: str = "zero",
    is_checkpointing: bool = False,
    allocated: int | None = None,
    capacity: int | None = None,
) -> str | None:
    """What to tell the user; None: the error is of another kind.

    `allocated` and `capacity` (bytes) are taken where the error does not tell them, as on the CPU.
    """
    said = Shortage.of(error)
    if said is None:
        return None
    asked = said.asked or 0
    allocated = said.allocated if said.allocated is not None else allocated
    capacity = said.capacity if said.capacity is not None else capacity
    memory = memory_of(load)
    in_use = allocated + asked if allocated is not None else max(capacity or 0, memory.total)
    activations = max(0, in_use - memory.held - memory.gathered - memory.logits)
    need = _need(load, activations)
    room = HEADROOM * min(need, capacity or need)
    lines = [
        f"out of memory on rank {rank}: {_gib(said.asked)} were asked for beside {_gib(allocated)} in use; "
        f"the device has {_gib(capacity)}",
        f"by the estimate this rank holds: {in_gib(memory)}; "
        f"the rest, {_gib(activations)}, would be the activations of {load.rows_at_once} rows",
    ]
    found = list(changes(load, engine=engine, is_checkpointing=is_checkpointing))
    return "\n".join(lines + _advice(found, load, activations, room))


def _need(load: Load, activations: float) -> float:
    memory = memory_of(load)
    return memory.held + max(memory.gathered + memory.logits + activations, memory.updating)


def _advice(found: list[Change], load: Load, activations: float, room: float) -> list[str]:
    fitting = []
    for _, kind in groupby(found, key=lambda change: change.key):
        needs = ((change, _need(change.load, activations * change.activations)) for change in kind)
        fitting += [(change.setting, need) for change, need in needs if need <= room][:1]
    if fitting:
        told = " or ".join(f"{setting} (about {_gib(need)})" for setting, need in fitting[:2])
        return [f"would fit by this estimate: {told}"]
    strongest = [list(kind)[-1] for _, kind in groupby(found, key=lambda change: change.key)]
    settings: list[str] = []
    for change in strongest:
        if change.key == "data.batch":
            continue  # accumulation has already brought the rows at once down to these
        load, activations = _both(load, change), activations * change.activations
        settings.append(change.setting)
        if _need(load, activations) <= room:
            return [f"no single setting would fit; these would together: {' '.join(settings)}"]
    least = (
        f"about {_gib(_need(load, activations))} with {' '.join(settings)}" if settings else "nothing is left to set"
    )
    return [f"no settings would fit ({least}): use more ranks, a larger device, a smaller model or smaller images"]


def _both(load: Load, change: Change) -> Load:
    """`load` with what `change` sets."""
    names = {"engine.accumulate": "accumulate", "engine.stage": "stage", "engine.offload.optimizer": "optimizer"}
    name = names.get(change.key)
    return replace(load, **{name: getattr(change.load, name)}) if name else load


def _gib(size: float | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.2f} GiB"
