"""Look at an export's class centres: which classes lie close to each other, which training images far from their own class.

centres.tsv     a class a row: its images, the nearest other classes with their cosines and, where classes have several
                centres, the share of the images on the dominant one
outliers.tsv    images beyond the threshold, the farthest first: suspects of wrong labels
report.json     the numbers, and report.html with pictures

Legend: C classes of the export, K sub-centres, D dimensions, N images of this rank, P (image, class) pairs, M neighbours.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from jobs.evaluate import Embed, source_of
from jobs.job import JobConfig, Progress
from jobs.training.new_classes import centres_digest
from retrieval_train.config import FileName, LinkedPath, later
from retrieval_train.rundir import RunDir, read_json, read_names, write_json, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.data.reader import Reader
    from retrieval_train.evaluation.class_centres import Fit
    from retrieval_train.evaluation.embed import Embeddings
    from retrieval_train.world import World
    from shards.manifest import Manifest

log = logging.getLogger(__name__)

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


class Config(JobConfig):
    """Look at the class centres of an export."""

    job: Literal["centres"]
    model: LinkedPath
    """An export folder: <run folder>/export, of a run with a head."""
    set: FileName
    """Set name, a folder under shards_root: the images of its training split are held against the centres."""
    fold: int | None = Field(default=None, ge=0, json_schema_extra=later())
    """The fold that was held out (data.fold), whose images are then left out; null: all images of a set with folds."""
    threshold_degrees: float = Field(default=75, gt=0, le=180)
    """An image that is farther from its class's dominant centre is an outlier."""
    neighbours: int = Field(default=5, ge=1)
    """How many of the nearest other classes are told of each class."""
    embed: Embed = Embed()
    """How images become vectors."""

    def problems(self) -> list[tuple[str, str]]:
        from shards.manifest import ShardError

        if not (self.model / "model.json").is_file():
            text = f"{self.model} is no export: it has no model.json; train first, then give <run folder>/export"
            return [("model", text)]
        if not (self.model / "centres.safetensors").is_file():
            text = f"{self.model} has no class centres: it was trained with head: null; give the export of a run with a head"
            return [("model", text)]
        try:
            manifest = self.manifest()
            if not manifest.select("train"):
                there = ", ".join(sorted({shard.split for shard in manifest.shards}))
                return [
                    ("set", f"set '{self.set}' has no training images, only {there}; give a set that was trained on")
                ]
            problem = _names_problem(self.set, read_names(self.model / "classes.txt"), _with_images(manifest))
        except ShardError as error:
            problem = str(error)
        return [("set", problem)] if problem else []

    def manifest(self) -> Manifest:
        """The set, without the fold. Raises ShardError."""
        from shards.manifest import Manifest

        return Manifest.load(self.shards_root / self.set).with_fold(self.fold)

    def inputs(self) -> dict[str, str]:
        return {
            "model": read_json(self.model / "model.json")["sha256"],
            "centres": centres_digest(self.model),
            "set": self.manifest().digest,
        }


def _with_images(manifest: Manifest) -> list[str]:
    classes = manifest.classes
    return [name for name, count in zip(classes.class_names(), classes.counts("train").tolist(), strict=True) if count]


def _names_problem(set_name: str, theirs: Sequence[str], mine: Sequence[str]) -> str:
    if not set(theirs).isdisjoint(mine):
        return ""
    few, others = (", ".join(f"'{name}'" for name in names[:3]) for names in (theirs, mine))
    return (
        f"none of its {len(mine)} classes ({others} ...) is among the {len(theirs)} of the export ({few} ...): classes are "
        f"known by their names, domain/label; give a set that the model was trained on instead of '{set_name}'"
    )


def run(config: Config, run: RunDir, world: World) -> dict[str, float]:
    """The numbers of `report.json`. Every rank embeds a share of the images and compares a share of the classes."""
    found = _look(config, run, world)
    if world.rank != 0:
        return {}
    metrics, counts = found.metrics(), found.counts()
    write_text(run.path / "centres.tsv", _table(_class_rows(found)))
    write_text(run.path / "outliers.tsv", _table(_outlier_rows(found)))
    _write_report(config, run, {"metrics": metrics, "counts": counts})
    _write_page(config, run, found, facts={**counts, **metrics})
    log.info(
        "%d of %d images lie beyond %g degrees: outliers.tsv",
        len(found.fit.far),
        counts["labels"],
        config.threshold_degrees,
    )
    return metrics


@dataclass(frozen=True, eq=False)
class Found:
    """What the tables and the page are made of."""

    names: Sequence[str]
    """Of the export's classes."""
    sub_centres: int
    fit: Fit
    near: tuple[Any, Any]
    """(classes, cosines), both (C, M)."""
    reader: Reader
    keys: Sequence[str]
    """Of its samples; rank 0 alone has them."""
    pairs: tuple[Any, Any]
    """(sample, class) of every label that has a centre."""
    num_unknown: int
    """Labels that have none."""

    def metrics(self) -> dict[str, float]:
        found = {
            "outliers": float(len(self.fit.far)),
            "outlier_share": len(self.fit.far) / len(self.pairs[0]),
            "mean_angle": self.fit.mean_angle,
        }
        if self.near[1].shape[1]:
            found["mean_nearest_cosine"] = float(self.near[1][:, 0].mean())
        if self.sub_centres > 1:
            found["mean_dominant_share"] = float(np.nanmean(self.fit.dominant_share_C))
        return found

    def counts(self) -> dict[str, int]:
        return {
            "classes": len(self.names),
            "sub_centres": self.sub_centres,
            "images": len(self.reader),
            "labels": len(self.pairs[0]),
            "classes_without_images": int((self.fit.images_C == 0).sum()),
            "labels_of_no_centre": self.num_unknown,
        }


def _look(config: Config, run: RunDir, world: World) -> Found:
    """Embed, then compare. Collective."""
    import torch

    from retrieval_train.data.reader import Reader
    from retrieval_train.evaluation import class_centres

    manifest = config.manifest()
    reader = Reader(manifest, manifest.select("train"))
    names, centre_CKD = _centres(config.model, world)
    embedded = _embed(config, run, reader, world)
    vectors, number_N = embedded.vectors(embedded.mine(world))
    sample_P, class_P, num_unknown = _pairs(reader, names)
    place_of = np.full(len(reader), -1)
    place_of[number_N] = np.arange(len(number_N))
    is_mine_P = place_of[sample_P] >= 0
    fit = class_centres.fit(
        torch.from_numpy(vectors).to(world.device),
        number_N,
        (place_of[sample_P[is_mine_P]], class_P[is_mine_P]),
        centre_CKD,
        world,
        threshold_degrees=config.threshold_degrees,
    )
    near = class_centres.neighbours(centre_CKD, world, num=config.neighbours)
    keys = embedded.keys() if world.rank == 0 else []
    return Found(names, centre_CKD.shape[1], fit, near, reader, keys, (sample_P, class_P), num_unknown)


def _centres(export: Path, world: World) -> tuple[list[str], Tensor]:
    """Class names, and their centres (C, K, D) of length 1 on the rank's device, without a linear head's bias."""
    import torch

    from retrieval_train.models import exported

    names, rows = exported.centre_names(export), exported.read_centres(export)
    dim = read_json(export / "model.json")["dim"]
    centre_CKD = torch.stack([rows[name] for name in names]).to(world.device)[..., :dim]
    return names, torch.nn.functional.normalize(centre_CKD, dim=2)


def _embed(config: Config, run: RunDir, reader: Reader, world: World) -> Embeddings:
    """All ranks' vectors and keys, on the disk. Collective."""
    from retrieval_train.evaluation.embed import Embeddings, embed_mine, join
    from retrieval_train.models import exported

    card, _ = exported.read_card(config.model)
    embedder = exported.load(config.model).to(world.device).eval()
    embedder.precision = config.embed.precision
    out = Embeddings(run.embeddings / "train", len(reader))
    progress = Progress(run, world, "embed", total=len(reader), unit="images")
    source = source_of(embedder, card.view, card.backbone.image_px)
    embed_mine(
        source, reader, out, world, config.embed, shown=lambda done: progress.show(min(done * world.size, len(reader)))
    )
    join([out], world)
    progress.show(len(reader))
    return out


def _pairs(reader: Reader, names: Sequence[str]) -> tuple[Any, Any, int]:
    """(sample, class of the export) of every label that has a centre, and how many have none."""
    number_of = {name: number for number, name in enumerate(names)}
    known = np.array([number_of.get(name, -1) for name in reader.manifest.classes.class_names()], np.int64)
    sample_P, own_P = reader.label_pairs()
    class_P = known[own_P]
    is_known_P = class_P >= 0
    return sample_P[is_known_P], class_P[is_known_P], int((~is_known_P).sum())


def _class_rows(found: Found) -> Iterable[Sequence[object]]:
    names, fit, (class_CM, cosine_CM) = found.names, found.fit, found.near
    has_several, share_C = found.sub_centres > 1, fit.dominant_share_C
    columns = [f"{word}_{place}" for place in range(1, class_CM.shape[1] + 1) for word in ("nearest", "cosine")]
    yield "class", "images", *(["dominant_share"] if has_several else []), *columns
    for number, name in enumerate(names):
        share = [f"{share_C[number]:.4f}" if fit.images_C[number] else ""] if has_several else []
        pairs = zip(class_CM[number].tolist(), cosine_CM[number].tolist(), strict=True)
        others = [cell for other, cosine in pairs for cell in (names[other], f"{cosine:.6f}")]
        yield name, int(fit.images_C[number]), *share, *others


def _outlier_rows(found: Found) -> Iterable[Sequence[object]]:
    names, reader = found.names, found.reader
    yield "angle", "class", "nearest", "nearest_cosine", "set", "shard", "key"
    for far in found.fit.far:
        nearest = (names[far.nearest], f"{far.cosine:.6f}") if far.nearest >= 0 else ("", "")
        shard, _ = reader.place(far.number)
        yield f"{far.angle:.3f}", names[far.own], *nearest, reader.manifest.name, shard.file, found.keys[far.number]


def _table(rows: Iterable[Sequence[object]]) -> str:
    """Tab-separated; tabs and line breaks in names are written as two characters."""
    return "".join("\t".join(str(cell).translate(_ESCAPES) for cell in row) + "\n" for row in rows)


def _write_report(config: Config, run: RunDir, found: dict[str, Any]) -> None:
    card = read_json(config.model / "model.json")
    model = {"export": str(config.model), **{key: card[key] for key in ("run", "step", "dim", "sha256") if key in card}}
    about = {"command": _command(run), "model": model, "set": config.set, "threshold_degrees": config.threshold_degrees}
    date = datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()
    write_json(run.report, {"schema": 1, **found, **about, "date": date})


def _write_page(config: Config, run: RunDir, found: Found, *, facts: dict[str, float]) -> None:
    from retrieval_train import page
    from retrieval_train.evaluation import class_centres
    from retrieval_train.evaluation import class_centres_page as pages

    reader, (sample_P, class_P) = found.reader, found.pairs
    order_P = np.argsort(class_P, kind="stable")
    starts_C1 = np.searchsorted(class_P[order_P], np.arange(len(found.names) + 1))
    shown = pages.Shown(
        names=found.names,
        fit=found.fit,
        close=class_centres.close_pairs(*found.near, num=pages.CLOSE_PAIRS),
        threshold_degrees=config.threshold_degrees,
        images_of=lambda number: sample_P[order_P[starts_C1[number] : starts_C1[number + 1]]].tolist(),
        key_of=lambda number: found.keys[number],
        picture=lambda number: reader.read(number).image,
    )
    about = {"model": str(config.model), "set": config.set, **facts}
    title = f"Class centres of {config.model.parent.name}"
    sections = pages.sections(shown, about, _command(run))
    write_text(run.page, page.page(title, lead=pages.lead(shown), sections=sections))


def _command(run: RunDir) -> str:
    plan = read_json(run.plan) if run.plan.is_file() else {}
    return str(plan.get("command", f"python -m jobs {run.path}"))
