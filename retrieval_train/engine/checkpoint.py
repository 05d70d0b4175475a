"""A checkpoint is a folder of safetensors and JSON; reading one never runs code.

    model.safetensors           trained tensors, whole, float32
    buffers.safetensors         the embedder's persistent buffers: batch norm's running statistics and the like
    optimizer-<k>.safetensors   <tensor>.exp_avg and .exp_avg_sq, whole; any number of parts
    centres-<k>.safetensors     centre, exp_avg, exp_avg_sq: rows x K x D
    classes-<k>.txt             the classes of those rows, `domain/label`, a line each
    state.json                  step, what the job adds (order, tracker); written last
    sums.json                   sha256 of every file above

Any number of parts in any order: 8 ranks write what 3 ranks read.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from retrieval_train.rundir import read_json, read_names, write_json

if TYPE_CHECKING:
    from retrieval_train.world import World

log = logging.getLogger(__name__)

SCHEMA = 1

_BUFFERS = "buffers.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: which file, and what to do."""


# --- writing: every rank its parts, then rank 0 `seal`


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:  # a checkpoint that is named must be on the disk
        os.fsync(file.fileno())


def write_buffers(folder: Path, embedder: nn.Module, world: World) -> None:
    """One file for all ranks, written by the first. Collective.

    Batch norm is not synced: each rank's normalises by, and keeps statistics of, its own rows. So floating-point buffers
    are averaged over the ranks; others (counts, indices) are the first rank's. A running mean is linear in what it
    averages: ranks that all go on from the mean end with the mean that they would have had anyway, but for rounding.
    """
    whole = {}
    for name, buffer in persistent_buffers(embedder).items():
        if buffer.is_floating_point():
            # float64: W equal float32 add up and divide exactly, so constants stay what they are
            whole[name] = (world.sum(buffer.detach().double()) / world.size).to(buffer.dtype)
        else:
            whole[name] = buffer.detach()
    if world.rank == 0:
        write_tensors(folder / _BUFFERS, whole)


def seal(folder: Path, state: Mapping[str, Any]) -> None:
    """Sum all parts and write `state.json`: what makes the folder a checkpoint."""
    sums = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    write_json(folder / "sums.json", sums)
    write_json(folder / "state.json", {"schema": SCHEMA, **state})


# --- reading


def read_state(folder: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint whose files are all there and unchanged."""
    if not (folder / "state.json").is_file():
        raise CheckpointError(f"{folder} is no checkpoint: it has no state.json")
    state: dict[str, Any] = read_json(folder / "state.json")
    if state.get("schema", 0) > SCHEMA:
        raise CheckpointError(f"{folder} has schema {state['schema']}, this code reads up to {SCHEMA}; update the code")
    for name, wanted in read_json(folder / "sums.json").items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; remove {folder} to go on from the checkpoint before it")
        if _sha256(file) != wanted:
            raise CheckpointError(f"{file} was changed or damaged; remove {folder} to go on from the one before it")
    return state


class Tensors:
    """All tensors of the files `<stem>*.safetensors` of a folder, read one at a time."""

    def __init__(self, folder: Path, pattern: str) -> None:
        self._files = [safe_open(file, framework="pt") for file in sorted(folder.glob(pattern))]
        self._file_of = {name: file for file in self._files for name in file.keys()}

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def names(self) -> set[str]:
        return set(self._file_of)


def read_buffers(folder: Path, embedder: nn.Module) -> None:
    """Put the buffers into the embedder. Raises CheckpointError when they are another model's."""
    mine = persistent_buffers(embedder)
    if not (folder / _BUFFERS).is_file():
        if mine:
            log.warning(
                "%s was written before checkpoints kept buffers: the model's %d (batch norm's running statistics and the "
                "like) stay as they were before training",
                folder,
                len(mine),
            )
        return
    stored = Tensors(folder, _BUFFERS)
    check_names(folder, stored.names(), set(mine), kind="buffers")
    with torch.no_grad():
        for name, buffer in mine.items():
            buffer.copy_(stored[name])


def persistent_buffers(embedder: nn.Module) -> dict[str, Tensor]:
    """What a module keeps in its state beside its parameters."""
    kept = embedder.state_dict().keys()
    return {name: buffer for name, buffer in embedder.named_buffers() if name in kept}


def read_centres(folder: Path, wanted: list[str]) -> dict[str, dict[str, Tensor]]:
    """{"centre": {class: (K, D)}, "exp_avg": ..., "exp_avg_sq": ...} of the wanted classes that the parts have."""
    wanted_set = set(wanted)
    found: dict[str, dict[str, Tensor]] = {}
    for names_file in sorted(folder.glob("classes-*.txt")):
        names = read_names(names_file)
        rows = [(row, name) for row, name in enumerate(names) if name in wanted_set]
        if not rows:
            continue
        part = load_file(_centres_beside(names_file))
        for kind, table in part.items():
            if len(table) != len(names):
                raise CheckpointError(f"{names_file} has {len(names)} names for {len(table)} centres")
            found.setdefault(kind, {}).update({name: table[row] for row, name in rows})
    return found


def read_all_centres(folder: Path) -> tuple[list[str], Tensor]:
    """Every class name, and the centres (rows x K x D) in the same order."""
    names: list[str] = []
    tables = []
    for names_file in sorted(folder.glob("classes-*.txt")):
        names += read_names(names_file)
        tables.append(load_file(_centres_beside(names_file))["centre"])
    return names, torch.cat(tables)


def _centres_beside(names_file: Path) -> Path:
    return names_file.with_name(names_file.name.replace("classes-", "centres-")).with_suffix(".safetensors")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def check_names(folder: Path, stored: set[str], wanted: set[str], *, kind: str = "trained tensors") -> None:
    """Raises CheckpointError when a checkpoint's tensors are not those of this model."""
    if stored != wanted:
        lacks, more = sorted(wanted - stored), sorted(stored - wanted)
        told = [f"it lacks {len(lacks)} ({lacks[0]} ...)"] if lacks else []
        told += [f"it has {len(more)} more ({more[0]} ...)"] if more else []
        raise CheckpointError(f"{folder} is of another model: of its {kind} {' and '.join(told)}")
