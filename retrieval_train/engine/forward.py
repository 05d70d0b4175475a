"""The forward of one micro-batch as every engine does it: seeded, and weighted by its rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retrieval_train.data.batch import Batch
from retrieval_train.learner import Learner, Outcome, views
from retrieval_train.models.drop import row_seeds


def draw(learner: Learner, batch: Batch, *, seed: int, step: int) -> None:
    """What is random in a forward follows from (seed, step, row of the global batch): it is the same on any number of ranks
    and in a run that was resumed. Only what is no layer of the embedder's (there is nothing today) follows the rank."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + learner.world.rank) % 2**63)
    rows = [row for view in views(batch).values() for row in view.row_N]
    rows_N = torch.tensor(rows, dtype=torch.int64, device=learner.world.device)
    learner.embedder.draw(row_seeds(seed, step, rows_N))  # type: ignore[operator]
    learner.draw(seed=seed, step=step)


def global_loss(learner: Learner, embed: Callable[[Tensor], Tensor], batch: Batch) -> Outcome:
    """This micro-batch's share of the mean loss over the global batch; the same number on every rank."""
    loss, of_domain_2M, of_term = learner.forward(embed, batch.to(learner.world.device))
    return Outcome(loss * batch.weight, of_domain_2M, {name: part * batch.weight for name, part in of_term.items()})


class Losses:
    """Adds up the losses of domains and terms over the micro-batches of a step."""

    def __init__(self, domains: tuple[str, ...]) -> None:
        self._domains = domains
        self._sums: Tensor | None = None
        self._of_term: dict[str, Tensor] = {}

    def add(self, found: Outcome) -> None:
        self._sums = found.of_domain_2M if self._sums is None else self._sums + found.of_domain_2M
        self._of_term = {name: self._of_term.get(name, 0.0) + part for name, part in found.of_term.items()}

    def means(self) -> dict[str, float]:
        """The mean of the main loss of every domain that had rows."""
        if self._sums is None or not self._domains:
            return {}
        total, count = self._sums.tolist()
        return {name: total[at] / count[at] for at, name in enumerate(self._domains) if count[at]}

    def of_terms(self) -> dict[str, float]:
        """Each loss without its weight, where there are several."""
        return {name: float(part) for name, part in self._of_term.items()}
