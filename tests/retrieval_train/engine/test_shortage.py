"""Out of memory in words: real errors are recognised, and the settings that are proposed fit by arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from retrieval_train.engine.memory import GIB, Load, memory_of
from retrieval_train.engine.shortage import CHECKPOINTED, HEADROOM, Shortage, changes, out_of_memory_words

GPU = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 3 has a total capacity of 39.39 GiB of which 1.06 GiB is free. "
    "Including non-PyTorch memory, this process has 38.32 GiB memory in use. Of the allocated memory 37.50 GiB is allocated "
    "by PyTorch, and 312.00 MiB is reserved by PyTorch but unallocated."
)
LOAD = Load(trained=300_000_000, ranks=8, stage=2, bucket_bytes=200 * 2**20, classes=80_000, dim=512, rows=512)


def test_errors_of_gpus_the_cpu_and_numpy_are_recognised_and_others_are_not() -> None:
    assert Shortage.of(GPU) == Shortage(2 * GIB, int(37.5 * GIB), int(39.39 * GIB))
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(2**50)
    assert Shortage.of(torchs.value) == Shortage(asked=2**52)
    with pytest.raises(MemoryError) as numpys:
        np.empty(2**56, dtype=np.uint8)
    said = Shortage.of(numpys.value)
    assert said is not None and said.capacity is None
    assert Shortage.of(MemoryError()) == Shortage()
    other = RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)")
    assert Shortage.of(other) is None and Shortage.of(ValueError("out of memory")) is None
    assert out_of_memory_words(other, load=LOAD, rank=0) is None


def test_the_message_has_the_parts_the_rest_and_two_settings_that_fit() -> None:
    words = out_of_memory_words(GPU, load=LOAD, rank=3)
    memory = memory_of(LOAD)
    activations = 39.5 * GIB - memory.held - memory.logits
    assert words is not None
    assert "on rank 3: 2.00 GiB were asked for beside 37.50 GiB in use; the device has 39.39 GiB" in words
    assert f"weights {memory.weights / GIB:.2f}" in words and f"moments {memory.moments / GIB:.2f}" in words
    assert f"{activations / GIB:.2f} GiB, would be the activations of 64 rows" in words
    halved = replace(LOAD, accumulate=2)
    need = memory_of(halved).held + memory_of(halved).logits + activations / 2
    assert need < HEADROOM * 39.39 * GIB
    checkpointed = memory.held + memory.logits + CHECKPOINTED * activations
    proposed = words.splitlines()[-1]
    assert proposed == (
        f"would fit by this estimate: engine.accumulate=2 (about {need / GIB:.2f} GiB) "
        f"or engine.checkpoint_activations=true (about {checkpointed / GIB:.2f} GiB)"
    )


def test_what_is_set_already_or_cannot_be_is_not_proposed() -> None:
    def keys(load: Load, engine: str = "zero", is_checkpointing: bool = True) -> list[str]:
        found = [change.key for change in changes(load, engine=engine, is_checkpointing=is_checkpointing)]
        return sorted(set(found))

    one_row = replace(LOAD, stage=3, optimizer="cpu", rows=8)
    assert keys(one_row) == []
    assert keys(one_row, is_checkpointing=False) == ["engine.checkpoint_activations"]
    assert keys(replace(LOAD, stage=0, rows=8)) == ["engine.stage"]
    assert keys(replace(LOAD, rows=8)) == ["engine.offload.optimizer", "engine.stage"]
    assert keys(Load(trained=10, rows=64), engine="plain") == ["data.batch", "engine.accumulate"]


def test_a_state_that_is_too_large_is_split_or_moved_rather_than_its_rows() -> None:
    load = Load(
        trained=2_000_000_000, ranks=8, stage=0, rows=8
    )  # 16 bytes a parameter: 30 GiB, and no rows to take away
    words = out_of_memory_words(GPU, load=load, rank=0, is_checkpointing=True)
    assert words is not None and words.splitlines()[-1].startswith("would fit by this estimate: engine.stage=")
    assert "accumulate" not in words and "checkpoint" not in words


def test_where_no_setting_suffices_they_are_combined_or_the_message_says_so() -> None:
    crowded = Load(trained=1_000_000, frozen=7_800_000_000, stage=2, optimizer="cpu", rows=2)  # 29 GiB of weights
    words = out_of_memory_words(GPU, load=crowded, rank=0)
    together = "these would together: engine.accumulate=2 engine.checkpoint_activations=true"
    assert words is not None and f"no single setting would fit; {together}" in words
    hopeless = Load(trained=9_000_000_000, ranks=2, stage=3, optimizer="cpu", rows=2)
    words = out_of_memory_words(GPU, load=hopeless, rank=0, is_checkpointing=True)
    assert words is not None and "no settings would fit (nothing is left to set): use more ranks" in words


def test_without_figures_in_the_error_those_of_the_caller_count() -> None:
    words = out_of_memory_words(MemoryError(), load=LOAD, rank=1, allocated=20 * GIB, capacity=24 * GIB)
    assert words is not None
    assert "on rank 1: unknown were asked for beside 20.00 GiB in use; the device has 24.00 GiB" in words
    assert "would fit by this estimate" in words
    words = out_of_memory_words(MemoryError(), load=LOAD, rank=1)
    assert words is not None and "the device has unknown" in words
