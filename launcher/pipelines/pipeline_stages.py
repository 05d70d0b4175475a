"""The stages of a pipeline as they stand: what can be told of each one's config, which run it is, what it waits for.

Computed whenever it is looked at. A run's name follows from what it reads, so which run a stage is can be told only when
those that it needs are done; until then it has a folder of its own (deferred.py), named by its config and theirs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import job
from jobs.job import JobConfig
from launcher.looks import activity, watch
from launcher.pipelines import deferred
from launcher.pipelines.pipeline import Pipeline, Problems, Step, fill, names_in
from retrieval_train import config as configs
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir

NOT_BEGUN = "not begun"


@dataclass(frozen=True)
class Stage:
    """One stage at one moment."""

    step: Step
    values: Mapping[str, Any]
    """Its config; {stage} stands for that stage's run folder."""
    needs: Mapping[str, Stage]
    folder: Path
    """Where it waits while its config cannot be completed."""
    config: JobConfig | None
    """None: what it needs is not done yet."""
    run: RunDir | None

    @property
    def is_done(self) -> bool:
        return self.run is not None and self.run.state == "done"

    @property
    def is_blind(self) -> bool:
        """Whether stages that are not done yet may still make what its config asks for, a shard set, say."""
        left = [need for need in self.needs.values() if not need.is_done]
        return any(need.step.name in self.step.unnamed or need.is_blind for need in left)


def look(pipeline: Pipeline, *, again: bool = False) -> list[Stage]:
    """Every stage, in order. Raises one ConfigError with every problem that can be told already.

    `again`: as if nothing were done.
    """
    found: dict[str, Stage] = {}
    problems: Problems = []
    for step in pipeline.steps:
        try:
            values = read(pipeline, step)
            needs = {name: found[name] for name in step.needs if name in found}
            is_ready = len(needs) == len(step.needs) and all(need.is_done for need in needs.values())
            is_ready = is_ready and not (again and needs)
            folders = {name: need.run.path for name, need in needs.items() if need.run is not None}
            config = complete(step, values, folders) if is_ready else None
            run = RunDir(Path.cwd() / job.run_folder(config).path) if config is not None else None
            found[step.name] = stage = Stage(step, values, needs, _folder(pipeline, step, values, needs), config, run)
            if config is None:
                problems += [(f"{step.name}.{key}", text) for key, text in _early_problems(stage)]
        except ConfigError as error:
            problems += [(f"{step.name}.{key}", text) for key, text in error.problems]
    if problems:
        raise ConfigError(pipeline.where, problems)
    return list(found.values())


def read(pipeline: Pipeline, step: Step) -> dict[str, Any]:
    """The stage's config as far as it can be read now; its tracker's group is the pipeline unless it says another."""
    values = configs.read(step.file, overrides=step.overrides)
    known = job.find(values.get("job"), where=str(step.file)).Config.model_fields
    tracking = values.get("tracking") or {}
    if "tracking" not in known or not isinstance(tracking, Mapping):
        return values
    wandb = tracking.get("wandb") or {}
    if not isinstance(wandb, Mapping):
        return values
    ours = {"group": wandb.get("group") or pipeline.name, "tags": wandb.get("tags") or ["pipeline"]}
    return values | {"tracking": {**tracking, "wandb": {**wandb, **ours}}}


def complete(step: Step, values: Mapping[str, Any], folders: Mapping[str, Path]) -> JobConfig:
    """The config, checked, with the run folders of what it needs. Raises ConfigError."""
    return job.check(fill(values, folders), where=str(step.file))


def _early_problems(stage: Stage) -> Problems:
    """Less what the stages before it may mend: what lies in their folders, and the sets that they make."""
    kind = job.find(stage.values.get("job"), where=str(stage.step.file)).Config
    waits = set(_keys_that_wait(stage.values))
    try:
        config: JobConfig = configs.check(kind, stage.values, where=str(stage.step.file))
        found = [] if stage.is_blind else config.problems()
    except ConfigError as error:
        found = error.problems
    return [(key, text) for key, text in found if not any(key == one or key.startswith(f"{one}.") for one in waits)]


def config_so_far(stage: Stage) -> JobConfig | None:
    """With {stage} in the place of the run folders that are not there yet; None where it is no config like that."""
    if stage.config is not None:
        return stage.config
    kind = job.find(stage.values.get("job"), where=str(stage.step.file)).Config
    try:
        config: JobConfig = configs.check(kind, stage.values, where=str(stage.step.file))
    except ConfigError:
        return None
    return config


def _keys_that_wait(value: Any, under: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _keys_that_wait(inner, f"{under}.{key}" if under else str(key))
    elif names_in(value):
        yield under


def _folder(pipeline: Pipeline, step: Step, values: Mapping[str, Any], needs: Mapping[str, Stage]) -> Path:
    about = {
        "file": str(step.file.absolute()),
        "values": values,
        "needs": [str(need.folder) for need in needs.values()],
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return runs_root(values) / ".stages" / pipeline.name / f"{step.name}-{digest}"


def runs_root(values: Mapping[str, Any]) -> Path:
    """Where the run folders of such a config lie."""
    return Path.cwd() / str(values.get("runs_root", "runs"))


# --- in words


def states(stages: Sequence[Stage]) -> dict[str, str]:
    """By the stage's name: the state of its run, or why there is none. Runs that died without a word are settled."""
    runs = {stage.step.name: run_of(stage) for stage in stages}
    activity.look([run for run in runs.values() if run is not None])
    found: dict[str, str] = {}
    for stage in stages:
        run = runs[stage.step.name]
        found[stage.step.name] = (
            run.state if run is not None and run.state is not None else _without_a_run(stage, found)
        )
    return found


def run_of(stage: Stage) -> RunDir | None:
    """Its run folder, as far as there is one."""
    run = stage.run
    if run is None or run.state is None:
        run = deferred.run_of(stage.folder)
    return None if run is None or run.state is None else run


def _without_a_run(stage: Stage, found: Mapping[str, str]) -> str:
    for need in stage.needs:
        if found[need].startswith(NOT_BEGUN + ":"):
            return found[need]
        if found[need] in ("failed", "preempted"):
            return f"{NOT_BEGUN}: {need} {'failed' if found[need] == 'failed' else 'was preempted'}"
    ticket = deferred.ticket_of(stage.folder)
    if ticket is not None and ticket.is_active():
        left = [name for name, need in stage.needs.items() if not need.is_done]
        return f"waits for {' and '.join(left)}" if left else "queued"
    return "failed" if (stage.folder / "error.txt").exists() else NOT_BEGUN


def error(stage: Stage) -> str:
    """Why it failed, in one line; empty where it did not."""
    run = run_of(stage)
    file = stage.folder / "error.txt" if run is None else run.error
    if not file.exists() or (run is not None and run.state != "failed"):
        return ""
    return " ".join(file.read_text(encoding="utf-8").partition("\n(rank ")[0].split())


def table(stages: Sequence[Stage]) -> str:
    """A line for each stage: how it stands, and where."""
    words = states(stages)
    rows = [("stage", "state", "needs", "run", "")]
    for stage in stages:
        run = run_of(stage) or stage.run
        ticket = deferred.ticket_of(stage.folder) if words[stage.step.name].startswith("waits") else None
        where = watch.shown(run.path) if run else ticket.in_words() if ticket else "-"
        needs = ", ".join(stage.needs) or "-"
        rows.append((stage.step.name, words[stage.step.name], needs, where, error(stage)))
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    lines = (
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
