"""A run's W&B run as the launcher sees it: its id from the submit on, its page, and how to upload what was written offline.

Nothing here imports wandb or asks its server: a login node has neither to have.
"""

from __future__ import annotations

import re

from jobs.job import JobConfig
from launcher.looks import watch
from retrieval_train import config as configs
from retrieval_train import tracking
from retrieval_train.rundir import RunDir
from retrieval_train.tracking import Wandb


def assign(run: RunDir, config: JobConfig) -> None:
    """Give the run its W&B id, once: all its starts write to the same W&B run."""
    tracked = getattr(config, "tracking", None)
    if isinstance(tracked, tracking.Config) and tracked.wandb.mode_here() != "disabled":
        tracking.run_id(run)


def lines(run: RunDir) -> list[str]:
    """Where the run's numbers are, or will be; none for a run without W&B."""
    if not run.tracker_id.is_file():
        return []
    run_id = tracking.run_id(run)
    wandb = _config_of(run) or Wandb()
    page = _page_in_log(run)
    if page is None and wandb.mode_here() == "online":
        page = tracking.address(wandb, run_id)
    offline = ", offline" if wandb.mode_here() == "offline" else ""
    return [f"W&B: {page or f'run {run_id} of project {wandb.project}{offline}'}", *uploads(run)]


def uploads(run: RunDir) -> list[str]:
    """The command that uploads what the run's starts wrote offline, while there is something left."""
    folders = sorted(path for path in (run.path / "wandb").glob("offline-run-*") if path.is_dir())
    left = [folder for folder in folders if not list(folder.glob("*.wandb.synced"))]  # wandb's mark
    return [f"upload: {tracking.sync_command(*(watch.shown(folder) for folder in left))}"] if left else []


def _config_of(run: RunDir) -> Wandb | None:
    """None where it cannot be read, as of a run of former code."""
    try:
        return tracking.Config.model_validate(configs.read(run.config)["tracking"]).wandb
    except (OSError, ValueError, KeyError):
        return None


def _page_in_log(run: RunDir) -> str | None:
    """W&B's own word, of a run that was online: it knows the entity of the key."""
    log = run.log(0)
    if not log.is_file():
        return None
    found = re.findall(r"W&B run \S+ \((https?://\S+)\)", log.read_text(encoding="utf-8", errors="replace"))
    return found[-1] if found else None
