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
from tests.retrieval_train.heads.dense import (
    ONE_EACH,
    SEVERAL,
    Task,
    all_shared,
    check_equal,
    dense,
    every_rule,
    shared,
)

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


def pairs() -> list[tuple[RuleConfig, LossConfig, list[list[int]]]]:
    """Every rule with one and with two sub-centres; a plain rule and one that looks at every class, under every loss; several
    labels an image; no label at all."""
    rules = every_rule()
    nobody: list[list[int]] = [[] for _ in ONE_EACH]
    many = product(rules, (1, 2))
    found = [(rule.model_copy(update={"sub_centres": k}), FOR_SEVERAL[-1], ONE_EACH) for rule, k in many]
    both = (arcface.Config(), curricularface.Config(sub_centres=2))
    found += [(rule, loss, ONE_EACH) for rule in both for loss in LOSSES]
    several = (linear.Config(), arcface.Config(sub_centres=2), li_arcface.Config())
    found += [(rule, loss, SEVERAL) for rule in several for loss in FOR_SEVERAL]
    found += [(rule, FOR_SEVERAL[-1], nobody) for rule in rules] + [(both[0], loss, nobody) for loss in LOSSES]
    return found


def tasks(ranks: int) -> list[Task]:
    """Logits are kept, or computed again, on one number of ranks with these and on the next with those."""
    found = []
    for at, (rule, loss, labels) in enumerate(pairs()):
        placed = rule.model_copy(update={"logits_mb": 64 * ((at + ranks) % 2)})
        found.append(Task(placed, loss, labels))
        if labels is ONE_EACH:
            found.append(Task(placed, loss, labels, torch.float32))
    return found


def test_one_process_has_the_loss_the_gradients_and_the_state_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    for ways in (0, 1):
        for task in tasks(ways):
            wanted = dense(task)
            for size_mb in (1e-4, 2.0):
                monkeypatch.setattr(centres, "_BLOCK_MB", {"cpu": size_mb})
                check_equal([shared(task, Alone())], wanted, task)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_with_unequal_rows_have_the_loss_the_gradients_and_the_state_of_all_logits(ranks: int) -> None:
    cases = tasks(ranks)
    per_rank = run_ranks(all_shared, ranks, cases)
    for number, task in enumerate(cases):
        check_equal([found[number] for found in per_rank], dense(task), task)
