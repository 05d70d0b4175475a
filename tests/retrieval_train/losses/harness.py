"""A loss on made-up rows: in one process, and on real ranks that each hold some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from retrieval_train.losses.loss import LossConfig, Seen
from retrieval_train.world import Alone, World
from tests.processes import run_ranks

DIM = 5

Labels = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Case:
    """Rows of the global batch: their embeddings, and the labels of each."""

    emb_BD: Tensor
    labels: Labels
    state: dict[str, Tensor] = field(default_factory=dict)


class Outcome(NamedTuple):
    loss: Tensor
    grad_ND: Tensor
    row_B: Tensor | None
    state: dict[str, Tensor]


def rows(labels: Labels, *, seed: int = 0, state: dict[str, Tensor] | None = None) -> Case:
    """Random rows in float64, those with a first label in common somewhat alike."""
    generator = torch.Generator().manual_seed(seed)
    centre_CD = torch.randn(32, DIM, generator=generator, dtype=torch.float64)
    noise_BD = torch.randn(len(labels), DIM, generator=generator, dtype=torch.float64)
    first_B = torch.tensor([row[0] if row else 31 for row in labels])
    return Case(0.4 * centre_CD[first_B] + noise_BD, labels, state or {})


def outcome(loss: LossConfig, case: Case, world: World, counts: Sequence[int], *, is_training: bool = True) -> Outcome:
    """The loss of this rank, and its gradient by this rank's embeddings."""
    first = sum(counts[: world.rank])
    emb_ND = case.emb_BD[first : first + counts[world.rank]].clone().requires_grad_()
    pairs = [(row, label) for row, labels in enumerate(case.labels) for label in labels]
    state = {name: value.clone() for name, value in case.state.items()}
    seen = Seen(
        world=world,
        counts=tuple(counts),
        emb_ND=emb_ND,
        emb_BD=world.gather(emb_ND, list(counts)),
        label_B=torch.tensor([labels[0] if labels else -1 for labels in case.labels]),
        domain_B=torch.zeros(len(case.labels), dtype=torch.int64),
        row_P=torch.tensor([row for row, _ in pairs], dtype=torch.int64),
        class_P=torch.tensor([label for _, label in pairs], dtype=torch.int64),
        state=state,
        is_training=is_training,
    )
    value = loss.value(seen)
    value.loss.backward()  # type: ignore[no-untyped-call]
    assert emb_ND.grad is not None, "every rank takes part in the backward, whatever its rows are"
    return Outcome(value.loss.detach(), emb_ND.grad, value.row_B, state)


def alone(loss: LossConfig, case: Case, *, is_training: bool = True) -> Outcome:
    return outcome(loss, case, Alone(), [len(case.labels)], is_training=is_training)


def _all(world: World, tasks: list[tuple[LossConfig, Case]], counts: Sequence[int]) -> list[Outcome]:
    return [outcome(loss, case, world, counts) for loss, case in tasks]


def check_sharded(tasks: list[tuple[LossConfig, Case]], counts: Sequence[int]) -> None:
    """Every rank has the loss, the rows' losses and the state of one process, and over the ranks lies its gradient."""
    per_rank: list[list[Outcome]] = run_ranks(_all, len(counts), tasks, counts)
    for number, (loss, case) in enumerate(tasks):
        wanted, got = alone(loss, case), [outcomes[number] for outcomes in per_rank]
        for one in got:
            _close(one.loss, wanted.loss, loss)
            assert (one.row_B is None) == (wanted.row_B is None), repr(loss)
            if one.row_B is not None and wanted.row_B is not None:
                _close(one.row_B, wanted.row_B, loss)
            for name, value in wanted.state.items():
                _close(one.state[name], value, loss)
        _close(torch.cat([one.grad_ND for one in got]), wanted.grad_ND, loss)


def _close(got: Tensor, wanted: Tensor, loss: LossConfig) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13, msg=lambda text: f"{loss!r}: {text}")
