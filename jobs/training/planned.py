"""A training run's parameters, memory and work before it runs, on torch's meta device.

The embedder is built as the run builds it, but without numbers: no weights are read or downloaded, no GPU is touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import TypeAdapter

from jobs.training.objective import AnyHead
from retrieval_train.engine.activations import Activations, activations_of, shapes_only
from retrieval_train.engine.flops import ImageFlops, head_flops, image_flops
from retrieval_train.engine.memory import Load, Memory, memory_of
from retrieval_train.heads.rule import RuleConfig
from retrieval_train.models.batch_norm import sync_batch_norm
from retrieval_train.models.embedder import build_embedder
from retrieval_train.world import Alone

if TYPE_CHECKING:
    from jobs.train import Config
    from retrieval_train.models.embedder import Embedder

FEW = 4
"""Rows of the small micro-batch by which what grows with the rows is told from what does not."""

PROCESS_BYTES = 700 * 2**20
"""Of a CPU rank beside its tensors: Python, torch and DeepSpeed; assumed."""


@dataclass(frozen=True)
class Ranks:
    """Where a run goes."""

    nodes: int
    per_node: int
    on_gpu: bool

    @property
    def size(self) -> int:
        return self.nodes * self.per_node


@dataclass(frozen=True)
class Sizes:
    """Of the embedder."""

    trained: int
    frozen: int
    buffers: int
    """Bytes."""
    dim: int


@dataclass(frozen=True)
class Need:
    """Bytes of one rank, on its device but for `host`."""

    memory: Memory
    further_heads: int
    """Class centres of heads beside the largest, with what belongs to them."""
    images: int
    """Pixels of a step, and those that are copied for the next one."""
    buffers: int
    process: int
    """Of a CPU rank, beside its tensors."""
    activations: int
    """What the backward waits for, where it is most."""
    total: int
    """The most at a time."""

    @property
    def host(self) -> int:
        return self.memory.host

    def parts(self) -> dict[str, int]:
        """All of them but those that are nothing; they are not all there at the same time."""
        memory = self.memory
        found = {
            "weights": memory.weights,
            "float32 copy": memory.float32_copy,
            "moments": memory.moments,
            "gradients": memory.gradients,
            "buckets": memory.buckets,
            "class centres": memory.centres + self.further_heads,
            "images": self.images + self.buffers,
            "activations": self.activations,
            "logits": memory.logits,
            "gathered": memory.gathered,
            "updating": memory.updating,
            "process": self.process,
        }
        return {name: size for name, size in found.items() if size}


class Planner:
    """What a config needs; the embedder is built once for all configs that differ in other things."""

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        *,
        num_classes: int,
        num_domains: int,
        half: Literal["bf16", "fp16"] = "bf16",
    ) -> None:
        """`half` are the 16 bits in which the ranks' devices can multiply."""
        self._config, self._ranks, self.half = config, ranks, half
        self.num_classes, self._num_domains = num_classes, num_domains
        self._counted: dict[tuple[Any, ...], dict[int, Activations]] = {}
        self.sizes = _sizes_of(self._embedder(config))

    @property
    def num_ranks(self) -> int:
        return self._ranks.size

    def _embedder(self, config: Config) -> Embedder:
        """As `train.fresh_embedder` and `objective.build` make it, but on the meta device and without weights."""
        with torch.device("meta"):
            embedder = build_embedder(config.backbone, config.neck, seed=config.seed, with_weights=False)
            if config.lora:
                config.lora.apply(embedder, seed=config.seed)
            for name, loss in {
                "main": config.loss,
                **{f"aux_{key}": aux.loss for key, aux in config.aux.items()},
            }.items():
                layers = loss.layers(
                    num_features=embedder.num_features, dim=embedder.dim, num_domains=max(1, self._num_domains)
                )
                if layers is not None:
                    embedder.add_layers(name, layers)
        world = Alone(torch.device("meta"))
        world.size = self._ranks.size  # its sums are left out, and no tensor less is made
        sync_batch_norm(embedder, world)
        return embedder

    def flops_of_px(self) -> dict[int, ImageFlops]:
        """Of one image at each size of the run."""
        config = self._config
        found = {}
        for px in sorted({config.backbone.image_px, *(stretch.px for stretch in config.data.resolutions)}):
            with shapes_only(self._embedder(config)) as embedder:
                found[px] = image_flops(embedder, image_px=px)
        return found

    def head_flops(self) -> float:
        """Of a step of all ranks."""
        return sum(
            rule.sample_rate
            * head_flops(rows=self._config.data.batch, classes=self.num_classes, sub_centres=rule.sub_centres, dim=dim)
            for rule, dim in heads(self._config, self.sizes.dim)
        )

    def centre_bytes(self) -> int:
        """Of the class centres of all ranks, without moments."""
        return sum(
            4 * self.num_classes * rule.sub_centres * (dim + rule.has_bias)
            for rule, dim in heads(self._config, self.sizes.dim)
        )

    def activations(self, config: Config, rows: int) -> Activations:
        """Of a micro-batch of `rows` images of a rank: counted, or between two that are, on the line through both."""
        engine = config.engine
        counted = self._counted.setdefault(
            (engine.precision, engine.checkpoint_activations, _has_16_bit_weights(config)), {}
        )
        if not counted:
            self._count(config, rows, counted)
        if rows not in counted and min(counted) > FEW:
            self._count(config, FEW, counted)
        if rows in counted:
            return counted[rows]
        if not min(counted) < rows < max(counted):
            self._count(config, rows, counted)
            return counted[rows]
        few, many = counted[min(counted)], counted[max(counted)]
        share = (rows - min(counted)) / (max(counted) - min(counted))
        return Activations(*(int(a + share * (b - a)) for a, b in zip(astuple(few), astuple(many), strict=True)))

    def _count(self, config: Config, rows: int, counted: dict[int, Activations]) -> None:
        engine, image_px = config.engine, config.data.largest_px(config.backbone.image_px)
        plain = self._embedder(config)
        with shapes_only(plain.bfloat16() if _has_16_bit_weights(config) else plain) as embedder:
            embedder.precision = engine.precision
            if engine.checkpoint_activations:
                embedder.checkpoint_activations()
            counted[rows] = activations_of(embedder, rows=rows, image_px=image_px, on_gpu=self._ranks.on_gpu)

    def need(self, config: Config) -> Need:
        """Raises ValueError for a backbone that cannot checkpoint its activations, where it should."""
        ranks = self._ranks
        loads = loads_of(config, self.sizes, ranks, num_classes=self.num_classes)
        load, memory = loads[0], memory_of(loads[0])
        further = sum(memory_of(replace(other, trained=0, frozen=0, bucket_bytes=0)).centres for other in loads[1:])
        image_bytes = 3 * config.data.largest_px(config.backbone.image_px) ** 2
        step_rows = -(-images_of_step(config) // ranks.size)
        images = step_rows * image_bytes
        process = 0 if ranks.on_gpu else PROCESS_BYTES
        if load.stage == 0 and (ranks.size == 1 or config.engine.name == "plain"):
            memory = replace(memory, updating=0)  # nothing travels, or tensor by tensor
        found = self.activations(config, -(-step_rows // config.engine.accumulate))
        lasting = memory.held + further + images + self.sizes.buffers + process
        activations, total = _most_at_a_time(load, memory, found, lasting)
        return Need(memory, further, images, self.sizes.buffers, process, activations, total)


def _most_at_a_time(load: Load, memory: Memory, found: Activations, lasting: int) -> tuple[int, int]:
    """What of `total` is activations and not counted elsewhere, and `total`."""
    whole = load.weight_bytes * load.trained
    are_made_anew = load.accumulate == 1 and load.stage < 3  # gradients are not there while the forward runs
    before = lasting - memory.gradients if are_made_anew else lasting
    backward = before + found.most(memory.gradients / whole if whole and are_made_anew else 0.0)
    loss = before + found.kept + memory.logits
    total = max(max(backward, loss) + memory.gathered, lasting + memory.updating)
    return (found.peak if backward >= loss else found.kept), total


def images_of_step(config: Config) -> int:
    """Through the embedder, over all ranks: views and images without labels counted."""
    data, views = config.data, 1 if config.data.strong is None else 2
    return views * (data.batch + (data.unlabelled.batch if data.unlabelled else 0))


def heads(config: Config, dim: int) -> Iterator[tuple[RuleConfig, int]]:
    """The rule of each table of class centres, and its dimensions, as `objective.build` makes them."""
    rule_of = TypeAdapter[RuleConfig](AnyHead)
    for head, loss in ((config.head, config.loss), *((aux.head, aux.loss) for aux in config.aux.values())):
        if head is not None:
            yield head, dim
        for value, size in loss.heads(dim=dim).values():
            yield rule_of.validate_python(value), size


def loads_of(config: Config, sizes: Sizes, ranks: Ranks, *, num_classes: int) -> list[Load]:
    """One for each table of class centres, the largest first; without any one all the same."""
    common = Load(
        trained=sizes.trained,
        frozen=sizes.frozen,
        ranks=ranks.size,
        moments=len(config.optimizer.moments),
        rows=config.data.batch,
        accumulate=config.engine.accumulate,
        **config.engine.memory(on_gpu=ranks.on_gpu),
    )
    found = [
        replace(
            common,
            classes=num_classes,
            sub_centres=rule.sub_centres,
            dim=dim + rule.has_bias,
            sample_rate=rule.sample_rate,
            logits_mb=rule.logits_mb,
            block_mb=256 if ranks.on_gpu else 2,
            nodes=ranks.nodes if rule.shard_within == "node" else 1,
        )
        for rule, dim in heads(config, sizes.dim)
    ]
    return sorted(found, key=lambda load: -load.classes * load.sub_centres * load.dim) or [common]


def _sizes_of(embedder: Embedder) -> Sizes:
    parameters = list(embedder.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in embedder.buffers())
    return Sizes(trained, sum(p.numel() for p in parameters) - trained, buffers, embedder.dim)


def _has_16_bit_weights(config: Config) -> bool:
    return config.engine.memory(on_gpu=True).get("weight_bytes") == 2
