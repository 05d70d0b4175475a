"""Numbers of a run: JSON lines always, W&B when asked, silence on ranks other than the first."""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import shlex
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import quote, urlsplit

from pydantic import Field

from retrieval_train.config import Section, place
from retrieval_train.lines import Lines
from retrieval_train.rundir import RunDir, write_text

log = logging.getLogger(__name__)

_FINISH_S = 60.0  # a hung upload must not hold the GPUs of the whole run
_CLOUD = ("api.wandb.ai", "api.forge.coreweave.com")  # one server: `wandb login` writes the second since 0.31

Mode = Literal["online", "offline", "disabled", "shared"]


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

    def mode_here(self) -> Mode:
        """`mode`, with auto decided by this machine and its environment. Does not import wandb."""
        return self.mode if self.mode != "auto" else _automatic_mode()


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


def run_id(run: RunDir) -> str:
    """The id of the run's W&B run; made at the first call, which is the submit's."""
    if not run.tracker_id.is_file():
        write_text(run.tracker_id, secrets.token_hex(4) + "\n", durable=False)  # a sweep makes hundreds
    return run.tracker_id.read_text().strip()


class WandbRun:
    """One W&B run, resumed by id."""

    def __init__(self, config: Wandb, run: RunDir, values: Mapping[str, Any]) -> None:
        import wandb

        # wandb's own limit keeps the files whole for a later sync; its first versions have none
        limit = {"finish_timeout": _FINISH_S} if "finish_timeout" in wandb.Settings.model_fields else {}
        self._wandb_run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=list(config.tags),
            name=run.path.name,
            id=run_id(run),
            resume="allow",
            dir=run.path,
            mode=config.mode_here(),
            config=dict(values),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, **limit),
        )
        self.id = self._wandb_run.id
        self._lost = False
        self._sync = sync_command(Path(self._wandb_run.dir).parent)
        where = self._wandb_run.url or f"offline; to upload: {self._sync}"
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
        """In at most `_FINISH_S` and a little."""
        is_given_up = False

        def finish() -> None:
            try:
                self._wandb_run.finish(exit_code=int(failed))
            except Exception as error:
                if not is_given_up:
                    log.warning("W&B did not finish: %s; to upload: %s", error, self._sync)

        thread = threading.Thread(target=finish, name="wandb finish", daemon=True)
        thread.start()
        thread.join(1.2 * _FINISH_S)
        if thread.is_alive():
            is_given_up = True
            log.warning("W&B did not finish within %.0f s and is ended; to upload: %s", _FINISH_S, self._sync)
            _end_service()  # else Python waits for it when it exits, without a limit
            thread.join(_FINISH_S)


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


def sync_command(*folders: Path | str) -> str:
    """What to type in a shell for the upload of W&B's folders, one a start; those of one id become one W&B run."""
    return shlex.join(["wandb", "sync", *map(str, folders)])


def address(config: Wandb, run_id: str) -> str | None:
    """The W&B run's page, where that can be known before W&B was asked: its entity is."""
    entity = config.entity or os.environ.get("WANDB_ENTITY")
    server = os.environ.get("WANDB_APP_URL") or _page_server(_server())
    return f"{server.rstrip('/')}/{quote(entity)}/{quote(config.project)}/runs/{run_id}" if entity else None


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def _page_server(server: str) -> str:
    """As wandb does it: the cloud's pages are on wandb.ai, a dedicated one's on app.*, one's own on the same host."""
    if urlsplit(server).hostname in _CLOUD:  # newer wandb names the same page at forge.coreweave.com/wandb
        return "https://wandb.ai"
    return server.replace("://api.", "://app.")


def _end_service() -> None:
    """Kill W&B's process, a child of this one."""
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            if Path("/proc", pid, "comm").read_text().strip() == "wandb-core":
                os.kill(int(pid), signal.SIGKILL)


def _automatic_mode() -> Any:
    """What WANDB_MODE says; else online where there is a key for the server, else offline."""
    if told := os.environ.get("WANDB_MODE"):
        return "offline" if told == "dryrun" else told
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    server = urlsplit(_server()).hostname or ""
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    known = netrc.read_text(errors="ignore") if netrc.is_file() else ""
    return "online" if any(name in known for name in (_CLOUD if server in _CLOUD else (server,))) else "offline"
