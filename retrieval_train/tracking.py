"""Numbers of a run: JSON lines always, W&B when asked, silence on ranks other than the first."""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from pydantic import Field

from retrieval_train.config import Section, place
from retrieval_train.lines import Lines
from retrieval_train.rundir import RunDir, write_text

log = logging.getLogger(__name__)


class Wandb(Section):
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: what WANDB_MODE says; else online where there is a key (WANDB_API_KEY or `wandb login`), else offline."""
    project: str = "retrieval-train"
    """The W&B project."""
    entity: str | None = None
    """The W&B user or team; None is the key's own."""
    group: str | None = None
    """Runs that belong together, as those of a sweep."""
    tags: tuple[str, ...] = ()
    """Free words to filter runs by."""


class Config(Section):
    """Where the numbers go. `metrics.jsonl` in the run folder is always written."""

    wandb: Wandb = Field(default=Wandb(), json_schema_extra=place())
    """Settings of Weights & Biases."""


class Tracker(Protocol):
    """`id` survives a requeue: it lies in the run folder, and the same W&B run goes on."""

    id: str | None

    def write(self, step: int, numbers: Mapping[str, float | str]) -> None: ...
    def close(self, *, failed: bool = False) -> None: ...


class Silent:
    """The tracker of every rank but the first."""

    id: str | None = None

    def write(self, step: int, numbers: Mapping[str, float | str]) -> None:
        return None

    def close(self, *, failed: bool = False) -> None:
        return None


class JsonLines:
    """`metrics.jsonl`: one object a step, flushed at once, so that a killed run keeps what it reported."""

    id: str | None = None

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)

    def write(self, step: int, numbers: Mapping[str, float | str]) -> None:
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no NaN
            for name, value in numbers.items()
        }
        self._lines.write(json.dumps({"step": step, **finite}) + "\n")

    def close(self, *, failed: bool = False) -> None:
        self._lines.close()


class WandbRun:
    """One W&B run, resumed by id."""

    def __init__(self, config: Wandb, run: RunDir, values: Mapping[str, Any]) -> None:
        import wandb

        if not run.tracker_id.is_file():
            write_text(run.tracker_id, secrets.token_hex(4) + "\n")
        mode = config.mode if config.mode != "auto" else _automatic_mode()
        self._wandb_run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=list(config.tags),
            name=run.path.name,
            id=run.tracker_id.read_text().strip(),
            resume="allow",
            dir=run.path,
            mode=mode,
            config=dict(values),
            settings=wandb.Settings(console="off", silent=True, disable_git=True),
        )
        self.id = self._wandb_run.id
        self._lost = False
        where = self._wandb_run.url or f"offline; to upload: wandb sync {Path(self._wandb_run.dir).parent}"
        log.info("W&B run %s (%s)", self.id, where)

    def write(self, step: int, numbers: Mapping[str, float | str]) -> None:
        if self._lost:
            return
        try:
            self._wandb_run.log(dict(numbers), step=step)
        except Exception as error:  # the training is worth more than its dashboard
            self._lost = True
            log.warning("W&B is lost from step %d on: %s; metrics.jsonl has all numbers", step, error)

    def close(self, *, failed: bool = False) -> None:
        try:
            self._wandb_run.finish(exit_code=int(failed))
        except Exception as error:
            log.warning("W&B did not finish: %s; metrics.jsonl has all numbers", error)


class All:
    """Several trackers as one."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers
        self.id = next((tracker.id for tracker in trackers if tracker.id), None)

    def write(self, step: int, numbers: Mapping[str, float | str]) -> None:
        for tracker in self._trackers:
            tracker.write(step, numbers)

    def close(self, *, failed: bool = False) -> None:
        for tracker in self._trackers:
            tracker.close(failed=failed)


def open_tracker(config: Config, run: RunDir, *, is_first: bool, values: Mapping[str, Any]) -> Tracker:
    """The tracker of this rank. A W&B that cannot be reached costs a warning, never the run."""
    if not is_first:
        return Silent()
    lines = JsonLines(run.metrics)
    if config.wandb.mode == "disabled":
        return lines
    try:
        return All(lines, WandbRun(config.wandb, run, values))
    except Exception as error:  # the training is worth more than its dashboard
        log.warning("W&B is off for this run: %s; metrics.jsonl has all numbers", error)
        return lines


def cut_metrics(path: Path, *, last_step: int) -> None:
    """Drop the lines after `last_step`: the steps beyond the checkpoint are done again, and would be there twice."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _step_of(line) <= last_step]
    write_text(path, "".join(line + "\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the half line of a killed process
        return float("inf")


def _automatic_mode() -> Any:
    """What WANDB_MODE says; else online where there is a key for the server, else offline."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or "api.wandb.ai"
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return "online" if netrc.is_file() and server in netrc.read_text(errors="ignore") else "offline"
