"""Replicated tensors must be the same on all ranks, to the bit: a checksum of each one shows whether they still are.

A flipped bit, a rank that read other weights, or a lost update makes one rank train something else; the mean over all
gradients hides it. Legend: N tensors, W ranks, C values of a chunk.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from retrieval_train.world import World

_CHUNK = 1 << 18  # values; their int64 products (2 MiB) stay in the cache of a CPU core
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}  # by the bytes of a value; 8 are two integers
_MIX = 0x5851F42D4C957F2D  # an odd number: multiplying by it loses no bit
_MOST_TOLD = 3  # tensors that an error names


class Divergent(ValueError):
    """The replicated tensors are not the same on all ranks."""


def checksums(tensors: Mapping[str, Tensor]) -> Tensor:
    """One int64 a tensor, in the mapping's order, on the first one's device: sum_N.

    Each value's bits, read as an integer, are weighted by an odd number of its place and summed modulo 2^64. So any one
    flipped bit shows, and so do two values that changed places; NaNs count by their bits, and no order of summing matters.
    """
    device = next(iter(tensors.values())).device
    return torch.stack([_checksum(tensor.detach()).to(device) for tensor in tensors.values()])


def check_equal(tensors: Mapping[str, Tensor], world: World, *, step: int) -> None:
    """Raises Divergent on all ranks when the tensors (same names on all ranks) are not equal. Collective."""
    if not tensors:
        return
    sum_N = checksums(tensors).to(world.device)
    # the largest x, and by ~x, which unlike -x cannot overflow, the smallest: equal where all ranks have the same
    largest_N, smallest_N = world.max(sum_N), ~world.max(~sum_N)
    if bool((largest_N == smallest_N).all()):
        return
    told = world.every((socket.gethostname(), sum_N.tolist()))
    raise Divergent(_reason(list(tensors), [host for host, _ in told], [sums for _, sums in told], step=step))


def _checksum(x: Tensor) -> Tensor:
    bits = x.reshape(-1).view(_BITS[x.element_size()])
    weight_C = torch.arange(1, 2 * min(_CHUNK, max(len(bits), 1)), 2, device=x.device)
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    for chunk in bits.split(_CHUNK):
        total = total * _MIX + (chunk * weight_C[: len(chunk)]).sum()
    return total


def _reason(names: Sequence[str], hosts: Sequence[str], sums_WN: Sequence[Sequence[int]], *, step: int) -> str:
    different: list[str] = []
    odd: set[int] = set()
    is_clear = True  # whether more than half of the ranks agree on every tensor
    for name, sum_W in zip(names, zip(*sums_WN, strict=True), strict=True):
        usual, count = Counter(sum_W).most_common(1)[0]
        if count < len(hosts):
            different.append(name)
            odd.update(rank for rank, one in enumerate(sum_W) if one != usual)
            is_clear = is_clear and 2 * count > len(hosts)
    ranks = ", ".join(f"rank {rank} on {hosts[rank]}" for rank in (sorted(odd) if is_clear else range(len(hosts))))
    who = f"{ranks}: not as most ranks have them" if is_clear else f"{ranks}: no majority tells who is right"
    more = f" and {len(different) - _MOST_TOLD} more" if len(different) > _MOST_TOLD else ""
    return (
        f"{len(different)} of {len(names)} tensors are not the same on all ranks after step {step}: "
        f"{', '.join(different[:_MOST_TOLD])}{more} ({who}). Start again with the same command: it goes on from the last "
        "checkpoint. If the same node is named again, its memory or GPU is at fault: leave that node out"
    )
