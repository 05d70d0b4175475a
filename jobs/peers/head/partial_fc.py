"""PartialFC (An et al., CVPR 2022) with ArcFace, as insightface's second version goes about it: our reading of the algorithm.

Its code is not published as a package. What its step does, told here in torch operations: all ranks' embeddings and labels
are gathered; a rank whose classes are sampled takes the images' own classes and fills up with those of the largest random
numbers, by `index_select` from the whole parameter; cosines are a product of normalised embeddings and normalised centres,
clamped; the margin is put on the images' own cosines in place, without gradient; softmax and cross-entropy overwrite the
logits, need the row's maximum and sum over all ranks, and in the backward take off a table of ones and zeros. The gradient
is a dense table, and the optimizer goes over all rows. Where its versions differ, the cheaper way is taken: the arc cosine of
the images' own cosines only.

Legend: N rows of this rank, B rows of all ranks, C classes of this rank, S sampled classes, D dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from jobs.peers.head.task import LR, MARGIN, SCALE, Step, Task, embeddings, fill_centres, labels


def build(task: Task, world: Any) -> Step:
    weight_CD = torch.nn.Parameter(torch.empty(len(task.mine), task.dim))
    fill_centres(weight_CD.detach(), task)
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[task.optimizer]
    optimizer = kind([weight_CD], lr=LR, weight_decay=0.0, fused=True)
    emb_ND, drawn = embeddings(task), labels(task)

    def step() -> float:
        emb_BD = world.gather(emb_ND, task.counts)
        column_B = next(drawn) - task.mine.start
        column_B[(column_B < 0) | (column_B >= len(weight_CD))] = -1
        centre_SD: Tensor = weight_CD
        if task.sample_rate < 1:
            centre_SD, column_B = sample(weight_CD, column_B, task.sample_rate)
        logit_BS = functional.linear(functional.normalize(emb_BD), functional.normalize(centre_SD)).clamp(-1, 1)
        value: Tensor = _CrossEntropy.apply(with_margin(logit_BS, column_B), column_B, world)  # type: ignore[assignment]
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        emb_ND.grad = None
        return float(value.detach())

    return step


def sample(weight_CD: Tensor, column_B: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """The centres (S, D) of all labels here and of others drawn at random, and the labels' places among them; -1 stays."""
    mine_B = column_B >= 0
    own = column_B[mine_B].unique()
    score_C = torch.rand(len(weight_CD))
    score_C[own] = 2.0
    count = max(len(own), int(rate * len(weight_CD)))
    chosen_S = score_C.topk(count).indices.sort().values
    place_B = column_B.clone()
    place_B[mine_B] = torch.searchsorted(chosen_S, column_B[mine_B])
    return weight_CD.index_select(0, chosen_S), place_B


def with_margin(logit_BS: Tensor, column_B: Tensor) -> Tensor:
    """Scaled ArcFace logits; autograd sees the scale alone."""
    row_Q = (column_B >= 0).nonzero().flatten()
    with torch.no_grad():
        logit_BS[row_Q, column_B[row_Q]] = (logit_BS[row_Q, column_B[row_Q]].arccos() + MARGIN).cos()
    return logit_BS * SCALE


class _CrossEntropy(torch.autograd.Function):
    """apply(logit_BS, column_B, world) -> the mean cross-entropy over all ranks' classes; overwrites the logits."""

    @staticmethod
    def forward(ctx: Any, logit_BS: Tensor, column_B: Tensor, world: Any) -> Tensor:
        power_BS = logit_BS.sub_(world.max(logit_BS.amax(1, keepdim=True))).exp_()
        power_BS.div_(world.sum(power_BS.sum(1, keepdim=True)))
        row_Q = (column_B >= 0).nonzero().flatten()
        own_B = power_BS.new_zeros(len(power_BS))
        own_B[row_Q] = power_BS[row_Q, column_B[row_Q]]
        ctx.save_for_backward(power_BS, row_Q, column_B[row_Q])
        loss: Tensor = -world.sum(own_B).clamp_min(1e-30).log().mean()
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        power_BS, row_Q, column_Q = ctx.saved_tensors
        wanted_QS = torch.zeros(len(row_Q), power_BS.shape[1]).scatter_(1, column_Q[:, None], 1)
        power_BS[row_Q] -= wanted_QS
        return power_BS.div_(len(power_BS)) * grads[0], None, None
