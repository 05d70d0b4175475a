"""The whole family of rules and losses on 1 to 4 ranks against all logits in one process."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from retrieval_train.heads import arcface, centres, curricularface, li_arcface, linear
from retrieval_train.heads.rule import RuleConfig
from retrieval_train.losses import bce, focal, proxy_anchor, softmax
from retrieval_train.losses.loss import LossConfig
from retrieval_train.world import Alone
from tests.processes import run_ranks
from tests.retrieval_train.heads.dense import SEVERAL, Task, all_shared, check_equal, dense, every_rule, shared

LOSSES: list[LossConfig] = [
    focal.Config(),
    bce.Config(),
    bce.Config(reduce="sum", positive_weight=3),
    proxy_anchor.Config(),
    softmax.Config(label_smoothing=0.1),
    softmax.Config(over="domain"),
    softmax.Config(over="domain", label_smoothing=0.1),
    focal.Config(over="domain", gamma=1),
]
FOR_SEVERAL: list[LossConfig] = [loss for loss in LOSSES if loss.many_labels] + [softmax.Config()]


def tasks() -> list[Task]:
    """Every rule with one and with two sub-centres; a plain rule and one that looks at every class, under every loss."""
    pairs: list[tuple[RuleConfig, LossConfig, list[list[int]] | None]] = []
    for rule, sub_centres in product(every_rule(), (1, 2)):
        pairs.append((rule.model_copy(update={"sub_centres": sub_centres}), softmax.Config(), None))
    pairs += [(rule, loss, None) for rule in (arcface.Config(), curricularface.Config(sub_centres=2)) for loss in LOSSES]
    several = (linear.Config(), arcface.Config(sub_centres=2), li_arcface.Config())
    pairs += [(rule, loss, SEVERAL) for rule in several for loss in FOR_SEVERAL]
    found = []
    ways = [(0, torch.float64), (64, torch.float64), (64, torch.float32)]  # 0: computed again, 64: kept
    for logits_mb, dtype in ways:
        for rule, loss, labels in pairs:
            placed = rule.model_copy(update={"logits_mb": logits_mb})
            found.append(Task(placed, loss, dtype=dtype, **({"labels": labels} if labels else {})))  # type: ignore[arg-type]
    return found


def test_one_process_has_the_loss_the_gradients_and_the_state_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in tasks():
        for size in (100, 2 << 20):
            monkeypatch.setattr(centres, "_BLOCK_BYTES", {"cpu": size})
            check_equal([shared(task, Alone())], dense(task), task)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_with_unequal_rows_have_the_loss_the_gradients_and_the_state_of_all_logits(ranks: int) -> None:
    cases = tasks()
    per_rank = run_ranks(all_shared, ranks, cases)
    for number, task in enumerate(cases):
        check_equal([found[number] for found in per_rank], dense(task), task)
