"""Measure the loader or the head beside others, and how many CPU cores per GPU a training config needs."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from jobs.job import JobConfig, Progress
from jobs.peers.demand import DemandConfig, train_config
from jobs.peers.head.config import HeadRaceConfig
from retrieval_train.config import ConfigError, FileName, Section, place
from retrieval_train.rundir import RunDir, read_json, write_json, write_text

if TYPE_CHECKING:
    from jobs.peers.demand import Demand
    from jobs.peers.outcome import Race
    from jobs.peers.photos import Images
    from jobs.peers.race import Contestant, Entry
    from jobs.peers.task import Task
    from retrieval_train.world import World

log = logging.getLogger(__name__)

Peer = Literal["open_clip_recipe", "mosaicml", "imagefolder", "webdataset_dct", "metric_learning"]


class PeerConfig(Section):
    """Where a peer is installed."""

    python: Path = Field(json_schema_extra=place())
    """The Python of an environment that has it, and torch."""


class Config(JobConfig):
    """Measure the loader, or the head."""

    job: Literal["benchmark"]
    what: Literal["data", "head"] = "data"
    """What is measured: data, the way from tars to batches; head, a step of the class centres."""
    head: HeadRaceConfig | None = None
    """With what: head, and then the keys of images and workers have no effect."""
    set: FileName | None = None
    """Set under shards_root whose training images are read; null draws photos of 0.65 megapixels."""
    images: int = Field(default=480, ge=64)
    """How many; each contestant reads them again and again."""
    image_px: int = Field(default=224, ge=8)
    """Side of the crops."""
    short_px: int = Field(default=256, ge=8)
    """Short side of the images' smaller copies, which are measured too."""
    batch: int = Field(default=32, ge=1)
    """Images of a batch."""
    workers: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 2), min_length=1)
    """Worker processes of each contestant, on as many cores: one race each."""
    rounds: int = Field(default=5, ge=1)
    """Turns of each contestant; one more comes before and is not counted."""
    turn_s: float = Field(default=4.0, gt=0)
    """Seconds of a turn."""
    peers: dict[Peer, PeerConfig] = Field(default={})
    """Peers that are installed elsewhere."""
    cores_per_gpu: DemandConfig | None = None
    """A training config whose need of cores is measured."""

    def problems(self) -> list[tuple[str, str]]:
        if (self.what == "head") != (self.head is not None):
            return [("head", f"what is {self.what}: set what=head for a race of heads, and describe it under head")]
        found = []
        for name, peer in self.peers.items():
            if not os.access(peer.python, os.X_OK):
                found.append((f"peers.{name}.python", f"{peer.python} is no program"))
        if sys.platform != "linux":
            text = f"benchmark pins and stops processes as only Linux can, and this is {sys.platform}"
            return [*found, ("job", text)]
        if self.head:
            return [*found, *self.head.problems(len(os.sched_getaffinity(0)))]
        return found + self._problems_of_data()

    def _problems_of_data(self) -> list[tuple[str, str]]:
        from shards.manifest import Manifest, ShardError

        found = []
        if (cores := len(os.sched_getaffinity(0))) < max(self.workers):
            found.append(("workers", f"{list(self.workers)} need {max(self.workers)} cores; there are {cores}"))
        if self.batch > self.images // max(self.workers):
            text = f"{self.batch} is more than each of {max(self.workers)} workers gets of {self.images} images"
            found.append(("batch", f"{text}; take a smaller batch or more images"))
        if self.set:
            try:
                if not Manifest.load(self.shards_root / self.set).select("train"):
                    found.append(("set", f"'{self.set}' has no training images"))
            except ShardError as error:
                found.append(("set", str(error)))
        if self.cores_per_gpu:
            try:
                train_config(self.cores_per_gpu)
            except ConfigError as error:
                found += [(f"cores_per_gpu.train: {path}", text) for path, text in error.problems]
        return found

    def inputs(self) -> dict[str, str]:
        from shards.manifest import Manifest

        found = {"set": Manifest.load(self.shards_root / self.set).digest} if self.set else {}
        if self.cores_per_gpu:
            from retrieval_train.config import identity

            train = train_config(self.cores_per_gpu)
            found["cores_per_gpu.train"] = identity(train, train.inputs())
        return found


def run(config: Config, run: RunDir, world: World) -> dict[str, float]:
    """Of our own by race, images a second per core or seconds a step; `report.json` and `report.html` hold the rest."""
    if world.size > 1:
        text = "benchmark measures in one process; say --nodes 1 --tasks-per-node 1, or --gpus-per-node 1"
        raise ConfigError("command line", [("ranks", text)])
    if config.head:
        from jobs.peers.head.measure import measure

        pythons = {str(name): peer.python for name, peer in config.peers.items()}
        return measure(config.head, pythons=pythons, rounds=config.rounds, seed=config.seed, run=run, world=world)
    return _measure_data(config, run, world)


def _measure_data(config: Config, run: RunDir, world: World) -> dict[str, float]:
    from jobs.peers import outcome as outcomes
    from jobs.peers import tables
    from jobs.peers.photos import make_images
    from jobs.peers.race import started
    from shards.manifest import Manifest

    progress = Progress(run, world, "make images", total=1, unit="sets")
    with _empty_folder(run.path / "images") as scratch:
        given = Manifest.load(config.shards_root / config.set) if config.set else None
        images = make_images(scratch, given=given, count=config.images, short_px=config.short_px)
        progress.show(1)
        with started(entries_of(config), run.logs) as (contestants, absent):
            races, failed = _race(config, images, contestants, scratch, run, world)
        opening = _time_opening(config, images[0], run, world)
    demand = _demand(config, run, world) if config.cores_per_gpu else None
    about: dict[str, Any] = {"images": {kind.title: f"{kind.count} of {kind.mean_bytes:,} bytes" for kind in images}}
    about |= {"set": config.set or "drawn photos", "crop px": config.image_px, "batch": config.batch}
    about |= {"rounds": config.rounds, "turn s": config.turn_s, "machine": outcomes.describe_machine()}
    plan = read_json(run.plan) if run.plan.is_file() else {}
    found = outcomes.Outcome(
        races=races,
        absent={**absent, **failed},
        opening=opening,
        demand=demand,
        about=about,
        command=str(plan.get("command", f"python -m jobs {run.path}")),
    )
    write_json(run.report, found.as_json())
    tables.write_page(found, run.page)
    text = tables.as_text(found)
    write_text(run.report.with_suffix(".txt"), text)
    log.info("%s", text)
    rates = {race.title: race.rates[outcomes.SUITE] for race in races}
    return {title: mine.images_per_s for title, mine in rates.items()}


@contextlib.contextmanager
def _empty_folder(folder: Path) -> Iterator[Path]:
    """A start that was killed has left its own behind."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def entries_of(config: Config) -> list[Entry]:
    """Who takes part, in the order of their turns."""
    from jobs.peers import outcome
    from jobs.peers.race import Entry

    peers = [
        Entry("open_clip_recipe", outcome.OPEN_CLIP, "webdataset"),
        Entry("mosaicml", outcome.MOSAICML, "mosaicml-streaming"),
        Entry("imagefolder", outcome.IMAGE_FOLDER, "torchvision"),
        Entry("webdataset_dct", outcome.WEBDATASET_DCT, "webdataset simplejpeg"),
    ]
    elsewhere: dict[str, PeerConfig] = {str(name): peer for name, peer in config.peers.items()}
    peers = [
        Entry(peer.module, peer.title, peer.package, elsewhere[peer.module].python.absolute())
        if peer.module in elsewhere
        else peer
        for peer in peers
    ]
    return [
        *peers,
        Entry("bare", outcome.BARE, is_needed=True),
        Entry("bare_suite", outcome.BARE_SUITE, is_needed=True),
        Entry("suite", outcome.SUITE, is_needed=True),
    ]


def _race(
    config: Config,
    images: Sequence[Images],
    contestants: Sequence[Contestant],
    scratch: Path,
    run: RunDir,
    world: World,
) -> tuple[list[Race], dict[str, str]]:
    """All races, and why somebody did not finish one."""
    from jobs.peers.outcome import Race
    from jobs.peers.race import take_turns

    races: list[Race] = []
    all_failed: dict[str, str] = {}
    for kind in images:
        for workers in config.workers:
            tasks = {
                one.entry.module: _task(config, kind, scratch / f"{one.entry.module}-{kind.set}", workers)
                for one in contestants
                if workers == 1 or not one.entry.module.startswith("bare")
            }
            race = f"{kind.title}, {workers} workers" if workers > 1 else f"{kind.title}, 1 worker"
            progress = Progress(run, world, race, total=(config.rounds + 1) * len(tasks), unit="turns")
            rates, failed = take_turns(
                contestants, tasks, rounds=config.rounds, turn_s=config.turn_s, shown=progress.show
            )
            all_failed |= {f"{name} ({race})": why for name, why in failed.items()}
            races.append(Race(kind.title, kind is images[0], workers, rates))
    return races, all_failed


def _task(config: Config, kind: Images, scratch: Path, workers: int, *, first_step: int = 0) -> Task:
    from jobs.peers.race import usable_cores
    from jobs.peers.task import CROP_RATIO, CROP_SCALE, Task

    scratch.mkdir(exist_ok=True)
    crop = {"crop_scale": list(CROP_SCALE), "crop_ratio": list(CROP_RATIO), "jitter": 0, "hue": 0}
    return Task(
        shards_root=str(kind.shards_root),
        mixture={kind.set: 1.0},
        files=str(kind.files),
        scratch=str(scratch),
        image_px=config.image_px,
        batch=config.batch,
        workers=workers,
        cores=usable_cores(workers),
        first_step=first_step,
        data={"augment": crop},
        seed=config.seed,
    )


def _time_opening(config: Config, kind: Images, run: RunDir, world: World) -> dict[int, list[float]]:
    """Seconds to the first batch of our loader, from the start and far into a run."""
    from jobs.peers.outcome import RESUMED
    from jobs.peers.race import time_openings

    progress = Progress(run, world, "first batch", total=1, unit="measurements")
    steps = (0, RESUMED)
    tasks = [_task(config, kind, kind.files, 1, first_step=step) for step in steps]
    seconds = time_openings(entries_of(config)[-1], tasks, run.logs, rounds=config.rounds)
    progress.show(1)
    return dict(zip(steps, seconds, strict=True))


def _demand(config: Config, run: RunDir, world: World) -> Demand:
    """The loader's speed with the training config's data beside its model's."""
    from jobs.peers import demand
    from jobs.peers.race import started

    assert config.cores_per_gpu, "the caller looked"
    wanted, train = config.cores_per_gpu, train_config(config.cores_per_gpu)
    progress = Progress(run, world, "cores per GPU", total=len(config.workers) * (config.rounds + 1) + 1, unit="turns")
    per_core = []
    with started(entries_of(config)[-1:], run.logs) as (contestants, _):
        for number, workers in enumerate(config.workers):
            before = number * (config.rounds + 1)
            rate = demand.measure_loader(
                contestants[0],
                train,
                workers=workers,
                rounds=config.rounds,
                turn_s=config.turn_s,
                shown=lambda done, before=before: progress.show(before + done),  # type: ignore[misc]
            )
            per_core.append(rate / workers)
    given = wanted.gpu_images_per_s
    return demand.Demand(
        train=str(wanted.train),
        core_images_per_s=min(per_core),
        model_images_per_s=given or demand.measure_model(train, world, rows=wanted.rows, seed=config.seed),
        measured_on="as given" if given else demand.device_name(world),
        is_gpu=bool(given) or world.device.type == "cuda",
    )
