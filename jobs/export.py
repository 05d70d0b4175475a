"""Turn a checkpoint of a train run into one safetensors with LoRA merged. Every train run does this at its end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from jobs.job import JobConfig
from retrieval_train.config import LinkedPath
from retrieval_train.rundir import RunDir

if TYPE_CHECKING:
    from jobs.train import Config as TrainConfig
    from retrieval_train.models.embedder import Embedder
    from retrieval_train.world import World

log = logging.getLogger(__name__)

_OF_LOSSES = "layers."


class Config(JobConfig):
    """Export a checkpoint of a train run into this run's `export/`."""

    job: Literal["export"]
    train: LinkedPath
    """The train run's folder."""
    step: int | None = Field(default=None, ge=1)
    """Which checkpoint; null takes the latest."""

    def checkpoint(self) -> Path | None:
        source = RunDir(self.train)
        return source.latest_checkpoint() if self.step is None else source.checkpoint(self.step)

    def problems(self) -> list[tuple[str, str]]:
        folder = self.checkpoint()
        if folder is None or not (folder / "state.json").is_file():
            there = sorted(path.name for path in RunDir(self.train).checkpoints.glob("step-*"))
            return [("train", f"{self.train} has no such checkpoint; there are: {', '.join(there) or 'none'}")]
        return []

    def inputs(self) -> dict[str, str]:
        import hashlib

        folder = self.checkpoint()
        assert folder is not None, "problems() looked"
        return {"checkpoint": hashlib.sha256((folder / "sums.json").read_bytes()).hexdigest()}


def run(config: Config, run: RunDir, world: World) -> dict[str, float]:
    """Rank 0 exports; the others wait."""
    from jobs import job

    folder = config.checkpoint()
    assert folder is not None, "problems() looked"
    if world.rank == 0:
        source: TrainConfig = job.load(RunDir(config.train))  # type: ignore[assignment]
        write_export(source, folder, run.export)
    world.barrier()
    return {}


def write_export(config: TrainConfig, checkpoint: Path, export: Path) -> None:
    """Build the embedder as the run did, put the checkpoint's tensors and buffers in, merge the adapters, write."""
    from jobs.train import fresh_embedder, view_of
    from retrieval_train.engine.checkpoint import read_all_centres, read_state
    from retrieval_train.models import exported, lora
    from retrieval_train.rundir import written_aside

    state = read_state(checkpoint)
    embedder = fresh_embedder(config)
    _put(checkpoint, embedder)
    if config.lora:
        lora.merge(embedder)
    start = exported.Start(backbone=config.backbone, neck=config.neck, seed=config.seed)
    if config.init:
        start = exported.read_card(config.init.model)[0].began
    view = view_of(config, embedder)
    card = exported.Card(backbone=config.backbone, neck=config.neck, view=view, seed=config.seed, began=start)
    names, centre_CKD = read_all_centres(checkpoint)
    facts = {"run": config.run.name, "step": state["step"], "classes": len(names)}
    with written_aside(export) as folder:
        exported.save(folder, embedder, card, facts)
        if names:
            exported.save_centres(folder, names, centre_CKD)
    log.info("exported %s", export)


def _put(checkpoint: Path, embedder: Embedder) -> None:
    """The checkpoint's weights and buffers, without those of the losses' layers. Raises CheckpointError."""
    import torch

    from retrieval_train.engine.checkpoint import BUFFERS, Tensors, check_names, persistent_buffers, read_buffers

    trained, buffers = dict(embedder.named_parameters()), persistent_buffers(embedder)
    weights, stored = Tensors(checkpoint, "model.safetensors"), Tensors(checkpoint, BUFFERS)
    kept = {name for name in stored.names() if not name.startswith(_OF_LOSSES)}
    with torch.no_grad():
        for name in weights.names():
            if not name.startswith(_OF_LOSSES):
                trained[name].copy_(weights[name])
        if kept == stored.names():
            read_buffers(checkpoint, embedder)
            return
        check_names(checkpoint, kept, set(buffers), kind="buffers")
        for name in kept:
            buffers[name].copy_(stored[name])
