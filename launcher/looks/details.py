"""All that is known of one run, as text: its config, its starts and how they ended, where its numbers are, its log."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from jobs import failure as failures
from jobs import job
from launcher.looks import activity, clean, lookup, runs_table, tracked, watch
from launcher.starts import attempts
from launcher.starts.attempts import Attempt
from retrieval_train import config as configs
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir

_NUM_LOG_LINES = 12


def text(run: RunDir) -> str:
    """Every part that has something to say."""
    seen = activity.look([run])[run.path]
    plan = lookup.plan_of(run)
    row = runs_table.row(run, seen)
    parts = {
        "": _head(run, row, seen),
        "plan": _plan(plan),
        "config, where it is not the default": _config(run),
        "starts": [line for start in attempts.read(run) for line in _start(start, is_active=bool(seen.is_active))],
        "links": _links(run),
        "checkpoints": _checkpoints(run),
        "log": _log(run),
    }
    return "\n\n".join(_part(title, lines) for title, lines in parts.items() if lines)


def _part(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines)] if title else lines)


def _head(run: RunDir, row: runs_table.Row, seen: activity.Activity) -> list[str]:
    group = f", of {row.group}" if row.group else ""
    age = runs_table.span(time.time() - row.changed)
    lines = [f"{watch.shown(run.path)}: {row.state} for {age}{group}"]
    if seen.ticket is not None:
        there = "active" if seen.is_active else "ended" if seen.is_active is False else seen.words
        lines.append(f"{seen.ticket.in_words()}: {there}" + (f" on {row.nodes}" if row.nodes else ""))
    if row.stage is not None:
        left = "" if row.left_s is None else f", about {runs_table.span(row.left_s)} left"
        numbers = [("loss", row.loss, ".4g"), ("images/s", row.images_per_s, ".0f")]
        said = "".join(f", {name} {value:{form}}" for name, value, form in numbers if value is not None)
        lines.append(f"{row.stage} {row.done}/{row.total} {row.unit}{said}{left}")
    if run.state in ("failed", "preempted") and run.error.exists():
        lines += run.error.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    elif row.note:
        lines.append(row.note)
    return lines


def _plan(plan: dict[str, Any]) -> list[str]:
    if not plan:
        return []
    git = plan.get("git") or {}
    commit = f"commit {git['commit'][:12]}{' with changes' if git.get('dirty') else ''}" if git else "no git commit"
    shape = f"{plan.get('nodes')} node(s) x {plan.get('tasks_per_node')} ranks, {plan.get('gpus_per_node')} GPUs a node"
    given = {key: plan.get(key) for key in ("partition", "account", "qos", "time_min", "mem_gb")}
    options = [f"{key} {value}" for key, value in given.items() if value is not None]
    options += [f"{key}={value}" for key, value in (plan.get("sbatch") or {}).items()]
    where = ", ".join([f"{plan.get('cluster')} ({plan.get('scheduler')})", shape, *options])
    return [
        where,
        f"code     {commit}, {plan.get('date', 'no date')}, on {plan.get('host', '?')}",
        f"command  {plan.get('command', '?')}",
        f"in       {plan.get('cwd', '?')}",
    ]


# --- config


def _config(run: RunDir) -> list[str]:
    """By today's defaults, which are not those of a run of former code."""
    if not run.config.is_file():
        return []
    try:
        values = configs.read(run.config)
        config = configs.check(job.find(values.get("job"), where=str(run.config)).Config, values, where=str(run.config))
    except ConfigError as error:
        return [f"{watch.shown(run.config)}; today's code does not take it: {str(error).splitlines()[0]}"]
    said = list(differing(config))
    width = max((len(path) for path, _ in said), default=0)
    return [f"{path:<{width}}  {value}" for path, value in said]


def differing(config: BaseModel, default: Any = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of what has no default or another one; a part that was chosen by name says its name."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        is_same_kind = type(default) is type(config)
        usual = getattr(default, name) if is_same_kind else field.get_default(call_default_factory=True)
        if isinstance(value, BaseModel):
            yield from differing(value, usual, f"{prefix}{name}.")
        elif value != usual or (name == "name" and not is_same_kind and prefix):
            yield prefix + name, value


# --- what happened


def _start(start: Attempt, *, is_active: bool) -> Iterator[str]:
    begun = f"{datetime.datetime.fromtimestamp(start.begun):%Y-%m-%d %H:%M:%S}"
    lasted = "" if start.ended is None else f", {runs_table.span(start.ended - start.begun)}"
    steps = "" if start.step is None else f", step {start.step_before} to {start.step}"
    ending = start.kind or ("runs" if is_active else "nobody wrote down how it ended")
    after = ", queued again" if start.queued_again else ""
    job_id = f"SLURM job {start.job_id}, " if start.job_id else ""
    yield f"{start.number}  {begun}{lasted}{steps}: {ending}{after} ({job_id}{', '.join(start.nodes)})"
    if start.words:
        yield f"   {start.words.splitlines()[0]}"
    if start.at_fault:
        yield f"   at fault: {', '.join(start.at_fault)}"


def _links(run: RunDir) -> list[str]:
    results = [line.strip() for line in watch.results(run).splitlines() if line.strip()]
    return [*results, *tracked.lines(run)]


def _checkpoints(run: RunDir) -> list[str]:
    latest, best = run.latest_checkpoint(), run.best_checkpoint()
    lines = []
    for path in sorted(run.checkpoints.glob("step-*")):
        marks = [word for word, marked in (("latest", latest), ("best", best)) if path == marked]
        lines.append(f"{path.name}  {amount(clean.size(path)):>8}  {', '.join(marks)}".rstrip())
    return lines


def _log(run: RunDir) -> list[str]:
    told = failures.read(run) if run.state == "failed" else None
    path = watch.log_of(run, told.rank if told else 0)
    return [] if path is None else [f"{watch.shown(path)}:", *watch.last_lines(path, _NUM_LOG_LINES)]


def amount(num_bytes: float) -> str:
    """1.5 GB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} B"
