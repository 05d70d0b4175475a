"""Train an embedder: tar shards -> DeepSpeed ZeRO with a margin head sharded over the ranks -> an export."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from jobs.job import JobConfig
from jobs.training import new_classes, objective, ranks
from jobs.training.halving import Config as Halving
from jobs.training.judge import Config as Judge
from jobs.training.objective import AnyHead, Aux, AuxName, MainLoss
from jobs.training.origin import Origin
from retrieval_train.choice import Chosen
from retrieval_train.config import LinkedPath, Section, later
from retrieval_train.data.config import DataConfig
from retrieval_train.engine.engine import EngineConfig
from retrieval_train.engine.faults import FaultsConfig
from retrieval_train.engine.length import Length
from retrieval_train.engine.optimizers.adamw import Config as AdamW
from retrieval_train.engine.optimizers.optimizer import AnyOptimizer
from retrieval_train.engine.saving import CheckpointConfig
from retrieval_train.engine.schedule import ScheduleConfig
from retrieval_train.losses.softmax import Config as Softmax
from retrieval_train.models.backbones.backbone import BackboneConfig
from retrieval_train.models.lora import Config as Lora
from retrieval_train.models.necks.linear import Config as LinearNeck
from retrieval_train.models.necks.neck import NeckConfig
from retrieval_train.rundir import RunDir, read_json, sampled_digest, write_json
from retrieval_train.tracking import Config as Tracking

if TYPE_CHECKING:
    from retrieval_train.data.loader import Loader
    from retrieval_train.data.view import View
    from retrieval_train.learner import Learner
    from retrieval_train.models.embedder import Embedder
    from retrieval_train.world import World

log = logging.getLogger(__name__)


class Init(Section):
    """Start from the export of an earlier run: its backbone and neck, and its centres of classes of the same name."""

    model: LinkedPath
    """An export folder: <run folder>/export."""
    centres: Literal["by_name", "none"] = "by_name"
    """by_name: classes that the export has too begin with its centres of the main head; none: all classes are new."""
    new_classes: Literal["random", "mean"] = "random"
    """Where the centres of new classes begin: at random, or at the mean embedding of their training images."""
    mean_images: int = Field(default=16, ge=1)
    """The most images of a new class that make up its mean."""


class Config(JobConfig):
    """Train an embedder."""

    job: Literal["train"]
    backbone: Annotated[BackboneConfig, Chosen("retrieval_train.models.backbones")]
    """Image -> features."""
    neck: Annotated[NeckConfig, Chosen("retrieval_train.models.necks")] = LinearNeck()
    """Features -> embedding."""
    lora: Lora | None = None
    """Adapters in a frozen backbone; null trains the whole backbone."""
    head: AnyHead | None
    """Embedding -> logits: the margin rule over class centres; null where the loss compares with none."""
    loss: MainLoss = Softmax()
    """Logits or embeddings -> one number."""
    aux: dict[AuxName, Aux] = Field(default={})
    """Losses in parallel, by a name of your choice."""
    data: DataConfig
    """Which images."""
    engine: Annotated[EngineConfig, Chosen("retrieval_train.engine")]
    """What steps the weights."""
    optimizer: AnyOptimizer = AdamW()
    """How the weights are stepped."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the steps."""
    length: Length
    """How long."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """What is saved on the way."""
    faults: FaultsConfig = FaultsConfig()
    """What happens when the loss or a gradient is not a finite number."""
    evaluate: Judge | None = None
    """Evaluate on the way; null: only by the job `evaluate`, after the end."""
    halving: Halving | None = Field(default=None, json_schema_extra=later())
    """Stop early where other runs of a sweep are better: a sweep's `halving` sets it; null: never."""
    tracking: Tracking = Tracking()
    """Where the numbers go."""
    init: Init | None = None
    """Start from an earlier run's export."""
    origin: Origin | None = None
    """Go on from another run's checkpoint: `submit --continue-from`."""

    @property
    def judge(self) -> Judge | None:
        """`evaluate`, on the fold that is held out where it has a set that is trained on."""
        if self.evaluate is None or self.data.fold is None or self.evaluate.set not in self.data.mixture:
            return self.evaluate
        return self.evaluate.model_copy(update={"fold": self.data.fold})

    def problems(self) -> list[tuple[str, str]]:
        found = self.data.problems(self.shards_root)
        found += [(f"engine.{key}", text) for key, text in self.engine.problems()]
        if problem := self.optimizer.problem(self.engine.name, getattr(self.engine, "stage", None)):
            found.append(("optimizer", problem))
        if self.evaluate and self.judge:
            if self.evaluate.fold is not None and self.evaluate.set in self.data.mixture:
                found.append(("evaluate.fold", f"is data.fold, as {self.evaluate.set} is trained on; leave it out"))
            of_judge = self.judge.problems(self.shards_root)
            found += [(f"evaluate.{key}", text) for key, text in of_judge if ("data.fold", text) not in found]
        elif self.halving:
            found.append(
                ("halving", "compares what evaluations on the way find, and there are none; give evaluate: {set: ...}")
            )
        found += [(f"backbone.{key}", text) for key, text in self.backbone.problems()]
        found += self._size_problems()
        found += objective.problems(self)
        if self.init and not (self.init.model / "model.json").is_file():
            found.append(("init.model", f"{self.init.model} is no export: it has no model.json; train that run first"))
        elif self.init and not found:  # it opens the sets
            found += new_classes.problems(self)
        if self.origin and not found:  # it compares what the config's paths lead to
            found += self.origin.problems(self)
        return found

    def problems_with(self, num_ranks: int) -> list[tuple[str, str]]:
        return ranks.problems(self, num_ranks)

    def _size_problems(self) -> list[tuple[str, str]]:
        """What is wrong with image sizes that change during the run."""
        sizes, image_px = [stretch.px for stretch in self.data.resolutions], self.backbone.image_px
        found = []
        if sizes and sizes[-1] != image_px:
            text = (
                f"ends with {sizes[-1]} px, but backbone.image_px, the size for export and evaluation, is {image_px}; "
                f"end with px: {image_px} or set backbone.image_px={sizes[-1]}"
            )
            found.append(("data.resolutions", text))
        problems = {f"data.resolutions.{at}.px": self.backbone.size_problem(px) for at, px in enumerate(sizes)}
        return found + [(key, text) for key, text in problems.items() if text]

    def inputs(self) -> dict[str, str]:
        found = self.data.digests(self.shards_root)
        if self.judge:
            found |= {f"evaluate.{key}": digest for key, digest in self.judge.digests(self.shards_root).items()}
        if self.origin:
            found |= self.origin.digests()
        if (file := self.backbone.weights_file()) is not None:
            found["backbone.weights"] = sampled_digest(file)
        if self.init is not None:
            found["init.model"] = read_json(self.init.model / "model.json")["sha256"]
            found |= new_classes.digests(self)
        return found


def run(config: Config, run: RunDir, world: World) -> dict[str, float]:
    """Train to the end, or save and raise Preempted; the last step. Resumes from the newest checkpoint."""
    from jobs.export import write_export
    from jobs.training.figures import Speed, load_of, memory_told
    from jobs.training.page import write_page
    from jobs.training.session import Session
    from retrieval_train.engine.flops import image_flops

    parts = build(config, run, world)
    embedder, loader, learner = parts.embedder, parts.loader, parts.learner
    num_steps = config.length.num_steps(loader.epoch_steps, config.data.batch)
    schedule = config.schedule.build(num_steps, epoch_steps=loader.epoch_steps, batch=config.data.batch)
    sizes = {config.backbone.image_px, *(stretch.px for stretch in config.data.resolutions)}
    flops_of_px = {px: image_flops(embedder, image_px=px) for px in sizes}  # before the engine wraps the embedder
    speed = Speed(learner, flops_of_px, config.engine.precision)
    with memory_told(load_of(config, learner), config, world):
        engine = config.engine.build(learner, config.optimizer, schedule, seed=config.seed)

        session = Session(
            config,
            run,
            world,
            learner=learner,
            loader=loader,
            engine=engine,
            speed=speed,
            view=view_of(config, embedder),
            num_steps=num_steps,
        )
        _tell(config, loader, embedder, num_steps, engine.step)
        session.train()
    if world.rank == 0:
        write_export(config, session.result, run.export)
        write_page(run, judged=session.judged, metric=config.evaluate.metric if config.evaluate else "")
    world.barrier()
    return {"steps": float(engine.step)}


@dataclass(frozen=True)
class Parts:
    """What is trained and on what, before an engine takes it."""

    embedder: Embedder
    loader: Loader
    learner: Learner


def build(config: Config, run: RunDir, world: World) -> Parts:
    """Fresh weights, or those of `init`. Collective."""
    from jobs.training.figures import tell_machine
    from retrieval_train.data.loader import build_loader
    from retrieval_train.models import lora
    from retrieval_train.models.backbones.backbone import check_sizes
    from retrieval_train.models.batch_norm import sync_batch_norm

    if config.run.deterministic:
        be_deterministic()
    tell_machine(world)
    embedder = fresh_embedder(config).to(world.device)
    loader = build_loader(
        config.data,
        config.shards_root,
        world,
        image_px=config.backbone.image_px,
        accumulate=config.engine.accumulate,
        seed=config.seed,
        view=view_of(config, embedder),
    )
    if world.rank == 0 and not run.sets.is_file():
        write_json(run.sets, loader.sets)
    world.barrier()
    check_sets(loader.sets, run)
    lora.check_alive(embedder, image_px=config.backbone.image_px)
    check_sizes(embedder, [stretch.px for stretch in config.data.resolutions])
    learner = objective.build(config, embedder, loader.labels, world)
    sync_batch_norm(embedder, world)
    if config.init and learner.head is not None:
        new_classes.begin(config, run, world, head=learner.head, embedder=embedder, loader=loader)
    return Parts(embedder, loader, learner)


def be_deterministic() -> None:
    """Before the first kernel of a GPU. Raises, when it comes to it, for an operation that has no such algorithm."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def fresh_embedder(config: Config) -> Embedder:
    """The embedder before the first step, adapters included. On the CPU."""
    from retrieval_train.models import exported
    from retrieval_train.models.embedder import build_embedder

    embedder = build_embedder(config.backbone, config.neck, seed=config.seed, with_weights=config.init is None)
    if config.init:
        exported.put_weights(embedder, config.init.model)
    if config.lora:
        config.lora.apply(embedder, seed=config.seed)
    return embedder


def view_of(config: Config, embedder: Embedder) -> View:
    """How an image is seen when nothing is random: as the config says, or the stage before, or the backbone's makers."""
    if config.data.view is not None:
        return config.data.view
    from retrieval_train.models import exported

    return exported.read_card(config.init.model)[0].view if config.init else embedder.view


def check_sets(sets: Mapping[str, str], run: RunDir) -> None:
    """Raises ValueError when a shard set (name -> digest) is not what it was when the run began."""
    began = read_json(run.sets)
    changed = sorted(name for name in began.keys() | sets.keys() if began.get(name) != sets.get(name))
    if changed:
        raise ValueError(
            f"the shard set {', '.join(changed)} is not what it was when {run.path.name} began: the order would be "
            "another one. Put the old set back, or submit again for a new run"
        )


def _tell(config: Config, loader: Loader, embedder: Embedder, num_steps: int, step: int) -> None:
    trained = sum(parameter.numel() for parameter in embedder.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in embedder.parameters())
    samples, classes = loader.num_samples, len(loader.labels.names)
    log.info("%s: %s of %s weights are trained", config.backbone.name, f"{trained:,}", f"{total:,}")
    log.info("%s images of %s classes, %d steps an epoch", f"{samples:,}", f"{classes:,}", loader.epoch_steps)
    streams, nodes = loader.order.streams, loader.world.size // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    log.info("order %s, streams: %d", config.data.order.name, streams)
    if streams > 1 and streams % max(nodes, 1):
        log.warning(
            "data.order.streams %d is no multiple of %d nodes: nodes read parts of each other's tars. A multiple would not, "
            "but makes another run: it is another order",
            streams,
            nodes,
        )
    log.info("steps %d to %d on %d ranks of %s", step + 1, num_steps, loader.world.size, loader.world.device.type)
