"""One micro-batch against the class centres of this rank: logits block by block, and gradients back.

All logits never need to be in memory. A block of classes is one matrix product; nothing else touches it but what the loss
does in place. With u a unit embedding, w a centre and c = u . w / |w|, the slope of c by w is (u - c w / |w|) / |w|: the part
along w is taken off once for a whole block, after the product that sums the rows' gradients.

The scores of the images' own classes are computed on the rank that has the class, always in float32 or finer, and summed
over the ranks: P numbers. Every rank then knows all of them, and applies the margin by itself.

Legend: B rows of the global batch, P (row, label) pairs, Q pairs whose class is on this rank, C classes of this rank,
K sub-centres, D dimensions; b rows and c classes of a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from retrieval_train.heads.rule import Targets

if TYPE_CHECKING:
    from retrieval_train.heads.rule import RuleConfig
    from retrieval_train.world import World

_TINY = 1e-12  # as in torch's normalize


@dataclass(frozen=True)
class Block:
    """Neighbouring classes of this rank, and the rows that are compared with them."""

    start: int
    stop: int
    row_b: Tensor | slice
    """slice(None): all rows."""
    pair_row_q: Tensor
    """Pairs among them: their place in `row_b` ..."""
    pair_column_q: Tensor
    """... and in the block."""


@dataclass(frozen=True)
class Pairs:
    """The (row, label) pairs of the global batch, and which of their classes this rank has."""

    row_P: Tensor
    class_P: Tensor
    mine_Q: Tensor
    """Which pairs are this rank's."""
    column_Q: Tensor
    """Their classes' places in this rank's table."""


class Scored:
    """Made by `centres.Head.score`. Collective: every rank makes it, with the same pairs."""

    def __init__(
        self,
        rule: RuleConfig,
        emb_BD: Tensor,
        centre_CKD: Tensor,
        pairs: Pairs,
        *,
        margin_C: Tensor | None,
        world: World,
    ) -> None:
        self._rule, self._world, self._pairs, self._centre_CKD = rule, world, pairs, centre_CKD.detach()
        self._dtype, self._dim = emb_BD.dtype, emb_BD.shape[1]
        emb_BD = with_bias(emb_BD.detach().to(centre_CKD.dtype), centre_CKD.shape[-1])
        self._norm_B = emb_BD.norm(dim=-1)
        self._unit_BD = functional.normalize(emb_BD, dim=-1, eps=_TINY) if rule.is_cosine else emb_BD
        self._inverse_CK: Tensor | None = torch.empty_like(self._centre_CKD[..., 0]) if rule.is_cosine else None
        self._grad_unit_BD = torch.zeros_like(emb_BD)
        self._grad_norm_B = torch.zeros_like(self._norm_B)
        self._grad_CKD = torch.empty_like(self._centre_CKD)
        self._choices: dict[int, Tensor] = {}
        self._score_targets(margin_C)

    # --- the images' own classes

    def _score_targets(self, margin_C: Tensor | None) -> None:
        pairs, rule = self._pairs, self._rule
        centre_QKD = self._centre_CKD[pairs.column_Q]
        if rule.is_cosine:
            centre_QKD = functional.normalize(centre_QKD, dim=-1, eps=_TINY)
        unit_QD = self._unit_BD[pairs.row_P[pairs.mine_Q]]
        score_QK = (centre_QKD * unit_QD[:, None]).sum(-1)
        score_Q, self._choice_Q = score_QK.max(-1)
        self._centre_QD = centre_QKD[torch.arange(len(centre_QKD), device=score_Q.device), self._choice_Q]
        known_P2 = score_Q.new_zeros(len(pairs.row_P), 2)
        known_P2[pairs.mine_Q, 0] = score_Q.clamp(-1, 1) if rule.is_cosine else score_Q
        if margin_C is not None:
            known_P2[pairs.mine_Q, 1] = margin_C[pairs.column_Q].to(score_Q)
        score_P, margin_P = self._world.sum(known_P2).unbind(1)
        self.targets = Targets(score_P, pairs.row_P, self._norm_B, margin_P if margin_C is not None else None)

    def apply(self, state: dict[str, Tensor]) -> None:
        """Put the rule on the images' own scores: with the running state as it now stands."""
        self._state = state
        self._leaves = (self.targets.cosine_P.clone().requires_grad_(), self.targets.norm_B.clone().requires_grad_())
        with torch.enable_grad():
            leaves = Targets(self._leaves[0], self.targets.row_P, self._leaves[1], self.targets.margin_P)
            self._logit_P = self._rule.target(leaves, state)
            self._penalty_B = self._rule.penalty(self._leaves[1])
        self.target_logit_P = self._logit_P.detach()
        self.penalty_B = torch.zeros_like(self._norm_B) if self._penalty_B is None else self._penalty_B.detach()
        self.factor = float(self._rule.factor(state))

    @property
    def row_P(self) -> Tensor:
        return self._pairs.row_P

    @property
    def class_P(self) -> Tensor:
        return self._pairs.class_P

    # --- the other classes

    def cut(self, blocks: Sequence[Block], num_classes_B: Tensor) -> None:
        """Say which classes are computed together, and how many each row is compared with on all ranks."""
        self._blocks, self.num_classes_B = blocks, num_classes_B.to(self._norm_B)
        self.num_blocks = len(blocks)
        size = sum((b.stop - b.start) * len(self._norm_B[b.row_b]) for b in blocks)
        self.keeps = size * self._centre_CKD.element_size() <= self._rule.logits_mb * 2**20

    def block(self, number: int) -> tuple[Tensor, Tensor | slice]:
        block = self._blocks[number]
        score_bc = self._best(number)
        if self._rule.only_scales:
            logit_bc = score_bc.mul_(self.factor) if self.factor != 1 else score_bc
        else:
            logit_bc = self._rule.others(score_bc, self._targets_of(block), self._state)
        logit_bc[block.pair_row_q, block.pair_column_q] = -math.inf
        return logit_bc, block.row_b

    def rows(self, number: int) -> Tensor | slice:
        return self._blocks[number].row_b

    def log_sum_others(self, scale: Tensor) -> Tensor:
        """log(sum over all ranks' other classes of exp(scale * score)), (B,). Collective."""
        log_B = torch.full_like(self._norm_B, -math.inf)
        for number, block in enumerate(self._blocks):
            score_bc = self._best(number).mul_(scale.to(log_B))
            score_bc[block.pair_row_q, block.pair_column_q] = -math.inf
            log_B[block.row_b] = torch.logaddexp(log_B[block.row_b], score_bc.logsumexp(1))
        largest_B = self._world.max(log_B).clamp(min=torch.finfo(log_B.dtype).min)  # -inf: compared with no other class
        return largest_B + self._world.sum((log_B - largest_B).exp()).log()

    def _best(self, number: int) -> Tensor:
        """Scores (b, c) of a block: of the best sub-centre."""
        score_bcK = self._scores(number)
        if score_bcK.shape[-1] == 1:
            return score_bcK.squeeze(-1)
        best_bc, choice_bc = score_bcK.max(-1)
        if self.keeps:
            self._choices[number] = choice_bc.to(torch.uint8)
        return best_bc

    def _scores(self, number: int) -> Tensor:
        block = self._blocks[number]
        centre_cKD = self._centre_CKD[block.start : block.stop]
        score_bcK = self._product(self._unit_BD[block.row_b], centre_cKD.flatten(0, 1).T)
        if self._inverse_CK is not None:
            inverse_cK = self._inverse_CK[block.start : block.stop]
            torch.norm(centre_cKD, dim=-1, out=inverse_cK).clamp_(min=_TINY).reciprocal_()
            score_bcK.mul_(inverse_cK.flatten())
        unflat_bcK: Tensor = score_bcK.unflatten(1, centre_cKD.shape[:2])
        return unflat_bcK

    def _targets_of(self, block: Block) -> Targets:
        if isinstance(block.row_b, slice):
            return self.targets
        is_mine_P = torch.isin(self.targets.row_P, block.row_b)
        place_P = torch.searchsorted(block.row_b, self.targets.row_P[is_mine_P])
        margin_P = None if self.targets.margin_P is None else self.targets.margin_P[is_mine_P]
        return Targets(self.targets.cosine_P[is_mine_P], place_P, self.targets.norm_B[block.row_b], margin_P)

    def _product(self, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        if self._rule.products == "fp32":
            return torch.mm(left, right, out=out)
        left_16, right_16 = left.bfloat16(), right.bfloat16()
        if left.is_cuda:
            found = torch.mm(left_16, right_16, out_dtype=torch.float32)  # type: ignore[call-overload]
        else:
            found = left_16 @ right_16  # summed in float32, rounded once
        return found.to(left.dtype) if out is None else out.copy_(found)

    # --- the way back

    def take(self, number: int, grad_bc: Tensor, factor_b: Tensor | None = None) -> None:
        block = self._blocks[number]
        grad_bc[block.pair_row_q, block.pair_column_q] = 0
        if not self._rule.only_scales:
            grad_bc = self._through_rule(number, grad_bc if factor_b is None else grad_bc * factor_b[:, None])
            factor_b = None
        factor = self.factor if self._rule.only_scales else 1.0
        centre_cKD = self._centre_CKD[block.start : block.stop]
        grad_bk = self._of_sub_centres(number, grad_bc)
        scaled_bD = self._unit_BD[block.row_b] * (factor if factor_b is None else factor * factor_b[:, None])
        grad_cKD = self._grad_CKD[block.start : block.stop]
        self._product(grad_bk.T, scaled_bD, out=grad_cKD.flatten(0, 1))
        self._along_sphere(block, grad_cKD, centre_cKD)
        if self._inverse_CK is not None:
            grad_bk = grad_bk.mul_(self._inverse_CK[block.start : block.stop].flatten())
        grad_bD = self._product(grad_bk, centre_cKD.flatten(0, 1))
        grad_bD *= factor if factor_b is None else factor * factor_b[:, None]
        self._grad_unit_BD[block.row_b] += grad_bD

    def _through_rule(self, number: int, grad_bc: Tensor) -> Tensor:
        block = self._blocks[number]
        score_bc = self._best(number).requires_grad_()
        with torch.enable_grad():
            logit_bc = self._rule.others(score_bc, self._targets_of(block), self._state)
        found: Any = torch.autograd.grad(logit_bc, score_bc, grad_bc)
        return found[0]  # type: ignore[no-any-return]

    def _of_sub_centres(self, number: int, grad_bc: Tensor) -> Tensor:
        """(b, c K): each gradient goes to the sub-centre that was the best."""
        K = self._centre_CKD.shape[1]
        if K == 1:
            return grad_bc
        if number not in self._choices:
            self._choices[number] = self._scores(number).argmax(-1).to(torch.uint8)
        choice_bc1 = self._choices.pop(number).long().unsqueeze(-1)
        return grad_bc.new_zeros(*grad_bc.shape, K).scatter_(-1, choice_bc1, grad_bc.unsqueeze(-1)).flatten(1)

    def _along_sphere(self, block: Block, grad_cKD: Tensor, centre_cKD: Tensor) -> None:
        """From the gradient by unit centres to that by the centres: without the part along them, over their length."""
        if self._inverse_CK is None:
            return
        inverse_cK1 = self._inverse_CK[block.start : block.stop, :, None]
        along_cK1 = (grad_cKD * centre_cKD).sum(-1, keepdim=True).mul_(inverse_cK1.square())
        grad_cKD.addcmul_(centre_cKD, along_cK1, value=-1).mul_(inverse_cK1)

    def take_targets(self, grad_P: Tensor) -> None:
        pairs = self._pairs
        found: Any = torch.autograd.grad(
            self._logit_P, self._leaves, grad_P.to(self._logit_P), allow_unused=True, materialize_grads=True
        )
        grad_Q1 = found[0][pairs.mine_Q, None]
        unit_QD, row_Q = self._unit_BD[pairs.row_P[pairs.mine_Q]], pairs.row_P[pairs.mine_Q]
        self._grad_unit_BD.index_add_(0, row_Q, grad_Q1 * self._centre_QD)
        self._grad_norm_B += found[1]
        by_centre_QD = unit_QD
        if self._inverse_CK is not None:
            inverse_Q1 = self._inverse_CK[pairs.column_Q, self._choice_Q, None]
            cosine_Q1 = (unit_QD * self._centre_QD).sum(-1, keepdim=True)
            by_centre_QD = (unit_QD - cosine_Q1 * self._centre_QD) * inverse_Q1
        place_Q = pairs.column_Q * self._centre_CKD.shape[1] + self._choice_Q
        self._grad_CKD.flatten(0, 1).index_add_(0, place_Q, grad_Q1 * by_centre_QD)

    def take_penalty(self, grad_B: Tensor) -> None:
        if self._penalty_B is not None:
            (grad_norm_B,) = torch.autograd.grad(self._penalty_B, [self._leaves[1]], grad_B)
            self._grad_norm_B += grad_norm_B

    def gradients(self) -> tuple[Tensor, Tensor]:
        """By the embeddings (B, D), this rank's share, and by its centres (C, K, D)."""
        grad_BD, unit_BD = self._grad_unit_BD, self._unit_BD
        if self._rule.is_cosine:
            along_B1 = (grad_BD * unit_BD).sum(-1, keepdim=True)
            grad_BD = (grad_BD - along_B1 * unit_BD) / self._norm_B.clamp(min=_TINY)[:, None]
            if self._world.rank == 0:  # every rank has the same gradient by the lengths: it counts once
                grad_BD = grad_BD + self._grad_norm_B[:, None] * unit_BD
        return grad_BD[:, : self._dim].to(self._dtype), self._grad_CKD


def with_bias(emb_BD: Tensor, dim: int) -> Tensor:
    """A column of ones behind embeddings whose centres have one dimension more."""
    if emb_BD.shape[1] == dim:
        return emb_BD
    assert emb_BD.shape[1] == dim - 1, f"embeddings of {emb_BD.shape[1]} dimensions for centres of {dim}"
    return functional.pad(emb_BD, (0, 1), value=1.0)
