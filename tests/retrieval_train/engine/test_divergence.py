"""One flipped bit of one tensor of one rank is found and named; what is equal is silent."""

from __future__ import annotations

import pytest
import torch

from retrieval_train.engine.divergence import Divergent, check_equal, checksums
from retrieval_train.world import Alone, Group
from tests.processes import run_ranks

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.bool)


def flip(x: torch.Tensor, at: int, bit: int) -> None:
    bits = x.view(-1).view(torch.uint8)
    bits[at * x.element_size() + bit // 8] ^= 1 << bit % 8


def told_of(world: Group, tensors: dict[str, torch.Tensor]) -> str:
    try:
        check_equal(tensors, world, step=40)
    except Divergent as error:
        return str(error)
    return ""


def check_on_three_ranks(world: Group) -> list[str]:
    torch.manual_seed(0)
    tensors = {"weight": torch.randn(7, 5), "bias": torch.randn(3).bfloat16(), "nan": torch.full((2,), torch.nan)}
    told = [told_of(world, tensors)]
    if world.rank == 2:
        flip(tensors["bias"], at=1, bit=0)
    told.append(told_of(world, tensors))
    tensors["bias"] = torch.tensor(float(world.rank))
    told.append(told_of(world, tensors))
    return told


def test_a_flipped_bit_is_named_on_all_ranks_and_equal_nans_are_equal() -> None:
    results = run_ranks(check_on_three_ranks, 3)
    assert results[0] == results[1] == results[2]
    silent, flipped, all_differ = results[0]
    assert silent == ""
    assert flipped.startswith("1 of 3 tensors are not the same on all ranks after step 40: bias (rank 2 on ")
    assert "rank 0" not in flipped and "rank 1" not in flipped
    assert "rank 0 on " in all_differ and "no majority" in all_differ


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_bit_at_any_place_changes_the_checksum_in_its_own_way(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval_train.engine.divergence._CHUNK", 8)  # several chunks
    x = torch.zeros(21, dtype=dtype)
    seen = {checksums({"x": x}).item()}
    for at in range(len(x)):
        for bit in range(1 if dtype == torch.bool else x.element_size() * 8):
            flip(x, at, bit)
            seen.add(checksums({"x": x}).item())
            flip(x, at, bit)
    assert len(seen) == 1 + len(x) * (1 if dtype == torch.bool else x.element_size() * 8)


def test_values_that_changed_places_change_the_checksum_and_the_layout_in_memory_does_not() -> None:
    x = torch.randn(300, 1000)
    sums = checksums({"x": x, "rows swapped": x.flip(0), "strided": x.T.contiguous().T, "empty": x[:0]})
    assert sums[0] == sums[2] and sums[0] != sums[1]
    assert sums.dtype == torch.int64 and sums.shape == (4,)


def test_one_process_and_no_tensor_are_equal() -> None:
    check_equal({"x": torch.randn(3)}, Alone(), step=1)
    check_equal({}, Alone(), step=1)
