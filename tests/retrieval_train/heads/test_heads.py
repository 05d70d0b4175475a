"""Margin rules against the written-out formula, and the sharded head and loss against one dense process."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from retrieval_train.heads import arcface, cosface, normface
from retrieval_train.heads.centres import Head
from retrieval_train.heads.rule import RuleConfig, Scores
from retrieval_train.losses import softmax
from retrieval_train.world import Alone, World
from tests.processes import run_ranks

NAMES = [f"toys/{number}" for number in range(11)]
RULES: list[RuleConfig] = [
    normface.Config(),
    cosface.Config(margin=0.3, sub_centres=2),
    arcface.Config(margin=0.5, sub_centres=3),
    arcface.Config(margin=0.5, easy=True),
]


def written_out(rule: RuleConfig, cosine: float, *, is_target: bool) -> float:
    if not is_target or isinstance(rule, normface.Config):
        return rule.scale * cosine
    if isinstance(rule, cosface.Config):
        return rule.scale * (cosine - rule.margin)
    assert isinstance(rule, arcface.Config)
    angle, margin = math.acos(cosine), rule.margin
    if rule.easy:
        return rule.scale * (math.cos(angle + margin) if cosine > 0 else cosine)
    if angle + margin < math.pi:
        return rule.scale * math.cos(angle + margin)
    return rule.scale * (cosine - margin * math.sin(math.pi - margin))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_is_its_formula(rule: RuleConfig) -> None:
    cosines = [-0.999, -0.95, -0.3, 0.0, 0.4, 0.9, 0.999]
    cosine_BC = torch.tensor([cosines, cosines[::-1]]).T
    target_B = torch.tensor([5, 6] * 3 + [9])  # class 9 is on another rank
    logits_BC = rule.logits(Scores(cosine_BC, torch.ones(7), first_class=5), target_B)
    for row in range(7):
        for column in range(2):
            wanted = written_out(rule, float(cosine_BC[row, column]), is_target=int(target_B[row]) == 5 + column)
            assert float(logits_BC[row, column]) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("sign", [1, -1])
def test_loss_and_gradient_are_finite_at_cosine_plus_and_minus_one(rule: RuleConfig, sign: int) -> None:
    head = Head(rule, NAMES, dim=4, world=Alone(), seed=0)
    emb_BD = (sign * head.centre_CKD[:3, 0]).detach().requires_grad_()
    loss_B = softmax.Config().rows(
        head(emb_BD, torch.arange(3)), torch.arange(3), first_class=0, num_classes=11, world=Alone()
    )
    loss = loss_B.mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite() and emb_BD.grad is not None and emb_BD.grad.isfinite().all()


def dense(rule: RuleConfig, emb_BD: Tensor, target_B: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients by torch's own cross-entropy over all classes."""
    head = Head(rule, NAMES, dim=emb_BD.shape[1], world=Alone(), seed=4).double()
    emb_BD = emb_BD.clone().requires_grad_()
    loss = functional.cross_entropy(head(emb_BD, target_B), target_B, label_smoothing=smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    assert emb_BD.grad is not None and head.centre_CKD.grad is not None
    return loss.detach(), emb_BD.grad, head.centre_CKD.grad


def case() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 5, generator=generator, dtype=torch.float64), torch.randint(0, 11, (7,), generator=generator)


def sharded(world: World, rules: list[RuleConfig], smoothing: float) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The same loss from ranks that each hold some rows and some classes."""
    emb_BD, target_B = case()
    cuts = [7 * rank // world.size for rank in range(world.size + 1)]
    counts = [b - a for a, b in zip(cuts, cuts[1:], strict=False)]
    out = []
    for rule in rules:
        head = Head(rule, NAMES, dim=5, world=world, seed=4).double()
        mine_ND = emb_BD[cuts[world.rank] : cuts[world.rank + 1]].clone().requires_grad_()
        logits_BC = head(world.gather(mine_ND, counts), target_B)
        loss_B = softmax.Config(label_smoothing=smoothing).rows(
            logits_BC, target_B, first_class=head.first, num_classes=11, world=world
        )
        loss = loss_B.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        assert mine_ND.grad is not None and head.centre_CKD.grad is not None
        out.append((loss.detach(), mine_ND.grad, head.centre_CKD.grad))
    return out


@pytest.mark.parametrize(("ranks", "smoothing"), [(2, 0.0), (3, 0.1)])
def test_sharded_loss_and_gradients_are_those_of_one_process(ranks: int, smoothing: float) -> None:
    per_rank = run_ranks(sharded, ranks, RULES, smoothing)
    for number, rule in enumerate(RULES):
        loss, emb_grad, centre_grad = dense(rule, *case(), smoothing)
        for result in per_rank:
            torch.testing.assert_close(result[number][0], loss, rtol=1e-10, atol=0)
        torch.testing.assert_close(torch.cat([r[number][1] for r in per_rank]), emb_grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(torch.cat([r[number][2] for r in per_rank]), centre_grad, rtol=1e-9, atol=1e-12)


def test_first_centres_do_not_depend_on_who_makes_them() -> None:
    class Rank:
        size, device = 3, torch.device("cpu")

        def __init__(self, rank: int) -> None:
            self.rank = rank

    whole = Head(RULES[1], NAMES, dim=6, world=Alone(), seed=9).centre_CKD
    parts = [Head(RULES[1], NAMES, dim=6, world=Rank(rank), seed=9).centre_CKD for rank in range(3)]  # type: ignore[arg-type]
    assert torch.equal(torch.cat(parts), whole)


def test_centres_are_taken_by_class_name_and_the_missing_are_named() -> None:
    head = Head(normface.Config(), ["a/1", "a/2", "b/1"], dim=2, world=Alone(), seed=0)
    before = head.centre_CKD.detach().clone()
    assert head.take({"b/1": torch.ones(1, 2), "z/9": torch.zeros(1, 2)}) == ["a/1", "a/2"]
    assert torch.equal(head.centre_CKD[2], torch.ones(1, 2))
    assert torch.equal(head.centre_CKD[:2], before[:2])
    with pytest.raises(ValueError, match=r"centre of 'a/1' has shape \(1, 3\).*this head \(1, 2\)"):
        head.take({"a/1": torch.ones(1, 3)})


def test_fewer_classes_than_ranks_is_refused() -> None:
    class Many:
        rank, size, device = 0, 12, torch.device("cpu")

    with pytest.raises(ValueError, match="11 classes cannot be shared by 12 ranks"):
        Head(normface.Config(), NAMES, dim=2, world=Many(), seed=0)  # type: ignore[arg-type]
