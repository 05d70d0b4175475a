"""Batch norm over the rows of several ranks is torch's over all of them in one process."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retrieval_train.models.backbones import timm
from retrieval_train.models.batch_norm import GlobalBatchNorm, sync_batch_norm
from retrieval_train.models.embedder import build_embedder
from retrieval_train.models.necks import linear
from retrieval_train.world import Alone, World
from tests.processes import run_ranks

ROWS, STEPS, CHANNELS = 7, 3, 4


class BatchNormAct(nn.BatchNorm2d):
    """As timm has it: an activation that works in place, under the norm's name."""

    def __init__(self) -> None:
        super().__init__(CHANNELS)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))  # type: ignore[no-any-return]


LAYERS = {
    "of vectors": (nn.BatchNorm1d(CHANNELS), (ROWS, CHANNELS)),
    "of sequences": (nn.BatchNorm1d(CHANNELS, eps=0.1, momentum=0.3), (ROWS, CHANNELS, 5)),
    "of maps": (nn.BatchNorm2d(CHANNELS), (ROWS, CHANNELS, 3, 5)),
    "with activation": (BatchNormAct(), (ROWS, CHANNELS, 3, 5)),
    "without weights": (nn.BatchNorm2d(CHANNELS, affine=False), (ROWS, CHANNELS, 3, 5)),
    "without statistics": (nn.BatchNorm2d(CHANNELS, track_running_stats=False), (ROWS, CHANNELS, 3, 5)),
    "mean of all batches": (nn.BatchNorm2d(CHANNELS, momentum=None), (ROWS, CHANNELS, 3, 5)),
    "frozen": (nn.BatchNorm2d(CHANNELS).requires_grad_(False), (ROWS, CHANNELS, 3, 5)),
}


def mine(world: World) -> slice:
    """7 rows: divisible by none of the world sizes."""
    cuts = [ROWS * rank // world.size for rank in range(world.size + 1)]
    return slice(cuts[world.rank], cuts[world.rank + 1])


def pair(layer: nn.Module, world: World) -> tuple[nn.Module, nn.Module]:
    """Torch's layer, with weights that differ, and the one over ranks."""
    generator = torch.Generator().manual_seed(1)
    whole = nn.Sequential(copy.deepcopy(layer))
    for parameter in whole.parameters():
        parameter.data.uniform_(0.5, 2, generator=generator)
    ours = copy.deepcopy(whole)
    sync_batch_norm(ours, world)
    assert isinstance(ours[0], GlobalBatchNorm)
    return whole, ours


def batches(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Input and gradient of the output. Each row has a mean of its own, and none is 0."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(STEPS):
        x = torch.randn(*shape, generator=generator) * 2 + torch.arange(float(ROWS)).view(-1, *(1,) * (len(shape) - 1))
        made.append(((x + 3).to(dtype), torch.randn(*shape, generator=generator).to(dtype)))
    return made


def assert_close(mine: Tensor, whole: Tensor, where: str) -> None:
    limit = 1e-5 if whole.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(mine, whole, rtol=limit, atol=limit, msg=lambda text: f"{where}: {text}")


def as_one_process(world: World) -> None:
    for name, (layer, shape) in LAYERS.items():
        for dtype in (torch.float32, torch.bfloat16):
            whole, ours = pair(layer, world)
            for x, grad in batches(shape, dtype):
                x_whole, x_mine = x.clone().requires_grad_(), x[mine(world)].clone().requires_grad_()
                y_whole, y_mine = whole(x_whole), ours(x_mine)
                y_whole.backward(grad)
                y_mine.backward(grad[mine(world)])
                assert x_mine.grad is not None and x_whole.grad is not None
                assert_close(y_mine, y_whole[mine(world)], f"{name}, output")
                assert_close(x_mine.grad, x_whole.grad[mine(world)], f"{name}, gradient of the input")
            for (key, a), b in zip(ours.named_parameters(), whole.parameters(), strict=True):
                assert (a.grad is None) == (b.grad is None) == (name == "frozen")
                if a.grad is not None and b.grad is not None:
                    assert_close(world.sum(a.grad).to(dtype), b.grad.to(dtype), f"{name}, gradient of {key}")
            for (key, a), b in zip(ours.named_buffers(), whole.buffers(), strict=True):
                assert_close(a.float(), b.float(), f"{name}, {key}")
                assert all(torch.equal(a, other) for other in world.every(a))


def far_from_zero(world: World) -> None:
    """A deviation that is a thousandth of the mean is not eaten up by squares."""
    whole, ours = pair(nn.BatchNorm1d(CHANNELS), world)
    x = torch.randn(ROWS, CHANNELS, generator=torch.Generator().manual_seed(0)) + 1000
    expected = whole.double()(x.double())[mine(world)]
    torch.testing.assert_close(ours(x[mine(world)]).double(), expected, rtol=1e-3, atol=1e-3)


def done_again(world: World) -> None:
    """Activation checkpointing: same gradients, and the batch is counted once."""
    for name, (layer, shape) in LAYERS.items():
        (_, ours), (_, again) = pair(layer, world), pair(layer, world)
        x, grad = (tensor[mine(world)] for tensor in batches(shape)[0])
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        ours(a).backward(grad)
        y = checkpoint(again, b, use_reentrant=False)
        assert isinstance(y, Tensor)
        y.backward(grad)
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad), name
        state = ours.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items()), name


def in_ranks(world: World) -> None:
    as_one_process(world)
    far_from_zero(world)
    done_again(world)


@pytest.mark.parametrize("ranks", [2, 3])
def test_output_gradients_and_running_statistics_over_ranks_are_those_of_one_process(ranks: int) -> None:
    run_ranks(in_ranks, ranks)


def test_one_process_has_torchs_numbers_to_the_bit_and_counts_a_checkpointed_batch_once() -> None:
    for name, (layer, shape) in LAYERS.items():
        whole, ours = pair(layer, Alone())
        for x, _ in batches(shape):
            assert torch.equal(ours(x.clone()), whole(x.clone())), name
        x = batches(shape)[0][0]
        assert torch.equal(ours.eval()(x.clone()), whole.eval()(x.clone())), name
        state = whole.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items()), name
    done_again(Alone())


def test_a_batch_that_is_not_finite_does_not_break_the_statistics_when_it_is_done_again() -> None:
    _, ours = pair(nn.BatchNorm2d(CHANNELS), Alone())
    x = torch.full((2, CHANNELS, 3, 3), float("nan"), requires_grad=True)
    y = checkpoint(ours, x, use_reentrant=False)
    assert isinstance(y, Tensor)
    before = {key: value.clone() for key, value in ours[0].named_buffers()}  # type: ignore[index]
    for key, buffer in ours[0].named_buffers():  # type: ignore[index]
        buffer.copy_(torch.ones_like(before[key]))  # as an engine puts them back
    y.sum().backward()
    assert all((buffer == 1).all() for buffer in ours.buffers())


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet"])
def test_an_embedder_keeps_names_and_tensors_and_embeds_as_before(model: str) -> None:
    embedder = build_embedder(timm.Config(model=model, image_px=32, weights="none"), linear.Config(out=8), seed=0)
    image = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8)
    embedder(image)  # statistics that say something
    expected, before = embedder.eval()(image), embedder.state_dict(keep_vars=True)
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in embedder.modules())
    sync_batch_norm(embedder, Alone())
    assert norms == sum(isinstance(layer, GlobalBatchNorm) for layer in embedder.modules()) > 0
    assert not any(layer.training for layer in embedder.modules())
    after = embedder.state_dict(keep_vars=True)
    assert list(after) == list(before) and all(after[key] is before[key] for key in before)
    assert torch.equal(embedder(image), expected)


def test_a_layer_with_two_names_stays_one_and_other_kinds_stay_what_they_are() -> None:
    shared = nn.BatchNorm1d(CHANNELS)
    others = nn.ModuleList([nn.SyncBatchNorm(CHANNELS), nn.InstanceNorm2d(CHANNELS), nn.LayerNorm(CHANNELS)])
    module = nn.ModuleDict({"a": shared, "b": shared, "others": others})
    kept = list(others)
    sync_batch_norm(module, Alone())
    assert isinstance(module["a"], GlobalBatchNorm) and module["a"] is module["b"]
    assert all(a is b for a, b in zip(others, kept, strict=True))
