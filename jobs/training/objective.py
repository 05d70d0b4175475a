"""What is minimised: the main loss with its head, and losses in parallel, each with a weight.

head: {name: arcface, margin: 0.3}      class centres that the main loss compares embeddings with; null: none
loss: {name: softmax}
aux:
  classifier: {weight: 0.05, head: {name: linear}, loss: {name: bce}}     class centres of its own
  consistency: {weight: 100, loss: {name: consistency}}                   the main head's, where it needs any
"""

from __future__ import annotations

import logging
import os
import zlib
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, TypeAdapter

from retrieval_train.choice import Chosen
from retrieval_train.config import Section
from retrieval_train.heads.rule import RuleConfig
from retrieval_train.losses.loss import LossConfig
from retrieval_train.losses.softmax import Config as Softmax

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobs.train import Config
    from retrieval_train.data.labels import Labels
    from retrieval_train.heads.centres import Head
    from retrieval_train.learner import Learner, Term
    from retrieval_train.models.embedder import Embedder
    from retrieval_train.world import World


def _from_name(value: Any) -> Any:
    """`head=cosface` is `head: {name: cosface}`."""
    return {"name": value} if isinstance(value, str) else value


def _softmax_unless_named(value: Any) -> Any:
    """Checked here and not in the union, which would put the name that nobody wrote into each mistake's path."""
    return Softmax.model_validate(value) if isinstance(value, dict) and "name" not in value else value


log = logging.getLogger(__name__)

AnyHead = Annotated[RuleConfig, Chosen("retrieval_train.heads"), BeforeValidator(_from_name)]
AnyLoss = Annotated[LossConfig, Chosen("retrieval_train.losses"), BeforeValidator(_from_name)]
MainLoss = Annotated[AnyLoss, BeforeValidator(_softmax_unless_named)]
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
    terms, has_several = list(_terms(config)), config.data.is_multi_label(config.shards_root)
    found = [problem for term in terms for problem in (*_of_loss(config, term), *_of_data(config, term))]
    found += _of_several_labels(terms) if has_several else _of_one_label(config, terms)
    losses = [term.loss for term in terms]
    if config.head is not None and not any(term.loss.needs_head for term in terms if term.head_key == "head"):
        text = f"no loss here compares with its class centres ('{config.loss.name}' does not); set head: null"
        found.append(("head", text))
    for key, takers in (
        ("strong", [loss for loss in losses if loss.needs_strong]),
        ("unlabelled", [loss for loss in losses if loss.takes_unlabelled]),
    ):
        if getattr(config.data, key) is not None and not takers:
            names = ", ".join(loss.name for loss in losses)
            found.append((f"data.{key}", f"no loss here takes it ({names}); leave it out or add one under aux"))
    found += _of_micro_batches(config)
    taken = {"main", *config.loss.heads(dim=1)}
    found += [(f"aux.{name}", "is a name of the main loss; choose another one") for name in config.aux if name in taken]
    return found + [problem for key, head in _heads(config) for problem in _of_head(config, key, head)]


def _of_micro_batches(config: Config) -> Iterator[tuple[str, str]]:
    """Means over labelled and unlabelled rows together have no weights: all micro-batches must have as many of both."""
    if config.data.unlabelled is None:
        return
    parts = config.engine.accumulate
    for key, rows in (("data.batch", config.data.batch), ("data.unlabelled.batch", config.data.unlabelled.batch)):
        if rows % parts:
            text = f"{rows} rows make no {parts} equal micro-batches, and with data.unlabelled unequal ones would be"
            yield key, f"{text} another loss; take a multiple of engine.accumulate"


class _Term(NamedTuple):
    """A loss of the config and where it stands."""

    where: str
    """"" or aux.<name>."""
    loss: LossConfig
    head: RuleConfig | None
    """What it would compare with: a head of its own, or the main one ..."""
    head_key: str
    """... and where that stands."""


def _terms(config: Config) -> Iterator[_Term]:
    yield _Term("", config.loss, config.head, "head")
    for name, aux in config.aux.items():
        where = f"aux.{name}."
        yield _Term(where, aux.loss, aux.head or config.head, "head" if aux.head is None else f"{where}head")


def _heads(config: Config) -> Iterator[tuple[str, RuleConfig]]:
    for key, head in {
        "head": config.head,
        **{f"aux.{name}.head": aux.head for name, aux in config.aux.items()},
    }.items():
        if head is not None:
            yield key, head


def _of_loss(config: Config, term: _Term) -> Iterator[tuple[str, str]]:
    where, loss, head, head_key = term
    key, is_by_node = f"{where}loss", config.head is not None and config.head.shard_within == "node"
    if loss.needs_head and head is None:
        yield key, f"'{loss.name}' compares with class centres: give {where}head, such as {{name: arcface}}"
    if loss.needs_cosines and head is not None and not head.is_cosine:
        yield key, f"'{loss.name}' needs cosines, and '{head.name}' compares lengths too; take {head_key}.name=normface"
    if not loss.needs_head and where and head_key != "head":
        yield head_key, f"'{loss.name}' compares with no class centres; leave it out"
    if loss.compares_rows and config.engine.accumulate > 1:
        text = (
            f"'{loss.name}' compares the rows of a micro-batch with each other: with engine.accumulate "
            f"{config.engine.accumulate} it would be another loss; set engine.accumulate=1"
        )
        yield key, text
    if loss.compares_rows and is_by_node:
        yield key, f"'{loss.name}' compares the rows of all nodes; set head.shard_within=world"
    if loss.takes_unlabelled and config.data.unlabelled is not None and is_by_node:
        yield key, f"'{loss.name}' takes the unlabelled rows of all nodes; set head.shard_within=world"
    if loss.needs_all_classes and head is not None and head.sample_rate < 1:
        yield key, f"'{loss.name}' needs the logits of all classes; set {head_key}.sample_rate=1"


def _of_data(config: Config, term: _Term) -> Iterator[tuple[str, str]]:
    if term.loss.needs_strong and config.data.strong is None:
        text = f"'{term.loss.name}' compares two views of an image; say with data.strong how the second looks"
        yield f"{term.where}loss", text


def _of_several_labels(terms: list[_Term]) -> list[tuple[str, str]]:
    """A head is told once, whichever losses compare with it."""
    text = "takes images with one label each, and a set of data.mixture has several; take another"
    found = {f"{where}loss": f"'{loss.name}' {text}" for where, loss, *_ in terms if not loss.many_labels}
    for _, loss, head, head_key in terms:
        if loss.needs_head and loss.many_labels and head is not None and not head.many_labels:
            found[head_key] = f"'{head.name}' {text}"
    return list(found.items())


def _of_one_label(config: Config, terms: list[_Term]) -> Iterator[tuple[str, str]]:
    for where, loss, *_ in terms:
        least = getattr(loss, "min_shared", 1)
        if least > 1 and _all_open(config):
            text = f"is {least}, and images of these sets have one label each: no two would be alike; set it to 1"
            yield f"{where}loss.min_shared", text


def _all_open(config: Config) -> bool:
    """Whether the sets can be opened: what cannot is told elsewhere, and may have several labels."""
    from shards.manifest import ShardError

    try:
        for name in sorted(config.data.mixture):
            config.data.open_manifest(name, config.shards_root)
    except ShardError:
        return False
    return True


def _of_head(config: Config, key: str, head: RuleConfig) -> Iterator[tuple[str, str]]:
    if head.sample_rate < 1 and config.optimizer.sam:
        yield f"{key}.sample_rate", "sam steps all classes twice; set it to 1 or leave optimizer.sam out"
    if head.sample_rate < 1 and config.optimizer.name == "lamb":
        yield f"{key}.sample_rate", "lamb scales a table as a whole; set it to 1 or take optimizer.name=adamw"
    if head.sample_rate < 1 and head.shard_within == "node":
        yield f"{key}.sample_rate", "nodes would sample other classes; set it to 1 or shard_within: world"
    within = config.head.shard_within if config.head is not None else "world"
    if head.shard_within != within:
        whose = "that of head" if config.head is not None else "world where there is no main head"
        yield f"{key}.shard_within", f"must be {whose}: the rows are gathered once; set it to {within}"
    if config.data.foreign is not None and type(head).margins is not RuleConfig.margins:
        text = f"'{head.name}' sets margins by the classes' numbers of images, which data.foreign does not tell; make a set"
        yield key, f"{text} of the tars with `shards make`, or take another head"


def build(config: Config, embedder: Embedder, labels: Labels, world: World) -> Learner:
    """The learner; further layers are put into the embedder, which no engine may have wrapped yet. Collective."""
    from retrieval_train.learner import Learner

    within, nodes = _groups(config, world)
    _tell_few_pairs(config, len(labels.names))
    make = _Maker(config, embedder, labels, within, nodes)
    main = make.term("", config.loss, config.head)
    aux = {name: make.term(name, aux.loss, aux.head, aux.weight) for name, aux in config.aux.items()}
    return Learner(embedder, main.head, config.loss, world, labels.domains, main=main, aux=aux)


def _groups(config: Config, world: World) -> tuple[World, World | None]:
    """The ranks that share the classes, and those of other nodes that have the same."""
    if config.head is None or config.head.shard_within == "world":
        return world, None
    sizes = set(world.every(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    if len(sizes) > 1:
        told = " and ".join(str(size) for size in sorted(sizes))
        raise ValueError(
            f"head.shard_within: node needs as many ranks on every node, and here nodes have {told}; start as many on "
            "each, or set head.shard_within=world"
        )
    (per_node,) = sizes
    return (world, None) if per_node >= world.size else world.split(per_node)


def _tell_few_pairs(config: Config, num_classes: int) -> None:
    """Warn of losses over pairs where a batch may hold hardly any two images of a class."""
    if config.data.order.name == "pk" or 2 * num_classes <= config.data.batch:
        return
    for where, loss, *_ in _terms(config):
        has_memory = type(loss).first_state is not LossConfig.first_state  # its pairs are not of one batch alone
        if loss.compares_rows and not loss.needs_head and not has_memory:
            log.warning(
                "%sloss '%s' compares images of a class with each other, and the order '%s' may bring few: a batch has %d "
                "rows, the sets %d classes. data.order.name=pk brings several of each class",
                where,
                loss.name,
                config.data.order.name,
                config.data.batch,
                num_classes,
            )


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
        # a prefix: a ModuleDict takes no key that is a name of its own, such as `type`
        num_extra = self._embedder.add_layers(f"aux_{name}" if name else "main", layers) if layers is not None else 0
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
            seed=self._config.seed + zlib.crc32(name.encode()),  # 0 for the main head: crc32 of nothing is 0
            domains=self._labels.domains,
            counts=self._labels.counts_C,
            nodes=self._nodes,
        )
