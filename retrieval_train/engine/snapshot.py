"""The training state copied off the device, and written later: no collective is in the writing, a thread may do it.

Every rank writes its parts; when all are written, rank 0 seals the folder. What is in it: see `checkpoint`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor, nn

from retrieval_train.engine.checkpoint import file_sum, persistent_buffers
from retrieval_train.engine.state_file import SCHEMA
from retrieval_train.rundir import write_json, write_names

if TYPE_CHECKING:
    from retrieval_train.world import World

_BLOCK = 1 << 22  # bytes that are summed and written at a time


@dataclass
class Snapshot:
    """One rank's share of the training state."""

    state: dict[str, Any]
    """For `state.json`; the first rank's counts."""
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """File -> its tensors."""
    names: dict[str, list[str]] = field(default_factory=dict)
    """File -> its lines."""

    def write(self, folder: Path) -> dict[str, str]:
        """All files, on the disk when this returns; sha256 by file name. Raises OSError, as of a full disk."""
        sums = {name: write_tensors(folder / name, tensors) for name, tensors in self.tensors.items()}
        for name, lines in self.names.items():
            write_names(folder / name, lines)
            sums[name] = file_sum(folder / name)
        return sums


class Host:
    """Copies of device tensors in memory that is kept: fresh pages cost more than the copy."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._is_pending = False

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """`tensor` on the CPU, good until the next copy of that name; on a GPU only after `wait`."""
        kept = self._buffers.get(name)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[name] = kept
        kept.copy_(tensor.detach(), non_blocking=True)
        self._is_pending |= tensor.is_cuda
        return kept

    def wait(self) -> None:
        if self._is_pending:
            torch.cuda.synchronize()
            self._is_pending = False


_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """A safetensors file of CPU tensors, on the disk when this returns; its sha256.

    The library's own writer copies every tensor into Python bytes first and the file must then be read again for its sum.
    This one writes and sums the tensors' memory as it is, in C without the interpreter's lock: training goes on meanwhile.
    """
    at, header = 0, {}
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    blocks: list[Any] = [len(text).to_bytes(8, "little"), text, *map(_bytes_of, tensors.values())]
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for block in blocks:
            for part in range(0, len(block), _BLOCK):
                digest.update(block[part : part + _BLOCK])
                _write_all(file, block[part : part + _BLOCK])
        os.fsync(file.fileno())  # a checkpoint that is named must be on the disk
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> Any:
    flat = tensor.detach().contiguous().reshape(-1)
    bytes_of: Any = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return memoryview(bytes_of)


def _write_all(file: BinaryIO, block: memoryview | bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[file.write(rest) :]


def mean_buffers(embedder: nn.Module, world: World) -> dict[str, Tensor]:
    """The buffers that go into a checkpoint. Collective.

    Batch norm's running statistics are those of all ranks' rows and equal on all ranks. Should a model keep others that
    follow its own rank's rows, floating-point buffers are averaged over the ranks; others (counts, indices) are the first
    rank's.
    """
    mean = {}
    for name, buffer in persistent_buffers(embedder).items():
        # float64: W equal float32 add up and divide exactly, so constants stay what they are
        is_float = buffer.is_floating_point()
        mean[name] = (
            (world.sum(buffer.detach().double()) / world.size).to(buffer.dtype) if is_float else buffer.detach()
        )
    return mean


def seal(folder: Path, sums: Mapping[str, str], state: Mapping[str, Any]) -> None:
    """Write `sums.json`, of all ranks' files, and `state.json`: what makes the folder a checkpoint."""
    write_json(folder / "sums.json", dict(sorted(sums.items())))
    write_json(folder / "state.json", {"schema": SCHEMA, **state})
