"""A loss over class logits twice: by all logits and autograd in one process, and by the head on ranks that share the classes.

Legend: B rows of the global batch, N of this rank, P (row, label) pairs, C classes, K sub-centres, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from retrieval_train.choice import Chosen
from retrieval_train.heads import centres
from retrieval_train.heads.centres import Head
from retrieval_train.heads.rule import RuleConfig, Targets
from retrieval_train.losses import bce, focal, proxy_anchor, softmax
from retrieval_train.losses.loss import LossConfig, Seen
from retrieval_train.world import World

DIM = 5
NAMES = [*(f"art/{n}" for n in range(6)), *(f"cars/{n}" for n in range(4)), "toys/0"]  # 11: divisible by no world size
DOMAINS = ("art", "cars", "toys")
DOMAIN_C = torch.tensor([0] * 6 + [1] * 4 + [2])
IMAGES_C = [40, 1, 7, 7, 120, 3, 9, 2, 60, 15, 5]
ONE_EACH = [[3], [9], [], [10], [4], [7], [3], [8], [], [6], [5]]
"""One label each, or none; nobody is of the first three classes, so a rank may have no row's class."""
SEVERAL = [[3, 5], [9], [], [10], [0, 3, 4], [7, 8], [1], [6, 9], [], [6], [0, 1, 2, 3, 4, 5]]
"""The last row is of all classes of its domain."""
COUNTS = {1: [11], 2: [10, 1], 3: [4, 0, 7], 4: [3, 1, 5, 2]}
"""Rows of each rank, by the number of ranks."""


@dataclass(frozen=True)
class Task:
    """A rule under a loss, on made-up rows."""

    rule: RuleConfig
    loss: LossConfig
    labels: Sequence[Sequence[int]] = tuple(ONE_EACH)
    dtype: torch.dtype = torch.float64

    @cached_property
    def emb_BD(self) -> Tensor:
        """Somewhat like their classes, and 5 to 40 long where length is no score."""
        generator = torch.Generator().manual_seed(1)
        noise_BD = torch.randn(len(self.labels), DIM, generator=generator, dtype=torch.float64)
        near_BD = torch.stack([self.centre_CKD[row[0] if row else 0, 0, :DIM] for row in self.labels])
        length_B1 = torch.linspace(5, 40, len(self.labels), dtype=torch.float64)[:, None]
        emb_BD = functional.normalize(functional.normalize(near_BD) + 0.5 * noise_BD)
        return (emb_BD * (length_B1 if self.rule.is_cosine else 1)).to(self.dtype)

    @cached_property
    def centre_CKD(self) -> Tensor:
        """Of lengths between 1/2 and 2."""
        generator = torch.Generator().manual_seed(2)
        size = (len(NAMES), self.rule.sub_centres, DIM + self.rule.has_bias)
        table_CKD = torch.randn(size, generator=generator, dtype=torch.float64)
        length_C = torch.linspace(0.5, 2, len(NAMES), dtype=torch.float64)
        return (functional.normalize(table_CKD, dim=-1) * length_C[:, None, None]).to(self.dtype)

    @property
    def row_P(self) -> Tensor:
        return torch.tensor([row for row, labels in enumerate(self.labels) for _ in labels], dtype=torch.int64)

    @property
    def class_P(self) -> Tensor:
        return torch.tensor([label for labels in self.labels for label in labels], dtype=torch.int64)

    @property
    def label_B(self) -> Tensor:
        return torch.tensor([row[0] if row else -1 for row in self.labels])

    @property
    def domain_B(self) -> Tensor:
        return torch.where(self.label_B >= 0, DOMAIN_C[self.label_B.clamp(min=0)], 0)


class Found(NamedTuple):
    loss: Tensor
    row_B: Tensor | None
    grad_emb: Tensor
    grad_centre: Tensor
    state: dict[str, Tensor]


# --- one process, all logits


def dense(task: Task, kept_C: Tensor | None = None, table_CKD: Tensor | None = None) -> Found:
    """`kept_C`: which classes there are, the others might as well not exist; `table_CKD`: other centres than the task's."""
    emb_BD = task.emb_BD.clone().requires_grad_()
    centre_CKD = (task.centre_CKD if table_CKD is None else table_CKD).clone().requires_grad_()
    rule, row_P, class_P = task.rule, task.row_P, task.class_P
    score_BC = _scores(rule, emb_BD, centre_CKD)
    margin_C = rule.margins(torch.tensor(IMAGES_C))
    margin_P = None if margin_C is None else margin_C[class_P].to(task.dtype)
    targets = Targets(score_BC[row_P, class_P], row_P, emb_BD.norm(dim=1), margin_P)
    constant = replace(targets, cosine_P=targets.cosine_P.detach(), norm_B=targets.norm_B.detach())
    is_own_BC = torch.zeros(score_BC.shape, dtype=torch.bool).index_put((row_P, class_P), torch.tensor(True))
    is_there_BC = (torch.ones(len(NAMES), dtype=torch.bool) if kept_C is None else kept_C).expand_as(is_own_BC)

    def log_sum_others(scale: Tensor) -> Tensor:
        return (scale * score_BC.detach()).masked_fill(is_own_BC | ~is_there_BC, -torch.inf).logsumexp(1)

    state = first_state(rule, task.dtype)
    with torch.no_grad():
        state |= rule.observe(constant, state, log_sum_others)
    logit_BC = rule.others(score_BC, constant, state).index_put((row_P, class_P), rule.target(targets, state))
    if getattr(task.loss, "over", "all") == "domain":
        is_there_BC = is_there_BC & (DOMAIN_C[None] == task.domain_B[:, None])
    row_B = written_out(task.loss, logit_BC, is_own_BC, is_there_BC, scale=float(rule.factor(state)))
    penalty_B = rule.penalty(targets.norm_B)
    row_B = row_B if penalty_B is None else row_B + penalty_B
    loss = row_B.mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert emb_BD.grad is not None and centre_CKD.grad is not None
    rows = None if isinstance(task.loss, proxy_anchor.Config) else row_B.detach()
    return Found(loss.detach(), rows, emb_BD.grad, centre_CKD.grad, state)


def _scores(rule: RuleConfig, emb_BD: Tensor, centre_CKD: Tensor) -> Tensor:
    if rule.has_bias:
        emb_BD = torch.cat([emb_BD, torch.ones_like(emb_BD[:, :1])], dim=1)
    if rule.is_cosine:
        emb_BD, centre_CKD = functional.normalize(emb_BD, dim=-1), functional.normalize(centre_CKD, dim=-1)
    return torch.einsum("bd,ckd->bck", emb_BD, centre_CKD).amax(-1)


def written_out(loss: LossConfig, logit_BC: Tensor, own_BC: Tensor, there_BC: Tensor, *, scale: float) -> Tensor:
    """Each row's loss, by all logits."""
    own_B, there_B = own_BC.sum(1).to(logit_BC), there_BC.sum(1).to(logit_BC)
    match loss:
        case bce.Config():
            weight_BC = 1 + (loss.positive_weight - 1) * own_BC.to(logit_BC)
            entropy_BC = functional.binary_cross_entropy_with_logits(
                logit_BC, own_BC.to(logit_BC), weight=weight_BC, reduction="none"
            )
            sum_B = (entropy_BC * there_BC).sum(1) * (own_B > 0)
            return sum_B / there_B if loss.reduce == "mean" else sum_B
        case proxy_anchor.Config():
            pull_BC = (loss.delta * scale - logit_BC).exp() * own_BC
            push_BC = (loss.delta * scale + logit_BC).exp() * (~own_BC & there_BC)
            pulled = (1 + pull_BC.sum(0)).log().sum() / own_BC.any(0).sum().clamp(min=1)
            return (pulled + (1 + push_BC.sum(0)).log().sum() / there_B[0]).expand(len(logit_BC))
        case softmax.Config():
            smooth = loss.label_smoothing
            spread_BC = there_BC.to(logit_BC) / there_B[:, None]
            wanted_BC = (1 - smooth) * own_BC.to(logit_BC) / own_B.clamp(min=1)[:, None] + smooth * spread_BC
            log_BC = logit_BC.masked_fill(~there_BC, -torch.inf).log_softmax(1)
            entropy_B = -(wanted_BC * log_BC.masked_fill(~there_BC, 0)).sum(1)
            entropy_B = torch.where(own_B > 0, entropy_B, 0)
            if isinstance(loss, focal.Config):
                return (1 - (-entropy_B).exp()) ** loss.gamma * entropy_B
            return entropy_B
    raise AssertionError(loss)


def first_state(rule: RuleConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """In the precision of the proof, and not where nothing happens yet."""
    start = {"t": 0.3, "norm_mean": 18.0, "norm_std": 9.0}
    return {
        name: torch.full_like(value, start.get(name, float(value)), dtype=dtype)
        for name, value in rule.first_state(len(NAMES)).items()
    }


# --- ranks


def head_of(task: Task, world: World, nodes: World | None = None) -> Head:
    counts: Any = torch.tensor(IMAGES_C).numpy()
    head = Head(task.rule, NAMES, dim=DIM, world=world, seed=0, domains=DOMAINS, counts=counts, nodes=nodes)
    head = head.to(task.dtype)
    assert head.take(dict(zip(NAMES, task.centre_CKD, strict=True))) == []
    head.state = {name: value.to(world.device) for name, value in first_state(task.rule, task.dtype).items()}
    return head


def seen_by(task: Task, head: Head, world: World, emb_ND: Tensor, counts: Sequence[int]) -> Seen:
    return Seen(
        world=world,
        counts=tuple(counts),
        emb_ND=emb_ND,
        emb_BD=world.gather(emb_ND, list(counts)),
        label_B=task.label_B,
        domain_B=task.domain_B,
        row_P=task.row_P,
        class_P=task.class_P,
        classes=head,
    )


def shared(task: Task, world: World, *, seed: int | None = None) -> Found:
    """What this rank has of it; `seed` samples."""
    head, counts = head_of(task, world), COUNTS[world.size]
    if seed is not None:
        head.draw(seed=seed, step=3)
    first = sum(counts[: world.rank])
    emb_ND = task.emb_BD[first : first + counts[world.rank]].clone().requires_grad_()
    value = task.loss.value(seen_by(task, head, world, emb_ND, counts))
    value.loss.backward()  # type: ignore[no-untyped-call]
    grad_CKD = head.centre_CKD.grad
    if head.sampled:
        ((row_R, leaf_RKD),) = head.sampled
        assert grad_CKD is None and leaf_RKD.grad is not None, "only the sample has a gradient"
        grad_CKD = torch.zeros_like(head.centre_CKD).index_copy(0, row_R, leaf_RKD.grad).detach()
    assert emb_ND.grad is not None and grad_CKD is not None
    return Found(value.loss.detach(), value.row_B, emb_ND.grad, grad_CKD, head.state)


def all_shared(world: World, tasks: Iterable[Task], seed: int | None = None) -> list[Found]:
    cut_small()
    return [shared(task, world, seed=seed) for task in tasks]


def cut_small() -> None:
    """So that ten classes are several blocks."""
    centres._BLOCK_MB = {"cpu": 1e-4}


def check_equal(found: Sequence[Found], wanted: Found, task: Task) -> None:
    """Every rank has the loss and the state; over the ranks lie the gradients, each once."""
    told = f"{task.loss!r} of {task.rule!r} in {task.dtype}"
    for one in found:
        _close(one.loss, wanted.loss, told)
        assert (one.row_B is None) == (wanted.row_B is None), told
        if one.row_B is not None and wanted.row_B is not None:
            _close(one.row_B, wanted.row_B, told)
        assert one.state.keys() == wanted.state.keys(), told
        for name, value in wanted.state.items():
            _close(one.state[name], value, f"{name} of {told}")
    _close(torch.cat([one.grad_emb for one in found]), wanted.grad_emb, f"embeddings, {told}")
    _close(torch.cat([one.grad_centre for one in found]), wanted.grad_centre, f"centres, {told}")


def _close(got: Tensor, wanted: Tensor, told: str) -> None:
    """In float64 to 1e-10 of each entry, but for what cancels; in float32 to 1e-5 of the largest."""
    largest = float(wanted.abs().max())
    rtol, atol = (1e-10, 1e-13 * largest) if got.dtype == torch.float64 else (0, 1e-5 * largest)
    torch.testing.assert_close(got, wanted.to(got.dtype), rtol=rtol, atol=atol, msg=lambda text: f"{told}: {text}")


def every_rule(make: Callable[[type[Any]], RuleConfig] = lambda config: config()) -> list[RuleConfig]:  # type: ignore[no-any-return]
    """By the folder: a new rule is among them without being named."""
    return [make(config) for config in Chosen("retrieval_train.heads").configs().values()]
