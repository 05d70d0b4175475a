"""Embedder, heads and losses behind one forward; says which parameters are replicated and which are sharded by class.

Legend: N rows of this rank, B rows of all ranks, P (row, label) pairs, D dimensions, E columns of further layers, M domains.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from retrieval_train.data.batch import Batch
from retrieval_train.heads.centres import Head
from retrieval_train.losses.loss import LossConfig, Seen, Value, spread
from retrieval_train.world import World

_VIEW = 1 << 40  # further than any row of a global batch: rows of another view drop other things


class Outcome(NamedTuple):
    """What one forward gives; the same numbers on every rank."""

    loss: Tensor
    """The mean over the rows of all ranks."""
    of_domain_2M: Tensor
    """Sum of the main loss and number of rows of every domain; without gradient."""
    of_term: dict[str, Tensor]
    """Each loss without its weight, where there are several; without gradient."""


@dataclass(frozen=True)
class Term:
    """A loss, what it is multiplied by, and the class centres that it compares with."""

    loss: LossConfig
    head: Head | None = None
    """None: it compares with none, or with the main head."""
    weight: float = 1.0
    own_heads: Mapping[str, Head] = field(default_factory=dict)
    """Class centres that the loss asked for."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """The loss's running state: the same on all ranks."""
    num_extra: int = 0
    """E: columns that its layers add behind the embedding."""


def dotted(name: str, key: str) -> str:
    """What `key` is called of the term or head of that name; the main one is ""."""
    return f"{name}.{key}" if name else key


class View(NamedTuple):
    """Images of a batch seen in one way."""

    image_NCHW: Tensor
    row_N: tuple[int, ...]
    """What their dropout follows."""


def views(batch: Batch) -> dict[str, View]:
    """All images that go through the embedder at a step, in the order in which they do, in one forward."""
    known = [("weak", batch.image_NCHW, batch.row_N), ("strong", batch.strong_NCHW, batch.row_N)]
    if (rest := batch.unlabelled) is not None:
        known += [("unlabelled", rest.image_NCHW, rest.row_N), ("unlabelled_strong", rest.strong_NCHW, rest.row_N)]
    return {
        name: View(image_NCHW, tuple(row + number * _VIEW for row in row_N))
        for number, (name, image_NCHW, row_N) in enumerate(known)  # a view that is absent keeps its number
        if image_NCHW is not None
    }


class Learner:
    """What is trained. The embedder is replicated (ZeRO's business), the heads' centres are sharded by class."""

    def __init__(
        self,
        embedder: nn.Module,
        head: Head | None,
        loss: LossConfig,
        world: World,
        domains: Sequence[str] = (),
        *,
        aux: Mapping[str, Term] | None = None,
        main: Term | None = None,
    ) -> None:
        """`domains` are what the batches' domain numbers stand for; `main` is the term of `head` and `loss`, where it is more
        than those two."""
        self.embedder, self.head, self.world, self.domains = embedder, head, world, tuple(domains)
        self.terms: dict[str, Term] = {"": main or Term(loss, head), **(aux or {})}

    # --- what is sharded by class, and what runs along

    @property
    def heads(self) -> dict[str, Head]:
        """All heads by name; "" is the main one."""
        found: dict[str, Head] = {}
        for name, term in self.terms.items():
            if term.head is not None:
                found[name] = term.head
            found |= {dotted(name, own): head for own, head in term.own_heads.items()}
        return found

    def sharded(self) -> list[nn.Parameter]:
        """The class centres of this rank."""
        return [head.centre_CKD for head in self.heads.values()]

    def running(self, *, of_losses: bool = True) -> dict[str, Tensor]:
        """The running state of rules and, with `of_losses`, of losses: the same on all ranks."""
        found = {dotted(name, f"head.{key}"): v for name, h in self.heads.items() for key, v in h.state.items()}
        if of_losses:
            for name, term in self.terms.items():
                found |= {dotted(name, f"loss.{key}"): value for key, value in term.state.items()}
        return found

    def draw(self, *, seed: int, step: int) -> None:
        """What is random about the heads in this step."""
        for name, head in self.heads.items():  # by name: a head keeps its draws whatever others there are, in any order
            head.draw(seed=seed * 31 + zlib.crc32(name.encode()), step=step)

    # --- the forward

    def forward(self, embed: Callable[[Tensor], Tensor], batch: Batch) -> Outcome:
        """The loss of the micro-batch over all ranks.

        `embed` is the embedder as the engine wraps it. Backward gives this rank's centres their full gradient and the
        embedder the share of this rank's rows: summed over the ranks that is the gradient of the global loss.
        """
        seen = self._seen(embed, batch)
        for head in self.heads.values():
            head.train(seen[""].is_training)
        values = {name: term.loss.value(seen[name]) for name, term in self.terms.items()}
        values = {name: self._of_nodes(value, seen[name], batch) for name, value in values.items()}
        losses = {name: value.loss for name, value in values.items()}
        total = torch.stack([self.terms[name].weight * loss for name, loss in losses.items()]).sum()
        of_term = {name or "main": loss.detach() for name, loss in losses.items()} if len(losses) > 1 else {}
        return Outcome(total, self._by_domain(values[""], seen[""]), of_term)

    @property
    def _nodes(self) -> World | None:
        return self.head.nodes if self.head is not None else None

    @property
    def together(self) -> World:
        """The ranks whose rows are compared with each other and with the classes: all of them, or those of a node."""
        return self.head.world if self.head is not None and self.head.nodes is not None else self.world

    def _of_nodes(self, value: Value, seen: Seen, batch: Batch) -> Value:
        """The mean over all nodes' rows, where each node has the loss of its own."""
        nodes = self._nodes
        if nodes is None:
            return value
        share = len(seen.label_B) / sum(batch.counts)
        rows = None if value.row_B is None else nodes.gather(value.row_B)
        return Value(spread(value.loss * share, nodes), rows)

    def _seen(self, embed: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Seen]:
        """What each loss sees."""
        parts = views(batch)
        out = embed(torch.cat([view.image_NCHW for view in parts.values()]) if len(parts) > 1 else batch.image_NCHW)
        dtype = self.head.centre_CKD.dtype if self.head is not None else torch.promote_types(out.dtype, torch.float32)
        pieces = out.to(dtype).split([len(view.image_NCHW) for view in parts.values()])
        num_extra = sum(term.num_extra for term in self.terms.values())
        is_training, has_extra = self.embedder.training, num_extra > 0 and self.embedder.training
        dim = out.shape[1] - (num_extra if has_extra else 0)
        emb = {name: piece[:, :dim] for name, piece in zip(parts, pieces, strict=True)}
        common = self._labels(batch, emb["weak"])
        unlabelled = batch.unlabelled
        found, at = {}, dim
        for name, term in self.terms.items():
            extra: dict[str, Any] = {}
            if has_extra and term.num_extra:
                columns = dict(zip(parts, (piece[:, at : at + term.num_extra] for piece in pieces), strict=True))
                extra = {"extra_NE": columns["weak"], "strong_extra_NE": columns.get("strong")}
                at += term.num_extra
            found[name] = Seen(
                **common,
                **extra,
                classes=term.head if term.head is not None else self.head,
                own_classes=term.own_heads,
                strong_ND=emb.get("strong"),
                unlabelled_UD=emb.get("unlabelled"),
                unlabelled_strong_UD=emb.get("unlabelled_strong"),
                unlabelled_counts=tuple(unlabelled.counts) if unlabelled is not None else (),
                state=term.state,
                is_training=is_training,
            )
        return found

    def _labels(self, batch: Batch, emb_ND: Tensor) -> dict[str, Any]:
        """The rows of all ranks that are compared with each other."""
        world = self.together
        counts = batch.counts
        if self._nodes is not None:
            first = self._nodes.rank * world.size
            counts = batch.counts[first : first + world.size]
        domain_N = batch.domain_N if batch.domain_N is not None else torch.zeros_like(batch.label_N)
        known_B2 = world.gather(torch.stack([batch.label_N, domain_N], dim=1), list(counts))
        label_B, domain_B = known_B2.unbind(dim=1)
        if batch.pair_row_P is None or batch.pair_class_P is None:
            row_P = (label_B >= 0).nonzero(as_tuple=True)[0]
            class_P = label_B[row_P]
        else:
            first_row = sum(counts[: world.rank])
            row_P, class_P = world.gather(
                torch.stack([batch.pair_row_P + first_row, batch.pair_class_P], dim=1)
            ).unbind(dim=1)
        return {
            "world": world,
            "counts": tuple(counts),
            "emb_ND": emb_ND,
            "emb_BD": world.gather(emb_ND, list(counts)),
            "label_B": label_B,
            "domain_B": domain_B,
            "row_P": row_P,
            "class_P": class_P,
        }

    def _by_domain(self, main: Value, seen: Seen) -> Tensor:
        """Where the main loss has no rows of its own, each row is told the whole of it."""
        domain_B = seen.domain_B if self._nodes is None else self._nodes.gather(seen.domain_B)
        loss_B = main.loss.detach().expand(len(domain_B)) if main.row_B is None else main.row_B
        of_domain_2M = torch.zeros(2, len(self.domains) or 1, dtype=torch.float64, device=loss_B.device)
        of_domain_2M[0].index_add_(0, domain_B, loss_B.double())
        of_domain_2M[1].index_add_(0, domain_B, torch.ones_like(loss_B, dtype=torch.float64))
        return of_domain_2M
