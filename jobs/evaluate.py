"""Evaluate an export by retrieval: every rank embeds and searches its parts, rank 0 writes the report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from jobs.job import JobConfig, Progress
from retrieval_train.config import FileName, LinkedPath, Section, later
from retrieval_train.evaluation import embed
from retrieval_train.evaluation.index import Config as Index
from retrieval_train.rundir import RunDir, read_json

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.data.view import View
    from retrieval_train.evaluation.gallery import Gallery
    from retrieval_train.evaluation.metrics import Scores, Truth
    from retrieval_train.evaluation.retrieval import Retrieval
    from retrieval_train.evaluation.search import Hits
    from retrieval_train.models.embedder import Embedder
    from retrieval_train.world import World
    from shards.manifest import Manifest

log = logging.getLogger(__name__)

Baseline = Literal["chance", "raw_pixels", "untrained"]


class EvaluationData(Section):
    """What is searched for, and in what."""

    set: FileName
    """Set name: a folder under shards_root."""
    split: Literal["dev", "test"] = "dev"
    """Its queries are searched in its index and distractors, all domains in one."""
    fold: int | None = Field(default=None, ge=0, json_schema_extra=later())
    """The fold that is dev, of a set with folds; null: the set has none."""

    def problems(self, shards_root: Path) -> list[tuple[str, str]]:
        from shards.manifest import Manifest, ShardError

        found = []
        try:
            manifest = Manifest.load(shards_root / self.set)
        except ShardError as error:
            return [("set", str(error))]
        if self.fold is None and manifest.num_folds:
            text = (
                f"set '{self.set}' has {manifest.num_folds} folds and no dev split of its own: say which of them no model "
                f"was trained on, by data.fold=0 to {manifest.num_folds - 1}"
            )
            return [("fold", text)]
        try:
            manifest = manifest.with_fold(self.fold)
        except ShardError as error:
            return [("fold", str(error))]
        if manifest.is_multi_label:
            found.append(("set", f"set '{self.set}' has images with several labels, and no metric here takes them"))
        if not (manifest.select(self.split, "query") and manifest.select(self.split, "index")):
            there = ", ".join(sorted({f"{shard.split}/{shard.role}" for shard in manifest.shards}))
            text = (
                f"set '{self.set}' has no {self.split} queries and index to evaluate on, only {there}; "
                "make it again with `shards make ... --dev-fraction 0.2` or a split column"
            )
            found.append(("split", text))
        return found

    def manifest(self, shards_root: Path) -> Manifest:
        """The set as it is evaluated. Raises ShardError."""
        from shards.manifest import Manifest

        return Manifest.load(shards_root / self.set).with_fold(self.fold)

    def digests(self, shards_root: Path) -> dict[str, str]:
        return {"set": self.manifest(shards_root).digest}

    def open(self, shards_root: Path) -> Retrieval:
        from retrieval_train.data.reader import Reader
        from retrieval_train.evaluation.retrieval import Retrieval

        manifest = self.manifest(shards_root)
        query, index, distractor = (manifest.select(self.split, role) for role in ("query", "index", "distractor"))
        return Retrieval(Reader(manifest, query), Reader(manifest, index + distractor))


class Embed(embed.Config):
    """How an export's images become vectors."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products in bfloat16; vectors are stored in float32 all the same."""


class Config(JobConfig):
    """Evaluate an export."""

    job: Literal["evaluate"]
    model: LinkedPath
    """An export folder: <run folder>/export."""
    compare: dict[FileName, LinkedPath] = Field(default={})
    """More exports to stand beside it in the table, by the name of their column."""
    baselines: tuple[Baseline, ...] = ("chance", "raw_pixels", "untrained")
    """What the model is held against; untrained is what its first training stage started from: where that was
    pretrained, its column is called zero_shot."""
    data: EvaluationData
    """What is searched."""
    embed: Embed = Embed()
    """How images become vectors."""
    index: Index = Index()
    """How vectors are searched."""

    @field_validator("compare")
    @classmethod
    def _columns_of_their_own(cls, compare: dict[str, Path]) -> dict[str, Path]:
        taken = {"trained", "merged", "chance", "raw_pixels", "untrained", "zero_shot"} & set(compare)
        if taken:
            raise ValueError(f"'{min(taken)}' is the name of another column; choose another one")
        return compare

    def problems(self) -> list[tuple[str, str]]:
        found = []
        for key, path in {"model": self.model, **{f"compare.{name}": p for name, p in self.compare.items()}}.items():
            if not (path / "model.json").is_file():
                text = f"{path} is no export: it has no model.json; train first, then give <run folder>/export"
                found.append((key, text))
        if "untrained" in self.baselines and not found:
            began = read_json(self.model / "model.json")["model"]["began"]["backbone"].get("weights")
            if began not in ("hub", "none", None) and not Path(began).is_file():
                text = f"untrained needs {began}, which is not here; say baselines=[chance,raw_pixels] to leave it out"
                found.append(("baselines", text))
        return found + [(f"data.{key}", text) for key, text in self.data.problems(self.shards_root)]

    def inputs(self) -> dict[str, str]:
        models = {"model": self.model, **{f"compare.{name}": path for name, path in self.compare.items()}}
        sums = {key: read_json(path / "model.json")["sha256"] for key, path in models.items()}
        return sums | {f"data.{key}": digest for key, digest in self.data.digests(self.shards_root).items()}


def run(config: Config, run: RunDir, world: World) -> dict[str, float]:
    """The merged metrics of the model; `report.json` and `report.html` hold the rest."""
    from retrieval_train.evaluation import metrics
    from retrieval_train.evaluation.baselines import chance

    retrieval = config.data.open(config.shards_root)
    hits: dict[str, Hits] = {}
    for name, source in _sources(config, world):
        log.info("%s: embedding and searching", name)
        hits[name] = _search(name, source, retrieval, config, run, world)
    if world.rank != 0:
        return {}
    truth = retrieval.truth
    scores = {name: metrics.evaluate(found, truth) for name, found in hits.items()}
    if "chance" in config.baselines:
        scores["chance"] = chance(truth)
    _write(config, run, scores, truth, _gallery(hits["trained"], retrieval, run))
    return scores["trained"][metrics.MERGED]


def _sources(config: Config, world: World) -> Iterator[tuple[str, embed.Source]]:
    """Whatever is evaluated, by the name of its column; each is built when its turn comes."""
    from retrieval_train.models import exported
    from retrieval_train.models.necks.identity import Config as Identity

    card, _ = exported.read_card(config.model)
    if "raw_pixels" in config.baselines:
        yield "raw_pixels", _raw_pixels()
    if "untrained" in config.baselines:
        began = card.began
        if began.backbone.is_pretrained:  # its features as they are: the neck was random then
            began = began.model_copy(update={"neck": Identity()})
        name = "zero_shot" if began.backbone.is_pretrained else "untrained"
        yield name, _source(began.build(), card.view, began.backbone.image_px, config.embed, world)
    for name, folder in {**config.compare, "trained": config.model}.items():
        card, _ = exported.read_card(folder)
        yield name, _source(exported.load(folder), card.view, card.backbone.image_px, config.embed, world)


def _source(embedder: Embedder, view: View, image_px: int, config: Embed, world: World) -> embed.Source:
    embedder = embedder.to(world.device).eval()
    embedder.precision = config.precision
    return source_of(embedder, view, image_px)


def source_of(embedder: Callable[[Tensor], Tensor], view: View, image_px: int) -> embed.Source:
    """An embedder that is in evaluation mode, on the rank's device."""
    return embed.Source(
        prepare=lambda image_CHW: view.apply(image_CHW, image_px), embed=embedder, min_side=view.min_side(image_px)
    )


def _raw_pixels() -> embed.Source:
    import torch

    from retrieval_train.evaluation.baselines import raw_pixels

    return embed.Source(
        prepare=lambda image_CHW: torch.from_numpy(raw_pixels(image_CHW.permute(1, 2, 0).numpy())),
        embed=lambda vectors_ND: vectors_ND,
    )


def _search(name: str, source: embed.Source, retrieval: Retrieval, config: Config, run: RunDir, world: World) -> Hits:
    """The best hits of every query, on all ranks."""
    folder = run.embeddings / name
    shown = embedding_shown(
        Progress(run, world, f"embed {name}", total=len(retrieval), unit="images"), retrieval, world
    )
    retrieval.embed(source, folder, world, config.embed, shown=shown)
    shown(len(retrieval))
    return retrieval.search(folder, world, config.index)


def embedding_shown(progress: Progress, retrieval: Retrieval, world: World) -> Callable[[int], None]:
    """Rank 0 shows for all: its parts are its share."""
    return lambda done: progress.show(min(done * world.size, len(retrieval)))


def _gallery(hits: Hits, retrieval: Retrieval, run: RunDir) -> Gallery:
    from retrieval_train.evaluation.gallery import Gallery

    query_keys, index_keys = retrieval.keys(run.embeddings / "trained")
    where = {key: (retrieval.query, number) for number, key in enumerate(query_keys)}
    where |= {key: (retrieval.searched, number) for number, key in enumerate(index_keys)}

    def picture(key: str) -> bytes:
        reader, number = where[key]
        return reader.read(number).image

    labels = retrieval.query.manifest.classes.class_names()
    return Gallery(
        hits=hits, truth=retrieval.truth, query_keys=query_keys, index_keys=index_keys, labels=labels, picture=picture
    )


def _write(config: Config, run: RunDir, scores: dict[str, Scores], truth: Truth, gallery: Gallery) -> None:
    from retrieval_train.evaluation import metrics, report
    from retrieval_train.models import exported

    _, card = exported.read_card(config.model)
    facts: dict[str, Any] = {key: card[key] for key in ("run", "step", "dim", "sha256") if key in card}
    plan = read_json(run.plan) if run.plan.is_file() else {}
    written = report.Report(
        metrics=scores["trained"],
        baselines={name: values for name, values in scores.items() if name != "trained"},
        counts=metrics.count(truth),
        command=str(plan.get("command", f"python -m jobs {run.path}")),
        model={"name": config.run.name, "export": str(config.model), **facts},
        index={**config.index.model_dump(), "images": len(truth.index_label_N), "dim": card["dim"]},
    )
    written.write(run.report)
    report.write_page(written, run.page, gallery=gallery)
