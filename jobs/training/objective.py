"""What is minimised: the main loss with its head, and losses in parallel, each with a weight.

head: {name: arcface, margin: 0.3}      class centres that the main loss compares embeddings with; null: none
loss: {name: softmax}
aux:
  classifier: {weight: 0.05, head: {name: linear}, loss: {name: bce}}     class centres of its own
  consistency: {weight: 100, loss: {name: consistency}}                   the main head's, where it needs any
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter

from retrieval_train.choice import Chosen
from retrieval_train.config import Section
from retrieval_train.heads.rule import RuleConfig
from retrieval_train.losses.loss import LossConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobs.train import Config
    from retrieval_train.data.labels import Labels
    from retrieval_train.heads.centres import Head
    from retrieval_train.learner import Learner, Term
    from retrieval_train.models.embedder import Embedder
    from retrieval_train.world import World

AnyHead = Annotated[RuleConfig, Chosen("retrieval_train.heads")]
AnyLoss = Annotated[LossConfig, Chosen("retrieval_train.losses")]
AuxName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$", max_length=40)]


class Aux(Section):
    """A loss in parallel with the main one."""

    weight: float = Field(default=1.0, gt=0)
    """What it is multiplied by."""
    loss: AnyLoss
    """The loss."""
    head: AnyHead | None = None
    """Class centres of its own; null: the main head's, where the loss compares with any."""


def problems(config: Config) -> list[tuple[str, str]]:
    """What of head, losses and data does not fit together: (key, what to do)."""
    found = [problem for where, loss, head in _losses(config) for problem in _of_loss(config, where, loss, head)]
    losses = [loss for _, loss, _ in _losses(config)]
    if config.head is not None and not any(loss.needs_head for loss in losses):
        text = f"no loss here compares with class centres ('{config.loss.name}' does not); set head: null"
        found.append(("head", text))
    for key, takers in (
        ("strong", [loss for loss in losses if loss.needs_strong]),
        ("unlabelled", [loss for loss in losses if loss.takes_unlabelled]),
    ):
        if getattr(config.data, key) is not None and not takers:
            names = ", ".join(loss.name for loss in losses)
            found.append((f"data.{key}", f"no loss here takes it ({names}); leave it out or add one under aux"))
    return found + _of_heads(config)


def _losses(config: Config) -> Iterator[tuple[str, LossConfig, RuleConfig | None]]:
    """Where it stands in the config, the loss, and the head that it would compare with."""
    yield "", config.loss, config.head
    for name, aux in config.aux.items():
        yield f"aux.{name}.", aux.loss, aux.head or config.head


def _of_loss(config: Config, where: str, loss: LossConfig, head: RuleConfig | None) -> Iterator[tuple[str, str]]:
    if loss.needs_head and head is None:
        yield f"{where}loss", f"'{loss.name}' compares with class centres: give {where}head, such as {{name: arcface}}"
    if where and config.aux[where[4:-1]].head is not None and not loss.needs_head:
        yield f"{where}head", f"'{loss.name}' compares with no class centres; leave it out"
    if loss.needs_strong and config.data.strong is None:
        yield f"{where}loss", f"'{loss.name}' compares two views of an image; say with data.strong how the second looks"
    if loss.compares_rows and config.engine.accumulate > 1:
        text = (
            f"'{loss.name}' compares the rows of a micro-batch with each other: with engine.accumulate "
            f"{config.engine.accumulate} it would be another loss; set engine.accumulate=1"
        )
        yield f"{where}loss", text
    if loss.compares_rows and config.head is not None and config.head.shard_within == "node":
        yield f"{where}loss", f"'{loss.name}' compares the rows of all nodes; set head.shard_within=world"
    if loss.needs_all_classes and head is not None and head.sample_rate < 1:
        yield f"{where}loss", f"'{loss.name}' needs the logits of all classes; set {where}head.sample_rate=1"
    takes_many = loss.many_labels and (head is None or not loss.needs_head or head.many_labels)
    if not takes_many and config.data.is_multi_label(config.shards_root):
        name = loss.name if not loss.many_labels else getattr(head, "name", "")
        key = f"{where}loss" if not loss.many_labels else f"{where}head"
        yield key, f"'{name}' takes images with one label each, and a set of data.mixture has several; take another"


def _of_heads(config: Config) -> list[tuple[str, str]]:
    found = []
    heads = {"head": config.head} | {f"aux.{name}.head": aux.head for name, aux in config.aux.items()}
    given = {where: head for where, head in heads.items() if head is not None}
    for where, head in given.items():
        if head.sample_rate < 1 and config.optimizer.sam:
            found.append(
                (f"{where}.sample_rate", "sam steps all classes twice; set it to 1 or leave optimizer.sam out")
            )
        if head.sample_rate < 1 and config.optimizer.name == "lamb":
            text = "lamb scales a table as a whole; set it to 1 or take optimizer.name=adamw"
            found.append((f"{where}.sample_rate", text))
        if head.sample_rate < 1 and head.shard_within == "node":
            found.append(
                (f"{where}.sample_rate", "nodes would sample other classes; set it to 1 or shard_within: world")
            )
        if head.shard_within != (config.head or head).shard_within:
            found.append((f"{where}.shard_within", "must be that of head: the rows are gathered once"))
    return found


def build(config: Config, embedder: Embedder, labels: Labels, world: World) -> Learner:
    """The learner; further layers are put into the embedder, which no engine may have wrapped yet. Collective."""
    from retrieval_train.learner import Learner

    within, nodes = _groups(config, world)
    make = _Maker(config, embedder, labels, within, nodes)
    main = make.term("", config.loss, config.head)
    aux = {name: make.term(name, aux.loss, aux.head, aux.weight) for name, aux in config.aux.items()}
    return Learner(embedder, main.head, config.loss, world, labels.domains, main=main, aux=aux)


def _groups(config: Config, world: World) -> tuple[World, World | None]:
    """The ranks that share the classes, and those of other nodes that have the same."""
    import os

    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if config.head is None or config.head.shard_within == "world" or per_node >= world.size:
        return world, None
    return world.split(per_node)


class _Maker:
    def __init__(self, config: Config, embedder: Embedder, labels: Labels, world: World, nodes: World | None) -> None:
        self._config, self._embedder, self._labels, self._world, self._nodes = config, embedder, labels, world, nodes

    def term(self, name: str, loss: LossConfig, head: RuleConfig | None, weight: float = 1.0) -> Term:
        import torch

        from retrieval_train.learner import Term

        dim = self._embedder.dim
        own: dict[str, Any] = loss.heads(dim=dim)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._config.seed)
            layers = loss.layers(
                num_features=self._embedder.num_features, dim=dim, num_domains=max(1, len(self._labels.domains))
            )
        num_extra = self._embedder.add_layers(name or "main", layers) if layers is not None else 0
        rule = TypeAdapter[RuleConfig](AnyHead)
        return Term(
            loss,
            self._head(head, dim, name) if head is not None else None,
            weight,
            {key: self._head(rule.validate_python(value), size, f"{name}.{key}") for key, (value, size) in own.items()},
            {key: value.to(self._world.device) for key, value in loss.first_state(dim=dim).items()},
            num_extra,
        )

    def _head(self, rule: RuleConfig, dim: int, name: str) -> Head:
        from retrieval_train.heads.centres import Head

        return Head(
            rule,
            self._labels.names,
            dim=dim,
            world=self._world,
            seed=self._config.seed + (sum(name.encode()) if name else 0),
            domains=self._labels.domains,
            counts=self._labels.counts_C,
            nodes=self._nodes,
        )
