"""What every job shares: the common part of its config, how it is found by name, and the context that it runs in.

A job is a file `jobs/<name>.py` with a `Config` (a `JobConfig`) and `run(config, run_dir, world) -> dict[str, float]`.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import json
import logging
import os
import pkgutil
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

import jobs
from jobs import failure as failures
from jobs.failure import Failure
from retrieval_train import config as configs
from retrieval_train.config import ConfigError, FileName, Section, place
from retrieval_train.rundir import RunDir, read_json, write_json, write_text

if TYPE_CHECKING:
    from retrieval_train.world import World

log = logging.getLogger(__name__)


class Preempted(Exception):
    """The run saved and stopped before its end: whoever started it starts it again."""


class Run(Section):
    """The run's name and the process it runs in."""

    name: FileName
    """First part of the run folder's name: letters, digits, '.', '_' and '-'."""
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", json_schema_extra=place())
    """auto: a GPU where torch sees one, else the CPU."""
    max_minutes: float | None = Field(default=None, gt=0, json_schema_extra=place())
    """Wall-clock budget of one start: then the run saves, stops as preempted and can be started again."""
    hang_minutes: float | None = Field(default=15, gt=0, json_schema_extra=place())
    """A training run ends as failed, with the stacks of all ranks, when it makes no step for so long; null: never."""
    join_minutes: float = Field(default=10, gt=0, json_schema_extra=place())
    """How long the ranks wait for the last of them to start; then the nodes that did not come are named."""
    preflight: bool = Field(default=True, json_schema_extra=place())
    """Look at every node before the job begins: GPUs, disks, clocks, versions, network; a bad one is named."""
    deterministic: bool = Field(default=False, json_schema_extra=place())
    """Train by algorithms that give the same numbers, to the last digit, on the same machine each time; slower on GPUs."""
    threads: int | None = Field(default=None, ge=1, json_schema_extra=place())
    """CPU threads of each rank; None shares the machine's cores between its ranks."""


class JobConfig(Section):
    """The keys that every job has."""

    job: str
    """Which job: the name of a file in jobs/."""
    run: Run
    """The run's name and the process it runs in."""
    seed: int = 0
    """Every random number of the run follows from it."""
    runs_root: Path = Field(default=Path("runs"), json_schema_extra=place())
    """Folder of the run folders."""
    shards_root: Path = Field(default=Path("shard_sets"), json_schema_extra=place())
    """Folder of the shard sets."""

    def problems(self) -> list[tuple[str, str]]:
        """What of the outside world does not fit (a missing set or file): (dotted path, what to do). Reads no pixels."""
        return []

    def problems_with(self, num_ranks: int) -> list[tuple[str, str]]:
        """What cannot be done by so many ranks: (dotted path, what to do). Sets that cannot be opened are told by
        `problems`."""
        return []

    def inputs(self) -> dict[str, str]:
        """Digests of what the config's paths and set names lead to; called when `problems` found none."""
        return {}


def names() -> list[str]:
    """The jobs there are."""
    shared = {"job", "failure", "preflight", "__main__"}
    found = (entry.name for entry in pkgutil.iter_modules(jobs.__path__) if not entry.ispkg)
    return sorted(name for name in found if name not in shared)


def find(name: Any, *, where: str) -> Any:
    """The module of job `name`. Raises ConfigError that names the jobs there are."""
    if name not in names():
        nearest = difflib.get_close_matches(str(name), names(), n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        given = "is required and missing" if name is None else f"'{name}' is unknown"
        raise ConfigError(where, [("job", f"{given}; {hint}there are: {', '.join(names())}")])
    return importlib.import_module(f"jobs.{name}")


def check(values: Mapping[str, Any], *, where: str, is_begun: bool = False) -> JobConfig:
    """A mapping as its job's config, with the outside world looked at. Raises ConfigError with every problem.

    A run that `is_begun` has a checkpoint of its own: what it began from may be gone.
    """
    config: JobConfig = configs.check(find(values.get("job"), where=where).Config, values, where=where)
    problems = [(key, text) for key, text in config.problems() if not (is_begun and key.startswith("origin."))]
    if problems:
        raise ConfigError(where, problems)
    return config


def load(run: RunDir) -> JobConfig:
    """The config that `submit` wrote into the run folder."""
    is_begun = run.latest_checkpoint() is not None
    return check(configs.read(run.config), where=str(run.config), is_begun=is_begun)


def run_folder(config: JobConfig) -> RunDir:
    """`<runs_root>/<name>-<identity>`: equal configs share it, so that a second submit goes on with the first run."""
    return RunDir(config.runs_root / f"{config.run.name}-{configs.identity(config, config.inputs())}")


def start(run_dir: Path) -> dict[str, float]:
    """Run the job that lies in `run_dir` as this process's rank; the numbers it ended with.

    Raises whatever the job raised; `Preempted` when it saved and wants to be started again.
    """
    from jobs.preflight import Preflight, node_names
    from retrieval_train.world import open_world

    run = RunDir(Path(run_dir).resolve())
    rank = int(os.environ.get("RANK", "0"))
    with _logging_to(run, rank), contextlib.ExitStack() as open_until_told:
        if rank == 0 and "SUBMITIT_EXECUTOR" not in os.environ:  # by hand; the launcher does so before any rank begins
            failures.clear(run)
        try:
            config = _load_on_this_node(run)
            _set_threads(config.run.threads)
            timeout_min = max(30.0, 2 * (config.run.hang_minutes or 0.0))  # the watchdog, which says more, comes first
            before = Preflight(config, run)
            limits = {"timeout_min": timeout_min, "join_min": config.run.join_minutes}
            opened = open_world(config.run.device, **limits, nodes=node_names(), look=before.look)
            world = open_until_told.enter_context(opened)
            before.exchange(world)
            with _state_of(run, world):
                numbers: dict[str, float] = find(config.job, where=str(run.config)).run(config, run, world)
            return numbers
        except Preempted:
            raise
        except BaseException as error:
            # before the world is closed: that may hang when another rank is gone
            log.error("rank %d: %s", rank, "".join(traceback.format_exception(error)))
            _say_why(run, rank, error)
            raise


def _load_on_this_node(run: RunDir) -> JobConfig:
    """Its config. What fails here and not on the other nodes is this node's fault: a file system that is not there.

    Raises ConfigError or OSError where it fails on all nodes, else BadNode.
    """
    try:
        enter_submit_folder(run)
        return load(run)
    except (ConfigError, OSError) as error:
        from jobs.preflight import node_names, tell_problem

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            tell_problem(error, nodes=node_names())
        raise


def enter_submit_folder(run: RunDir) -> None:
    """Relative paths of a config count from where it was submitted; its ranks are started in the run's `code/`."""
    if run.plan.is_file():
        os.chdir(read_json(run.plan)["cwd"])


class Progress:
    """What the waiting `submit` shows: written by rank 0 at most twice a second."""

    def __init__(self, run: RunDir, world: World, stage: str, *, total: int, unit: str) -> None:
        self._path = run.progress if world.rank == 0 else None
        self._about = {"stage": stage, "total": total, "unit": unit}
        self._last = 0.0
        self.show(0)

    def show(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if self._path is not None and (now - self._last > 0.5 or done in (0, self._about["total"])):
            self._last = now
            with contextlib.suppress(OSError):  # a full disk, say: what is only looked at is not worth the run
                write_json(self._path, {**self._about, "done": done, "note": note}, durable=False)


@contextlib.contextmanager
def _state_of(run: RunDir, world: World) -> Iterator[None]:
    """Keeps the run's `state` while the job runs."""
    if world.rank == 0:
        run.set_state("running")
    world.barrier()
    try:
        yield
        world.barrier()  # done means: on all ranks
    except Preempted:
        if world.rank == 0:
            run.set_state("preempted")
        raise
    if world.rank == 0:
        run.set_state("done")


def _say_why(run: RunDir, rank: int, error: BaseException) -> None:
    """The rank that fails first has the reason; the others fail after it, because their collectives break.

    A rank that was told to end (SystemExit) has none: whoever told it knows why.
    """
    if not isinstance(error, SystemExit):
        tell_failure(run, rank, Failure.of(error))


def tell_failure(run: RunDir, rank: int, failure: Failure) -> None:
    """The run's reason, unless a rank told a graver one, and its state."""
    if failures.tell(run, rank, failure) or not run.error.exists():
        write_text(run.error, f"{failure.words}\n(rank {rank}; {run.log(rank)})\n")
        run.set_state("failed")


def _set_threads(threads: int | None) -> None:
    """Ranks that share a machine share its cores: more threads than cores cost several times the run time."""
    import torch

    given = os.environ.get("OMP_NUM_THREADS")
    if given and "TORCHELASTIC_RUN_ID" not in os.environ:  # the launcher's share; torchrun always says 1
        share = int(given)
    else:
        share = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, share))


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": record.created, "level": record.levelname, "name": record.name, "message": record.getMessage()}
        return json.dumps(line, ensure_ascii=False)


@contextlib.contextmanager
def _logging_to(run: RunDir, rank: int) -> Iterator[None]:
    """All of this rank's log lines into `logs/<rank>.log` and `.jsonl`; other libraries from warnings up."""
    run.logs.mkdir(parents=True, exist_ok=True)
    text = logging.FileHandler(run.log(rank))
    text.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    lines = logging.FileHandler(run.log(rank).with_suffix(".jsonl"))
    lines.setFormatter(_JsonLines())
    root = logging.getLogger()
    ours = [logging.getLogger(name) for name in ("jobs", "retrieval_train", "shards")]
    before = [(logger, logger.level) for logger in (root, *ours)]
    root.setLevel(logging.WARNING)
    for logger in ours:
        logger.setLevel(logging.INFO)
    logging.captureWarnings(True)
    for handler in (text, lines):
        root.addHandler(handler)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for handler in (text, lines):
            root.removeHandler(handler)
            handler.close()
        for logger, level in before:
            logger.setLevel(level)
