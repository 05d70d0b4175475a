"""The head itself: where numbers end, what 16 bits cost, how centres begin, are kept and are refused, and what it holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from retrieval_train.heads import arcface, centres, dynamic_arcface, normface
from retrieval_train.heads.centres import Head
from retrieval_train.heads.rule import RuleConfig
from retrieval_train.losses import bce, focal, proxy_anchor, softmax
from retrieval_train.losses.loss import LossConfig, Seen
from retrieval_train.world import Alone
from tests.retrieval_train.heads.dense import IMAGES_C, NAMES, Found, Task, dense, every_rule, seen_by, shared
from tests.retrieval_train.heads.held import most_held_by_head, rank_alone

LOSSES: list[LossConfig] = [softmax.Config(), softmax.Config(label_smoothing=0.1), focal.Config(), bce.Config()]
LOSSES += [proxy_anchor.Config(), softmax.Config(over="domain")]


# --- where numbers end


def by_rows(head: Head, loss: LossConfig, emb_BD: Tensor, class_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of rows that have these classes."""
    emb_BD = emb_BD.detach().requires_grad_()
    row_P = torch.arange(len(class_P))
    seen = Seen(Alone(), (len(emb_BD),), emb_BD, emb_BD, class_P, torch.zeros_like(class_P), row_P, class_P, head)
    value = loss.value(seen)
    value.loss.backward()  # type: ignore[no-untyped-call]
    assert emb_BD.grad is not None and head.centre_CKD.grad is not None
    return value.loss.detach(), emb_BD.grad, head.centre_CKD.grad


def head_of(rule: RuleConfig, dim: int = 6) -> Head:
    counts: Any = torch.tensor(IMAGES_C).numpy()
    return Head(rule, NAMES, dim=dim, world=Alone(), seed=0, domains=("art", "cars", "toys"), counts=counts)


@pytest.mark.parametrize("products", ["fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_finite_at_cosine_plus_and_minus_one(products: Any, dtype: torch.dtype) -> None:
    """Of the own class, and so of another one for the next row: embeddings are the centres themselves and their opposites."""
    for rule in every_rule(lambda config: config(products=products)):
        for loss in LOSSES:
            head = head_of(rule)
            same_BD = 20 * head.centre_CKD[:4, 0, :6]
            emb_BD = torch.cat([same_BD, -same_BD, same_BD, -same_BD]).to(dtype)
            class_P = torch.tensor([0, 1, 2, 3] * 2 + [1, 2, 3, 0] * 2)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                value, grad_BD, grad_CKD = by_rows(head, loss, emb_BD, class_P)
            told = f"{loss!r} of {rule!r}"
            assert value.isfinite() and grad_BD.isfinite().all() and grad_CKD.isfinite().all(), told
            assert grad_BD.dtype == dtype and value.dtype == torch.float32, told
            assert grad_BD.any() and grad_CKD.any(), told


def test_an_embedding_of_length_zero_has_cosine_zero_and_a_finite_but_huge_gradient() -> None:
    """As with torch's own normalize: its direction is divided by the floor of 1e-12, and clipping has to bring it back."""
    emb_BD = torch.zeros(2, 6)
    emb_BD[1, 2] = 3.0
    for rule in every_rule():
        loss, grad_BD, grad_CKD = by_rows(head_of(rule), softmax.Config(), emb_BD, torch.tensor([4, 7]))
        assert loss.isfinite() and grad_BD.isfinite().all() and grad_CKD.isfinite().all(), repr(rule)
        assert grad_BD.float().square().sum().isfinite(), f"{rule!r}: the norm is a number, so the step can be clipped"
        if rule.is_cosine:
            assert float(grad_BD[0].norm()) > 1e9, repr(rule)


# --- 16 bits

OF_16_BITS = 2**-8
"""bfloat16 has 8 significant bits: a factor is off by up to 1/256 of itself."""


def test_products_of_16_bits_are_within_their_rounding() -> None:
    """A cosine is off by up to two roundings of factors and its own: logits, and so losses, by 3/256 of the scale, or a bit
    more where they are no multiple of it. Slopes are probabilities, where less is off: 1/256 of the scale at the largest."""
    for rule in every_rule(lambda config: config(products="bf16")):
        task = Task(rule, softmax.Config(), dtype=torch.float32)
        found, wanted = shared(task, Alone()), dense(task)
        off = OF_16_BITS * float(rule.factor(found.state))
        assert found.row_B is not None and wanted.row_B is not None
        assert 0 < float((found.row_B - wanted.row_B).abs().max()) <= 3 * off, repr(rule)
        for got, true in ((found.grad_emb, wanted.grad_emb), (found.grad_centre, wanted.grad_centre)):
            assert 0 < float((got - true).abs().max()) <= off * float(true.abs().max()), repr(rule)


# --- classes


def test_first_centres_do_not_depend_on_who_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(centres, "_BLOCK", 3)
    rule = arcface.Config(sub_centres=2)
    whole = Head(rule, NAMES, dim=6, world=Alone(), seed=9).centre_CKD
    parts: list[Tensor] = [Head(rule, NAMES, dim=6, world=rank_alone(4, rank), seed=9).centre_CKD for rank in range(4)]
    assert torch.equal(torch.cat(parts), whole)
    assert len(whole.flatten().unique()) == whole.numel(), "no block repeats another"


def test_centres_are_taken_by_class_name_and_the_missing_are_named() -> None:
    head = Head(normface.Config(), ["a/1", "a/2", "b/1"], dim=2, world=Alone(), seed=0)
    before = head.centre_CKD.detach().clone()
    assert head.take({"b/1": torch.ones(1, 2), "z/9": torch.zeros(1, 2)}) == ["a/1", "a/2"]
    assert torch.equal(head.centre_CKD[2], torch.ones(1, 2))
    assert torch.equal(head.centre_CKD[:2], before[:2])
    with pytest.raises(ValueError, match=r"centre of 'a/1' has shape \(1, 3\).*this head \(1, 2\)"):
        head.take({"a/1": torch.ones(1, 3)})


def test_fewer_classes_than_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="11 classes cannot be shared by 12 ranks; use fewer ranks"):
        Head(normface.Config(), NAMES, dim=2, world=rank_alone(12), seed=0)


@pytest.mark.parametrize("label", [-2, 11])
def test_a_label_that_is_no_class_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=rf"labels run from .*{label}.* but there are 11 classes"):
        by_rows(head_of(normface.Config()), softmax.Config(), torch.ones(2, 6), torch.tensor([3, label]))


def test_domains_whose_classes_alternate_are_refused_where_rows_see_their_own_domain_only() -> None:
    head = Head(normface.Config(), ["a/1", "b/1", "a/2", "b/2"], dim=6, world=Alone(), seed=0, domains=("a", "b"))
    with pytest.raises(ValueError, match=r"classes of several domains alternate.*`shards make`.*or set over: all"):
        by_rows(head, softmax.Config(over="domain"), torch.ones(2, 6), torch.tensor([3, 0]))
    assert by_rows(head, softmax.Config(), torch.ones(2, 6), torch.tensor([3, 0]))[0].isfinite()


def test_focal_refuses_smoothing() -> None:
    with pytest.raises(
        ValidationError, match=r"0\.1 is given, but a smoothed cross-entropy is not the -log p that focal weighs"
    ):
        focal.Config(label_smoothing=0.1)
    assert focal.Config(label_smoothing=0).gamma == 2


@pytest.mark.parametrize("limit", [1, 40, 64, 65, 200, 1000, 5000])
def test_wide_blocks_of_classes_are_multiples_of_64_and_end_where_domains_end(limit: int) -> None:
    names = [f"a/{n:04}" for n in range(1003)] + [f"b/{n:04}" for n in range(70)]
    head = Head(normface.Config(), names, dim=2, world=Alone(), seed=0, domains=("a", "b"))
    head.block_mb = limit * 4 * 2 / 2**20
    row = torch.tensor([0, 1])
    blocks = head.score(torch.ones(2, 2), head.centre_CKD, row, row, own_domain=True)._blocks
    ends = [0, *(block.stop for block in blocks)]
    assert [block.start for block in blocks] == ends[:-1] and {1003, 1073} <= set(ends) and ends[-1] == 1073
    widths = [block.stop - block.start for block in blocks]
    assert 0 < max(widths) <= limit
    for width, stop in zip(widths, ends[1:], strict=True):
        assert width <= 64 or width % 64 == 0 or stop in (1003, 1073)


def test_margins_by_counts_want_the_counts() -> None:
    with pytest.raises(
        ValueError, match=r"'dynamic_arcface' sets margins by the classes' numbers of images.*shards make"
    ):
        Head(dynamic_arcface.Config(), NAMES, dim=2, world=Alone(), seed=0)


def test_scores_and_logits_of_all_classes_are_those_without_margin() -> None:
    for rule in every_rule(lambda config: config(sub_centres=2)):
        head = head_of(rule)
        emb_BD = torch.randn(3, 6)
        wide_BD, table = emb_BD, head.centre_CKD.detach()
        if rule.has_bias:
            wide_BD = functional.pad(emb_BD, (0, 1), value=1.0)
        if rule.is_cosine:
            wide_BD, table = functional.normalize(wide_BD, dim=-1), functional.normalize(table, dim=-1)
        wanted = torch.stack([(wide_BD @ table[:, k].T) for k in range(2)]).amax(0)
        torch.testing.assert_close(head.cosines(emb_BD), wanted)
        if rule.only_scales:
            torch.testing.assert_close(head.logits(emb_BD), float(rule.factor(head.state)) * wanted)


# --- memory


def test_memory_falls_as_one_over_the_ranks_and_logits_stay_within_their_limit() -> None:
    """The gradient of the table, the logits that are kept, and a block or two."""
    rows, dim, mib = 256, 32, 2**20
    names = [f"toys/{number:05d}" for number in range(32_768)]

    def held(ranks: int, logits_mb: int) -> float:
        """Of the first of them, which has all rows' classes."""
        return most_held_by_head(rank_alone(ranks), arcface.Config(logits_mb=logits_mb), rows, names, dim) / mib

    table, logits, block = 4, 32, 2
    of_ranks = {ranks: held(ranks, 2048) for ranks in (1, 2, 4)}
    for ranks, size in of_ranks.items():
        assert (table + logits) / ranks <= size <= (table + logits) / ranks + 3 * block, of_ranks
    again = held(1, 31)
    assert table <= again <= table + 3 * block, f"{again} MiB: logits that do not fit are not kept at all"


def test_nothing_of_a_step_is_left_behind() -> None:
    task = Task(arcface.Config(), softmax.Config())
    first: Found = shared(task, Alone())
    assert first.row_B is not None and not first.row_B.requires_grad
    head, emb = head_of(arcface.Config(), 5).double(), task.emb_BD.clone().requires_grad_()
    value = softmax.Config().value(seen_by(task, head, Alone(), emb, [len(emb)]))
    node: Any = value.loss.grad_fn
    while "OverBlocks" not in type(node).__name__:
        node = next(parent for parent, _ in node.next_functions if parent is not None)
    value.loss.backward()  # type: ignore[no-untyped-call]
    assert node.scored is None and node.memo is None
