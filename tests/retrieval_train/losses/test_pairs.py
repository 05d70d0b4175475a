"""Losses that compare rows with rows: against loops over pairs and triplets, on real ranks, with nothing to compare."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from retrieval_train.losses import angular, contrastive, multi_similarity, pairs, supcon, triplet, xbm
from retrieval_train.losses.loss import LossConfig
from tests.retrieval_train.losses.harness import DIM, Case, Labels, alone, check_sharded, rows

ONE = [[0], [1], [0], [2], [1], [0], [], [2], [3]]
SEVERAL = [[0, 1, 2, 3], [1, 2], [0, 1, 2, 4], [5], [5, 6], [], [1, 2, 3], [6, 0], [7]]

TRIPLETS = [
    triplet.Config.model_validate(
        {"mining": mining, "margin": margin, "distance": distance, "non_zero_only": non_zero_only}
    )
    for mining in ("hard", "semi_hard", "weighted", "all")
    for margin, distance, non_zero_only in (
        (0.2, "euclidean", False),
        ("soft", "squared", False),
        (0.3, "cosine", True),
    )
]
MARGIN_LOSS = contrastive.Config(positive_margin=1.0, negative_margin=1.4, power=1, mean="together")
LOSSES: list[LossConfig] = [
    *TRIPLETS,
    triplet.Config(mining="all", min_shared=2),
    contrastive.Config(positive_margin=0.1, negative_margin=1.2),
    MARGIN_LOSS,
    supcon.Config(),
    multi_similarity.Config(),
    multi_similarity.Config(alpha=3, beta=10, base=0.2, epsilon=None),
    angular.Config(),
    angular.Config(alpha=0.3),
]


def shared(labels: Labels, a: int, b: int) -> int:
    return len(set(labels[a]) & set(labels[b]))


def positives(labels: Labels, a: int, least: int = 1) -> list[int]:
    return [b for b in range(len(labels)) if b != a and shared(labels, a, b) >= least]


def negatives(labels: Labels, a: int) -> list[int]:
    return [b for b in range(len(labels)) if labels[a] and labels[b] and not shared(labels, a, b)]


def mean(terms: list[Tensor]) -> Tensor:
    return sum(terms, torch.zeros(())) / max(1, len(terms))


def triplet_by_loops(loss: triplet.Config, cosine: Tensor, labels: Labels) -> Tensor:
    distance = {
        "euclidean": lambda a, b: (2 - 2 * cosine[a, b]).sqrt(),
        "squared": lambda a, b: 2 - 2 * cosine[a, b],
        "cosine": lambda a, b: 1 - cosine[a, b],
    }[loss.distance]

    def term(near: Tensor, far: Tensor) -> Tensor:
        if loss.margin == "soft":
            return (1 + (near - far).exp()).log()
        return torch.clamp(near - far + loss.margin, min=0)

    def weigh(x: Tensor) -> float:
        return math.exp(float(x.detach()))

    terms = []
    for a in range(len(labels)):
        near = [distance(a, p) for p in positives(labels, a, loss.min_shared)]
        far = [distance(a, n) for n in negatives(labels, a)]
        if not near or not far:
            continue
        if loss.mining == "hard":
            terms.append(term(max(near), min(far)))
        elif loss.mining == "weighted":
            total_p, total_n = sum(weigh(d) for d in near), sum(weigh(-d) for d in far)
            terms.append(
                term(
                    mean([weigh(d) / total_p * d * len(near) for d in near]),
                    mean([weigh(-d) / total_n * d * len(far) for d in far]),
                )
            )
        elif loss.mining == "semi_hard":
            terms += [term(p, min([n for n in far if n > p], default=max(far))) for p in near]
        else:
            terms += [term(p, n) for p in near for n in far]
    return mean([one for one in terms if one > 0] if loss.non_zero_only else terms)


def contrastive_by_loops(loss: contrastive.Contrastive, cosine: Tensor, labels: Labels) -> Tensor:
    """Rows beyond those of `cosine` are the memory's."""
    near, far = [], []
    for a in range(len(cosine)):
        near += [(2 - 2 * cosine[a, b]).sqrt() - loss.positive_margin for b in positives(labels, a)]
        far += [loss.negative_margin - (2 - 2 * cosine[a, b]).sqrt() for b in negatives(labels, a)]
    near, far = [d**loss.power for d in near if d > 0], [d**loss.power for d in far if d > 0]
    return mean(near + far) if loss.mean == "together" else mean(near) + mean(far)


def supcon_by_loops(loss: supcon.Config, cosine: Tensor, labels: Labels) -> Tensor:
    exp, terms = (cosine / loss.temperature).exp(), []
    for a in range(len(labels)):
        if near := positives(labels, a):
            others = torch.stack([exp[a, b] for b in range(len(labels)) if b != a and labels[b]]).sum()
            terms.append(-mean([(exp[a, p] / others).log() for p in near]))
    return mean(terms)


def multi_similarity_by_loops(loss: multi_similarity.Config, cosine: Tensor, labels: Labels) -> Tensor:
    terms = []
    for a in range(len(labels)):
        near, far = [cosine[a, p] for p in positives(labels, a)], [cosine[a, n] for n in negatives(labels, a)]
        if loss.epsilon is not None:
            near, far = (
                [c for c in near if far and c < max(far) + loss.epsilon],
                [c for c in far if near and c > min(near) - loss.epsilon],
            )
        if labels[a]:
            sum_p = sum((-loss.alpha * (c - loss.base)).exp() for c in near)
            sum_n = sum((loss.beta * (c - loss.base)).exp() for c in far)
            terms.append(torch.log(torch.ones(()) + sum_p) / loss.alpha + torch.log(torch.ones(()) + sum_n) / loss.beta)
    return mean(terms)


def angular_by_loops(loss: angular.Config, unit: Tensor, labels: Labels) -> Tensor:
    square, terms = math.tan(loss.alpha) ** 2, []
    for a in range(len(labels)):
        for p in positives(labels, a):
            far = [
                4 * square * (unit[a] + unit[p]) @ unit[n] - 2 * (1 + square) * unit[a] @ unit[p]
                for n in negatives(labels, a)
            ]
            if far:
                terms.append((torch.ones(()) + sum(f.exp() for f in far)).log())
    return mean(terms)


def by_loops(loss: LossConfig, emb_BD: Tensor, labels: Labels) -> Tensor:
    unit_BD = emb_BD / emb_BD.square().sum(dim=1, keepdim=True).sqrt()
    cosine = unit_BD @ unit_BD.T
    if isinstance(loss, triplet.Config):
        return triplet_by_loops(loss, cosine, labels)
    if isinstance(loss, contrastive.Contrastive):
        return contrastive_by_loops(loss, cosine, labels)
    if isinstance(loss, supcon.Config):
        return supcon_by_loops(loss, cosine, labels)
    if isinstance(loss, multi_similarity.Config):
        return multi_similarity_by_loops(loss, cosine, labels)
    assert isinstance(loss, angular.Config)
    return angular_by_loops(loss, unit_BD, labels)


def same_as_loops(loss: LossConfig, case: Case) -> None:
    emb_BD = case.emb_BD.clone().requires_grad_()
    wanted = by_loops(loss, emb_BD, case.labels)
    (wanted_BD,) = torch.autograd.grad(wanted, emb_BD)
    got = alone(loss, case)
    assert float(wanted.detach()) > 0, "a case in which this loss has something to do"
    torch.testing.assert_close(got.loss, wanted.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(got.grad_ND, wanted_BD, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_loss_and_its_gradient_are_those_of_loops_over_pairs_and_triplets(
    loss: LossConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    if getattr(loss, "min_shared", 1) == 1:
        same_as_loops(loss, rows(ONE, seed=1))
    same_as_loops(loss, rows(SEVERAL, seed=2))
    monkeypatch.setattr(pairs, "CHUNK", 2 * len(SEVERAL))  # two pairs at a time
    same_as_loops(loss, rows(SEVERAL, seed=3))


@pytest.mark.parametrize("counts", [[4, 5], [3, 1, 5], [2, 1, 5, 1]], ids=repr)
def test_any_number_of_ranks_has_the_loss_and_the_gradient_of_one_process(counts: list[int]) -> None:
    apart = [[0], [0], [1], [2], [3], [1], [4], [5], [6]]  # some ranks have no positive at all
    lonely = [[number] for number in range(9)]
    nothing: list[Labels] = [lonely, [[]] * 9]
    tasks = [(loss, rows(labels, seed=4)) for loss in LOSSES for labels in (SEVERAL, apart)]
    tasks += [(loss, rows(labels, seed=4)) for loss in (*TRIPLETS[::3], *LOSSES[-5:]) for labels in nothing]
    for bank in (7, 12, 30):  # shorter than a batch, longer, with empty places
        memory = xbm.Config(bank=bank, negative_margin=1.4)
        tasks.append((memory, rows(ONE, seed=5, state=memory.first_state(dim=DIM))))
        tasks.append((memory, rows(apart, seed=6, state=alone(*tasks[-1]).state)))
    check_sharded(tasks, counts)


@pytest.mark.parametrize("loss", [*LOSSES, xbm.Config(bank=4)], ids=repr)
def test_loss_and_gradient_are_finite_where_rows_are_equal_or_nothing_can_be_compared(loss: LossConfig) -> None:
    state = loss.first_state(dim=DIM)
    batches: list[Labels] = [[[0], [0], [1], [1]], [[0]] * 4, [[0], [1], [2], [3]], [[]] * 4, [[0]], [[]]]
    all_signs = [torch.ones(4, 1), torch.tensor([[1], [-1], [1], [-1]])]
    # an axis has cosine 1 with itself to the last bit, the other row about 1
    for row_1D in (torch.eye(DIM)[:1], torch.arange(1, DIM + 1)[None] / 3):
        for labels, signs, dtype in itertools.product(batches, all_signs, (torch.float32, torch.float64)):
            emb_BD = (row_1D.repeat(4, 1) * signs)[: len(labels)].to(dtype)
            got = alone(loss, Case(emb_BD, labels, state))
            assert got.loss.isfinite() and got.grad_ND.isfinite().all(), (labels, emb_BD)
            assert got.loss.dtype == dtype and got.row_B is not None and len(got.row_B) == len(labels)
            if not labels[0] or len(labels) == 1:
                assert float(got.loss) == 0 and not got.grad_ND.any()


def test_triplets_that_share_some_labels_but_too_few_are_neither_positive_nor_negative() -> None:
    labels = [[0, 1, 2], [0, 1, 3], [2], [4]]  # row 2 shares one label with row 0 alone
    case = rows(labels, seed=7)
    two = alone(triplet.Config(mining="all", margin="soft", min_shared=2), case)
    moved = Case(case.emb_BD.clone(), labels)
    moved.emb_BD[2] = -moved.emb_BD[2]
    assert two.row_B is not None and float(two.row_B[2]) == 0
    again = alone(triplet.Config(mining="all", margin="soft", min_shared=2), moved)
    assert again.row_B is not None and torch.equal(two.row_B[:1], again.row_B[:1])


@pytest.mark.parametrize("bank", [5, 12])
def test_the_memory_is_the_last_rows_in_order_and_a_loss_over_it_is_that_of_loops(bank: int) -> None:
    loss = xbm.Config(bank=bank, negative_margin=1.4)
    batches = [rows(labels, seed=seed) for seed, labels in enumerate([ONE, ONE[::-1], [[3], [0]], ONE[2:], ONE])]
    state, past_MD, past = loss.first_state(dim=DIM), torch.zeros(0, DIM, dtype=torch.float64), list[list[int]]()
    for batch in batches:
        emb_BD = batch.emb_BD.clone().requires_grad_()
        unit_BD = torch.nn.functional.normalize(emb_BD, dim=1)
        kept_MD = past_MD[-bank:].float().double()  # the memory is float32
        wanted = contrastive_by_loops(loss, unit_BD @ torch.cat([unit_BD, kept_MD]).T, [*batch.labels, *past[-bank:]])
        (wanted_BD,) = torch.autograd.grad(wanted, emb_BD)
        looked = alone(loss, Case(batch.emb_BD, batch.labels, state), is_training=False)
        got = alone(loss, Case(batch.emb_BD, batch.labels, state))
        assert all(torch.equal(looked.state[name], state[name]) for name in state), "only training batches are written"
        for one in (looked, got):
            torch.testing.assert_close(one.loss, wanted.detach(), rtol=1e-10, atol=0)
            torch.testing.assert_close(one.grad_ND, wanted_BD, rtol=1e-9, atol=1e-12)
        state, past = got.state, [*past, *[list(labels) for labels in batch.labels]]
        past_MD = torch.cat([past_MD, unit_BD.detach()])
    assert int(state["bank_at"]) == len(past)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"45 is not in \(0, pi/2\).*45 degrees would be 0.785"):
        angular.Config(alpha=45)
    with pytest.raises(ValidationError, match=r"positive_margin 1\.2 is not below negative_margin 1"):
        contrastive.Config(positive_margin=1.2)
    with pytest.raises(ValidationError, match="margin"):
        triplet.Config(margin=-0.1)
    assert contrastive.Config.many_labels and not xbm.Config.many_labels
