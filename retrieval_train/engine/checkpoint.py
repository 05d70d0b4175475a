"""A checkpoint is a folder of safetensors and JSON; reading one never runs code.

    model.safetensors           trained tensors, whole, float32
    buffers.safetensors         the embedder's persistent buffers: batch norm's running statistics and the like
    optimizer-<k>.safetensors   <tensor>.exp_avg and .exp_avg_sq, whole; any number of parts
    running.safetensors         running state of margin rules and losses, where they have one
    centres-<k>.safetensors     centre, exp_avg, exp_avg_sq: rows x K x D; <name>.centre ... of further heads
    classes-<k>.txt             the classes of those rows, `domain/label`, a line each
    state.json                  step, updates, loss scale, what the job adds (order, tracker, config); written last
    sums.json                   sha256 of every file above

Any number of parts in any order: 8 ranks write what 3 ranks read.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from retrieval_train.engine.state_file import CheckpointError, Damaged, peek
from retrieval_train.rundir import read_json, read_names

if TYPE_CHECKING:
    from retrieval_train.world import World

log = logging.getLogger(__name__)

BUFFERS = "buffers.safetensors"
RUNNING = "running.safetensors"


def read_state(folder: Path, world: World | None = None) -> dict[str, Any]:
    """`state.json` of a checkpoint whose files are all there and unchanged. Collective: the ranks share the summing."""
    state = peek(folder)
    try:
        sums = sorted(read_json(folder / "sums.json").items())
    except (FileNotFoundError, ValueError, AttributeError) as error:
        raise Damaged(f"{folder / 'sums.json'} is missing or damaged ({error})") from error
    rank, size = (world.rank, world.size) if world else (0, 1)
    problem = next(filter(None, (_problem(folder, name, wanted) for name, wanted in sums[rank::size])), "")
    found = [text for text in (world.every(problem) if world else [problem]) if text]
    if found:
        raise Damaged(found[0])
    return state


def _problem(folder: Path, name: str, wanted: str) -> str:
    file = folder / name
    if not file.is_file():
        return f"{file} is missing"
    return "" if file_sum(file) == wanted else f"{file} was changed or damaged"


def tell_fresh_moments(folder: Path, theirs: str, mine: str) -> None:
    log.warning("%s was written by another optimizer (%s, this is %s): its moments begin at zero", folder, theirs, mine)


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
    if not (folder / BUFFERS).is_file():
        if mine:
            log.warning(
                "%s was written before checkpoints kept buffers: the model's %d (batch norm's running statistics and the "
                "like) stay as they were before training",
                folder,
                len(mine),
            )
        return
    stored = Tensors(folder, BUFFERS)
    check_names(folder, stored.names(), set(mine), kind="buffers")
    with torch.no_grad():
        for name, buffer in mine.items():
            buffer.copy_(stored[name])


@torch.no_grad()
def read_running(folder: Path, mine: dict[str, Tensor]) -> None:
    """Put the running state of rules and losses back; what the checkpoint has not begins anew, and that is told."""
    stored = Tensors(folder, RUNNING)
    for name, tensor in mine.items():
        if name in stored and stored[name].shape == tensor.shape:
            tensor.copy_(stored[name])
        else:
            log.warning("%s has no running state '%s' of this shape: it begins anew", folder, name)


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


def centre_names(folder: Path) -> list[str]:
    """The classes that the parts have centres of."""
    return [name for names_file in sorted(folder.glob("classes-*.txt")) for name in read_names(names_file)]


def read_all_centres(folder: Path) -> tuple[list[str], Tensor]:
    """Every class name, and the main head's centres (rows x K x D) in the same order; none where there is no such head."""
    names: list[str] = []
    tables = []
    for names_file in sorted(folder.glob("classes-*.txt")):
        part = load_file(_centres_beside(names_file))
        if "centre" in part:
            names += read_names(names_file)
            tables.append(part["centre"])
    return names, torch.cat(tables) if tables else torch.empty(0, 1, 0)


def _centres_beside(names_file: Path) -> Path:
    return names_file.with_name(names_file.name.replace("classes-", "centres-")).with_suffix(".safetensors")


def file_sum(path: Path) -> str:
    """sha256."""
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
