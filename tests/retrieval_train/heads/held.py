"""What head and loss hold, measured."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from retrieval_train.heads.centres import Head
from retrieval_train.heads.rule import RuleConfig
from retrieval_train.losses import softmax
from retrieval_train.losses.loss import Seen
from retrieval_train.world import Alone, World


def rank_alone(size: int, rank: int = 0) -> World:
    """One of several ranks, without the others: their sums are left out, and no tensor less is made."""
    world: Any = Alone()
    world.rank, world.size = rank, size
    found: World = world
    return found


def most_held_by_head(world: World, rule: RuleConfig, rows: int, names: list[str], dim: int) -> int:
    """The most bytes at a time of a forward and a backward, beside the table; of the first rank's own classes."""
    head = Head(rule, names, dim=dim, world=world, seed=0)
    emb_BD, class_P = torch.randn(rows, dim).requires_grad_(), torch.arange(rows)
    seen = Seen(Alone(), (rows,), emb_BD, emb_BD, class_P, torch.zeros_like(class_P), class_P, class_P, head)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        softmax.Config().value(seen).loss.backward()  # type: ignore[no-untyped-call]
    held = most = 0
    events: Any = told.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
