"""Batch norm over the rows of all ranks: the numbers of one process that has the whole (micro-)batch.

Statistics are made in float32 of each rank's rows, put together in float64, and weighted by rows: ranks may have different
numbers of them. A training forward is one reduction a layer, its backward another, so that all ranks must do the same
training forwards; evaluation is this rank's alone.

Legend: x, y (N, C) or (N, C, ...), N rows of this rank; `_C` one number a channel; a normal is (x - mean) / deviation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from retrieval_train.world import World

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def sync_batch_norm(module: nn.Module, world: World) -> None:
    """Put GlobalBatchNorm in the place of torch's batch norm, and of timm's with an activation, anywhere below `module`.

    Names, parameters and buffers stay what they are. Frozen layers too: a layer in training mode normalises by its batch
    whether its weights are trained or not. Other kinds (SyncBatchNorm, InstanceNorm, frozen statistics) are left alone.
    """
    new: dict[nn.Module, nn.Module] = {}  # a layer that has two names stays one layer
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        has_act = isinstance(layer, nn.BatchNorm2d) and hasattr(layer, "drop") and hasattr(layer, "act")
        if type(layer) not in _PLAIN and not has_act:
            continue
        assert isinstance(layer, _BatchNorm)
        if layer not in new:
            new[layer] = GlobalBatchNorm(layer, world)
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, new[layer])


class GlobalBatchNorm(_BatchNorm):
    """In the place of `layer`, whose parameters, buffers, `drop` and `act` it takes over.

    A forward that activation checkpointing does again, in the backward, counts its rows no second time (torch's batch norm
    does): running statistics are the same with it and without it.
    """

    def __init__(self, layer: _BatchNorm, world: World) -> None:
        super().__init__(
            layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats, device="meta"
        )
        self.world = world
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        for name, child in layer.named_children():  # drop, then act: in the order in which they are called
            self.add_module(name, child)
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        y = self._over_ranks(x) if self.training and self.world.size > 1 else self._alone(x)
        for child in self.children():
            y = child(y)
        return y

    def _alone(self, x: Tensor) -> Tensor:
        mean_C, var_C, factor = self.running_mean, self.running_var, 0.0
        if self.training and not self.track_running_stats:
            mean_C = var_C = None
        elif self.training and _is_done_again():
            assert mean_C is not None and var_C is not None
            # not None: the backward wants as many tensors as the first forward left it
            mean_C, var_C = mean_C.clone(), var_C.clone()
        elif self.training:
            factor = self._count()
        by_batch = self.training or mean_C is None
        return F.batch_norm(x, mean_C, var_C, self.weight, self.bias, by_batch, factor, self.eps)

    def _over_ranks(self, x: Tensor) -> Tensor:
        mean_C, var_C, num = _statistics(x.detach(), self.world)
        if self.track_running_stats and not _is_done_again():
            assert self.running_mean is not None and self.running_var is not None
            factor = self._count()
            self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), factor)
            self.running_var.lerp_((var_C * (num / (num - 1))).to(self.running_var.dtype), factor)
        y: Tensor = _Normalise.apply(
            x, self.weight, self.bias, mean_C.float(), var_C.float(), num, self.eps, self.world
        )
        return y

    def _count(self) -> float:
        """The weight of this batch in the running statistics; without momentum they are the mean of all batches."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum


def _is_done_again() -> bool:
    """Whether this forward runs in a backward, as activation checkpointing has it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() >= 0


def _statistics(x: Tensor, world: World) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel over all ranks, and of how many numbers; float64. Collective."""
    num = x.numel() // x.shape[1]
    assert num, "every rank has rows"
    over, along = _shapes(x)
    near_C = (
        x.sum(over, dtype=torch.float32) / num
    )  # the mean but for rounding, which is as large as a deviation near 0
    centred = x - near_C.view(along)
    off_C = centred.sum(over).double() / num
    # float64: float32 values have digits to spare in it, so squares of means do not eat up the variance
    mean_C, var_C = near_C.double() + off_C, centred.square_().sum(over).double() / num - off_C.square()
    total = world.sum(torch.cat([mean_C * num, (var_C + mean_C.square()) * num, mean_C.new_full((1,), num)]))
    mean_C, square_C = (total[:-1] / total[-1]).chunk(2)
    return mean_C, (square_C - mean_C.square()).clamp(min=0), total[-1]


class _Normalise(torch.autograd.Function):
    """The backward knows that mean and variance are made of x.

    What comes in is the whole gradient of this rank's rows; so is what goes out by x. The gradients of weight and bias are
    the share of this rank's rows: whoever owns gradients sums them over the ranks.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_C: Tensor | None,
        bias_C: Tensor | None,
        mean_C: Tensor,
        var_C: Tensor,
        num: Tensor,
        eps: float,
        world: World,
    ) -> Tensor:
        ctx.save_for_backward(x, weight_C, mean_C, var_C, num)
        ctx.eps, ctx.world = eps, world
        return F.batch_norm(x, mean_C, var_C, weight_C, bias_C, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_C, var_C, num = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        over, along = _shapes(x)
        by_deviation_C = (var_C + ctx.eps).rsqrt()
        normal = (x - mean_C.view(along)).mul_(by_deviation_C.view(along))  # float32, as all that is made of it
        of_bias_C, of_weight_C = grad_y.sum(over, dtype=torch.float32), (grad_y * normal).sum(over)
        grad_x = None
        if wants_x:
            mean_2C = ctx.world.sum(torch.stack([of_bias_C, of_weight_C])) / num.float()
            of_mean, of_deviation = (mean_C.view(along) for mean_C in mean_2C)
            scale_C = by_deviation_C if weight_C is None else by_deviation_C * weight_C
            grad_x = normal.mul_(-of_deviation).add_(grad_y).sub_(of_mean).mul_(scale_C.view(along)).to(x.dtype)
        return grad_x, of_weight_C if wants_weight else None, of_bias_C if wants_bias else None, *(None,) * 5


def _shapes(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The dimensions that a channel's numbers lie along, and the shape that lays channels along x."""
    return (0, *range(2, x.ndim)), (1, -1, *(1,) * (x.ndim - 2))
