"""One small reduction a step answers every yes-or-no question that all ranks must answer alike.

A signal reaches one rank, a clock runs out on one, a disk is full under one: each rank says what it knows, and all of them
act on the same step. On the CPU, so that no GPU waits for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from retrieval_train.world import World


class Agreement:
    """`ask` once, `agree` every step, then `says`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._of_rank: dict[str, Callable[[], bool]] = {}
        self._yes: set[str] = set()

    def ask(self, question: str, of_rank: Callable[[], bool]) -> None:
        """`of_rank` is this rank's answer. Every rank asks the same questions in the same order."""
        assert question not in self._of_rank, f"'{question}' is asked already"
        self._of_rank[question] = of_rank

    def agree(self) -> None:
        """Collective."""
        flags = torch.tensor([float(answer()) for answer in self._of_rank.values()])
        yes = self._world.max(flags).tolist() if len(flags) else []
        self._yes = {question for question, flag in zip(self._of_rank, yes, strict=True) if flag}

    def says(self, question: str) -> bool:
        """Whether any rank said yes when they last agreed."""
        return question in self._yes
