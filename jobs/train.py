"""Train an embedder: tar shards -> DeepSpeed ZeRO with a margin head sharded over the ranks -> an export."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from jobs.job import JobConfig, Preempted, Progress
from retrieval_train.choice import Chosen
from retrieval_train.config import LinkedPath, Section
from retrieval_train.data.config import DataConfig
from retrieval_train.engine.engine import EngineConfig
from retrieval_train.engine.params import Optimizer
from retrieval_train.engine.schedule import ScheduleConfig
from retrieval_train.engine.watchers import CheckpointConfig
from retrieval_train.heads.rule import RuleConfig
from retrieval_train.losses.loss import LossConfig
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
    from retrieval_train.engine.stop import Ending
    from retrieval_train.models.embedder import Embedder
    from retrieval_train.world import World

log = logging.getLogger(__name__)


class Length(Section):
    """How long: epochs or steps, one of them."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the mixture."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""

    @model_validator(mode="after")
    def _one(self) -> Length:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("needs either epochs or steps, and not both; the other one can be set to null")
        return self

    def num_steps(self, epoch_steps: int) -> int:
        return self.steps if self.steps is not None else max(1, round((self.epochs or 0) * epoch_steps))


class Init(Section):
    """Start from the export of an earlier run: its backbone and neck, and its centres of classes of the same name."""

    model: LinkedPath
    """An export folder: <run folder>/export."""


class Config(JobConfig):
    """Train an embedder."""

    job: Literal["train"]
    backbone: Annotated[BackboneConfig, Chosen("retrieval_train.models.backbones")]
    """Image -> features."""
    neck: Annotated[NeckConfig, Chosen("retrieval_train.models.necks")] = LinearNeck()
    """Features -> embedding."""
    lora: Lora | None = None
    """Adapters in a frozen backbone; null trains the whole backbone."""
    head: Annotated[RuleConfig, Chosen("retrieval_train.heads")]
    """Embedding -> logits: the margin rule over class centres."""
    loss: Annotated[LossConfig, Chosen("retrieval_train.losses")] = Softmax()
    """Logits -> one number."""
    data: DataConfig
    """Which images."""
    engine: Annotated[EngineConfig, Chosen("retrieval_train.engine")]
    """What steps the weights."""
    optimizer: Optimizer = Optimizer()
    """How the weights are stepped."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the steps."""
    length: Length
    """How long."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """What is saved on the way."""
    tracking: Tracking = Tracking()
    """Where the numbers go."""
    init: Init | None = None
    """Start from an earlier run's export."""

    def problems(self) -> list[tuple[str, str]]:
        found = self.data.problems(self.shards_root)
        found += [(f"backbone.{key}", text) for key, text in self.backbone.problems()]
        found += self._size_problems()
        for key in ("strong", "unlabelled"):
            if getattr(self.data, key) is not None:
                text = f"the loss '{self.loss.name}' takes one view of labelled images only; leave it out"
                found.append((f"data.{key}", text))
        if self.init and not (self.init.model / "model.json").is_file():
            found.append(("init.model", f"{self.init.model} is no export: it has no model.json; train that run first"))
        return found

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
        if (file := self.backbone.weights_file()) is not None:
            found["backbone.weights"] = sampled_digest(file)
        if self.init is not None:
            found["init.model"] = read_json(self.init.model / "model.json")["sha256"]
        return found


def run(config: Config, run: RunDir, world: World) -> dict[str, float]:
    """Train to the end, or save and raise Preempted; the last step's figures. Resumes from `checkpoints/latest`."""
    from retrieval_train.data.deaths import deaths_told
    from retrieval_train.data.intake import Intake, cut_back
    from retrieval_train.data.loader import build_loader
    from retrieval_train.engine.loop import Watcher, train
    from retrieval_train.engine.stop import Stop
    from retrieval_train.engine.watchers import Checkpoint, Follow, Show, Track
    from retrieval_train.heads.centres import Head
    from retrieval_train.learner import Learner
    from retrieval_train.models import exported, lora
    from retrieval_train.models.backbones.backbone import check_sizes
    from retrieval_train.tracking import cut_metrics, open_tracker

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
    num_steps = config.length.num_steps(loader.epoch_steps)
    lora.check_alive(embedder, image_px=config.backbone.image_px)
    check_sizes(embedder, [stretch.px for stretch in config.data.resolutions])
    head = Head(config.head, loader.labels.names, dim=embedder.dim, world=world, seed=config.seed)
    if config.init:
        head.take(exported.read_centres(config.init.model))
    learner = Learner(embedder, head, config.loss, world, loader.labels.domains)
    engine = config.engine.build(learner, config.optimizer, config.schedule.build(num_steps), seed=config.seed)

    intake = Intake(
        world,
        bad_file=run.bad / f"{world.rank:05d}.jsonl",
        ledger_file=run.ledger / f"{world.rank:05d}.tsv" if config.data.ledger else None,
        max_bad_fraction=config.data.max_bad_fraction,
    )
    if (latest := run.latest_checkpoint()) is not None:
        saved = engine.load(latest)
        loader.order.take_state(saved.get("order", {}))
        intake.take_state(saved.get("intake", {}))
        log.info("going on from %s", latest)
    if world.rank == 0:
        cut_metrics(run.metrics, last_step=engine.step)
        for folder in (run.bad, run.ledger):
            cut_back(folder, steps=engine.step)
    world.barrier()
    _tell(config, loader, embedder, num_steps, engine.step)
    values = config.model_dump(mode="json")
    tracker = open_tracker(config.tracking, run, is_first=world.rank == 0, values=values)

    def extra() -> dict[str, Any]:
        return {"tracker": tracker.id, "order": loader.order.state(), "intake": intake.state(engine.step)}

    checkpoints = Checkpoint(engine, run, world, config.checkpoint, extra=extra)
    progress = Progress(run, world, "train", total=num_steps, unit="steps")
    watchers: list[Watcher] = [
        Track(tracker, epoch_steps=loader.epoch_steps, num_steps=num_steps, agree=intake.agree),
        Follow(loader.order, world),
        Show(progress.show, num_steps=num_steps),
        checkpoints,
    ]
    stop = Stop(world, max_minutes=config.run.max_minutes)
    failed = True
    try:
        draws = loader.draws(engine.step, num_steps)
        with stop.listening(), deaths_told(world.rank), contextlib.closing(draws):
            ending = train(engine, intake.watched(draws, first=engine.step), watchers, stop)
            _after(ending, engine.step, checkpoints)  # before the wait for the data workers to end: time may be short
        failed = False
    except Preempted:
        failed = False
        raise
    finally:
        tracker.close(failed=failed)
        with contextlib.suppress(Exception):
            engine.close()
    if world.rank == 0:
        from jobs.export import write_export

        write_export(config, run.checkpoint(num_steps), run.export)
        _write_page(run)
    world.barrier()
    return {"steps": float(num_steps)}


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


class Diverged(ValueError):
    """The loss is no number any more."""


def _after(ending: Ending, step: int, checkpoints: Any) -> None:
    """Save; raise what the ending means."""
    if ending == "not finite":
        raise Diverged(
            f"the loss or a gradient is not a finite number at step {step + 1}, which was not stepped. Lower optimizer.lr or "
            "head_lr, or set engine.clip_norm lower, in a new run"
        )
    if step:  # before the first one there is nothing to save
        checkpoints.save()
    if ending != "finished":
        raise Preempted(f"{ending} at step {step}" + ("; saved" if step else ""))


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


def _write_page(run: RunDir) -> None:
    """Curves of the run as `report.html`."""
    from markupsafe import Markup

    from retrieval_train import page
    from retrieval_train.rundir import write_text

    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    steps = [line["step"] for line in lines]
    shown = {"loss": "loss", "lr": "learning rate", "grad_norm": "gradient norm", "images_per_s": "images a second"}
    curves = [page.curve({run.path.name: (steps, [line[key] for line in lines])}, ylabel=y) for key, y in shown.items()]
    body = Markup("").join(curves)
    lead = f"{len(lines)} steps, {lines[-1]['images']:,} images; the last loss is {lines[-1]['loss']:.4f}."
    write_text(run.page, page.page(f"Training run {run.path.name}", lead=lead, sections=[page.Section("Curves", body)]))
