"""The memory formula against the tensors that real ranks hold."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from retrieval_train.engine import zero
from retrieval_train.engine.memory import Load, memory_of
from retrieval_train.engine.optimizers import adamw
from retrieval_train.engine.schedule import ScheduleConfig
from retrieval_train.heads import arcface
from retrieval_train.heads.centres import Head
from retrieval_train.learner import Learner
from retrieval_train.losses import softmax
from retrieval_train.world import World
from tests.processes import run_ranks
from tests.retrieval_train.engine.test_engines import CLASSES, ROWS, micro_batches
from tests.retrieval_train.heads.held import most_held_by_head, rank_alone

WIDTH, LAYERS, BUCKET_MB = 256, 40, 1.0  # the share of a rank is many tensors: ZeRO copies whole ones


class Layers(nn.Module):
    """3 million parameters in many layers, the first four frozen."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
        self.backbone = nn.Sequential(nn.Linear(12, WIDTH), *blocks)
        self.backbone[:4].requires_grad_(False)
        self.neck = nn.Linear(WIDTH, 8)

    def draw(self, seed_N: torch.Tensor | None) -> None:
        """It drops nothing."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.neck(self.backbone(image.flatten(1).float() / 255))
        return out


def storages() -> dict[int, int]:
    """Bytes of every distinct storage that a tensor of this process has, or its gradient."""
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and tensor.untyped_storage().nbytes():
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return found


def tell_moments(deepspeed: Any, tell: Callable[[str], None]) -> None:
    """Call `tell` where DeepSpeed holds most: after the forward, while gradients are copied, before the update."""
    inner = getattr(deepspeed.optimizer, "optimizer", deepspeed.optimizer)
    step = inner.step

    def told_step(*args: Any) -> Any:
        tell("update")
        return step(*args)

    inner.step = told_step
    deepspeed.module.neck.register_forward_hook(lambda *_: tell("forward"))
    if hasattr(deepspeed.optimizer, "copy_grads_in_partition"):  # stages 1 and 2
        copy = deepspeed.optimizer.copy_grads_in_partition

        def told_copy(*args: Any) -> None:
            copy(*args)
            tell("update")

        deepspeed.optimizer.copy_grads_in_partition = told_copy


def most_held(world: World, stages: list[int], accumulate: int) -> list[dict[str, int]]:
    """Per stage: the most bytes of parameters, gradients and optimizer at a time, in all and in forwards."""
    import deepspeed  # noqa: F401

    logging.disable(logging.WARNING)
    gc.freeze()  # what is there already is not looked through again
    of_stages = []
    for stage in stages:
        config = zero.Config(stage=stage, bucket_mb=BUCKET_MB, accumulate=accumulate)  # type: ignore[arg-type]
        gc.collect()
        before = storages()
        head = Head(arcface.Config(margin=0.3), CLASSES, dim=8, world=world, seed=3)
        learner = Learner(Layers(), head, softmax.Config(), world)
        schedule = ScheduleConfig().build(4, epoch_steps=4, batch=ROWS)
        engine = config.build(learner, adamw.Config(), schedule, seed=0)
        most: dict[str, int] = {}

        def tell(moment: str, before: dict[int, int] = before, most: dict[str, int] = most) -> None:
            held = sum(size for at, size in storages().items() if at not in before)
            most[moment] = max(held, most.get(moment, 0))

        engine.train_step(micro_batches(0, accumulate, world))  # ZeRO 3 learns the order of the layers
        tell_moments(engine.half._deepspeed, tell)  # type: ignore[attr-defined]
        engine.train_step(micro_batches(1, accumulate, world))
        engine.close()
        of_stages.append(most)
        del engine, learner, head
    return of_stages


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (3, 2)])
def test_what_ranks_hold_is_what_the_formula_says(ranks: int, accumulate: int) -> None:
    """Of the rank that holds most: which one copies its share of the gradients while the others' are still there."""
    sizes = [(p.numel(), p.requires_grad) for p in Layers().parameters()]
    trained, frozen = (sum(size for size, is_trained in sizes if is_trained is which) for which in (True, False))
    stages = [0, 1, 2, 3]
    of_ranks = run_ranks(most_held, ranks, stages, accumulate)
    for stage, mosts in zip(stages, zip(*of_ranks, strict=True), strict=True):
        bucket_bytes = int(BUCKET_MB * 2**20)
        load = Load(trained, frozen, ranks=ranks, stage=stage, bucket_bytes=bucket_bytes)  # type: ignore[arg-type]
        memory = memory_of(load)
        most = {moment: max(of_rank[moment] for of_rank in mosts) for moment in ("forward", "update")}
        said = memory.total - (memory.updating if stage == 0 else 0)  # stage 0's bucket is gone before the update
        assert max(most.values()) == pytest.approx(said, rel=0.1), (stage, most, memory)
        if stage == 3:
            assert most["update"] == pytest.approx(memory.held + memory.updating, rel=0.1)
            assert most["forward"] == pytest.approx(memory.held + memory.gathered, rel=0.1)


def test_offloading_moves_bytes_to_the_host_and_stage_3_divides_what_is_left() -> None:
    load = Load(trained=1200, frozen=600, ranks=4, stage=2)
    kept, moved = memory_of(load), memory_of(Load(trained=1200, frozen=600, ranks=4, stage=2, optimizer="cpu"))
    assert (moved.float32_copy, moved.moments, moved.gradients, moved.updating) == (0, 0, 0, 0)
    assert moved.weights == kept.weights == 4 * 1800
    assert moved.host == 4 * 300 * (1 + 2 + 1 + 1)  # float32 copy, two moments, gradients, and what goes back
    third = memory_of(Load(trained=1200, frozen=600, ranks=4, stage=3, optimizer="cpu", weights="cpu"))
    assert (third.weights, third.gathered, third.host) == (0, 4 * 1800, 4 * 300 * 5 + 1800)
    with pytest.raises(ValueError, match="weights on cpu at stage 2: ZeRO offloads them at stage 3 only"):
        memory_of(Load(trained=1, stage=2, weights="cpu"))
    with pytest.raises(ValueError, match="optimizer on nvme at stage 0"):
        memory_of(Load(trained=1, optimizer="nvme"))


def test_16_bit_weights_have_float32_copies_at_every_stage() -> None:
    for stage in (0, 1, 2, 3):
        memory = memory_of(Load(trained=800, ranks=4, stage=stage, weight_bytes=2))  # type: ignore[arg-type]
        assert memory.float32_copy == 4 * 800 / (4 if stage else 1)
        assert memory.weights == 2 * 800 / (4 if stage == 3 else 1)


def test_a_known_example_of_many_classes() -> None:
    """349 thousand classes with three centres of 512: 8.6 GB with Adam; the logits of 8192 rows, a 32nd, 0.36 GB."""
    whole = memory_of(Load(trained=0, classes=349_000, sub_centres=3, dim=512))
    assert whole.centres == pytest.approx(8.6e9, rel=0.01)
    load = Load(trained=0, ranks=32, classes=349_000, sub_centres=1, dim=512, rows=8192)
    block = 256 * 2**20
    assert memory_of(load).logits == pytest.approx(0.357e9 + block, rel=0.01)
    assert memory_of(replace(load, logits_mb=300)).logits == 2 * block, "they do not fit: all are computed again"
    tenth = memory_of(replace(load, sample_rate=0.1))
    table = memory_of(load).centres / 4
    assert tenth.centres == pytest.approx(table * (3 + 2 * 0.1), rel=0.01)
    assert tenth.logits == pytest.approx(2 * 0.0357e9, rel=0.01), "kept, and a block that is all of them"


def test_a_node_that_has_all_classes_holds_what_as_many_ranks_alone_would_with_its_rows() -> None:
    """And, while nodes sum it, its gradient once more."""
    load = Load(trained=0, ranks=32, nodes=4, classes=349_000, dim=512, rows=8192)
    memory, alone = memory_of(load), memory_of(replace(load, ranks=8, nodes=1, rows=8192 // 4))
    assert (memory.centres, memory.logits) == (alone.centres, alone.logits)
    assert (memory.updating, alone.updating) == (memory.centres // 4, 0)
    with pytest.raises(ValueError, match="32 ranks on 5 nodes"):
        memory_of(replace(load, nodes=5))


@pytest.mark.parametrize(("ranks", "sub_centres", "logits_mb"), [(1, 1, 2048), (4, 1, 2048), (1, 1, 31), (1, 2, 2048)])
def test_what_head_and_loss_hold_is_what_the_formula_says(ranks: int, sub_centres: int, logits_mb: int) -> None:
    """The table itself was there before."""
    rows, dim, names = 256, 32, [f"toys/{number:05d}" for number in range(32_768)]
    rule = arcface.Config(logits_mb=logits_mb, sub_centres=sub_centres)
    sizes: dict[str, Any] = {"ranks": ranks, "classes": len(names), "sub_centres": sub_centres, "dim": dim}
    load = Load(trained=0, moments=0, rows=rows, logits_mb=logits_mb, block_mb=2, **sizes)
    memory = memory_of(load)
    said = memory.centres // 2 + memory.logits
    assert most_held_by_head(rank_alone(ranks), rule, rows, names, dim) == pytest.approx(said, rel=0.2)
