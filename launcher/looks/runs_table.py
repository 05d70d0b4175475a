"""All runs as a table: what each does, how fast, how long it will take, where, and how it ended before."""

from __future__ import annotations

import fnmatch
import itertools
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from launcher.looks import activity, lookup, watch
from launcher.looks.activity import Activity
from launcher.starts import attempts
from launcher.starts.attempts import Attempt
from launcher.ticket import LocalTicket, SlurmTicket
from retrieval_train.rundir import RunDir, State

_NUM_STEPS = 50  # the speed is the mean over so many
_WIDEST_NOTE = 200
_WIDTH_OF_A_PIPE = 1000


@dataclass(frozen=True)
class Row:
    """One run at this moment; None is what is not known (yet)."""

    run: str
    path: str
    group: str | None
    """Its sweep or pipeline."""
    state: str
    stage: str | None
    done: int | None
    total: int | None
    unit: str | None
    loss: float | None
    images_per_s: float | None
    left_s: float | None
    """Seconds until the end of the stage, at the speed of the last steps."""
    nodes: str
    job_id: str | None
    starts: int | None
    last_ending: str | None
    """How the newest start that has ended did so."""
    changed: float
    """When the state changed: seconds since 1970."""
    note: str
    """Why it failed, why it waits, or what the job says."""


def look(
    runs_root: Path, *, states: Sequence[str] = (), pattern: str | None = None, believe_ended: bool = True
) -> list[Row]:
    """The runs that match, newest last. Raises ValueError for a state that is none, and where there are no runs."""
    if odd := [state for state in states if state not in get_args(State)]:
        raise ValueError(f"--state {','.join(odd)}: no such state; there are: {', '.join(get_args(State))}")
    found = lookup.all_runs(runs_root)
    if not found:
        raise ValueError(f"no runs in {runs_root}; --runs-root names another folder")
    if pattern is not None:
        found = [run for run in found if _matches(run, pattern)]
    seen = activity.look(found, believe_ended=believe_ended)
    rows = [row(run, seen[run.path]) for run in found]
    return sorted((row for row in rows if not states or row.state in states), key=lambda row: (row.changed, row.run))


def _matches(run: RunDir, pattern: str) -> bool:
    group = lookup.group_of(lookup.plan_of(run))
    return fnmatch.fnmatch(run.path.name, pattern) or (group is not None and fnmatch.fnmatch(group, pattern))


def row(run: RunDir, seen: Activity) -> Row:
    """What the run's files say; nothing is asked of SLURM here."""
    progress = watch.read_progress(run) or {}
    starts = attempts.read(run)
    state = run.state or "?"
    steps = _last_steps(run.metrics)
    ended = [start for start in starts if start.kind is not None]
    ticket = seen.ticket
    return Row(
        run=run.path.name,
        path=str(run.path.resolve()),
        group=lookup.group_of(lookup.plan_of(run)),
        state=state,
        **{name: progress.get(name) for name in ("stage", "done", "total", "unit")},
        loss=_number(steps, "loss"),
        images_per_s=_number(steps, "images_per_s"),
        left_s=_left_s(run, progress, steps) if state == "running" else None,
        nodes=seen.nodes or _nodes(starts, ticket),
        job_id=ticket.job_id if isinstance(ticket, SlurmTicket) else None,
        starts=len(starts) or None,
        last_ending=ended[-1].kind if ended else None,
        changed=(run.path / "state").stat().st_mtime,
        note=_note(run, state, seen, progress, ended)[:_WIDEST_NOTE],
    )


def _note(run: RunDir, state: str, seen: Activity, progress: dict[str, Any], ended: list[Attempt]) -> str:
    if state in ("failed", "preempted") and run.error.exists():
        return run.error.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    if seen.is_active is None and seen.words:
        return seen.words
    if state == "queued":
        before = ended[-1].words.partition("\n")[0] if ended and ended[-1].queued_again else ""
        return "; ".join(filter(None, [seen.words, before]))
    note = str(progress.get("note", ""))
    return "" if note.startswith("loss ") else note  # those numbers have columns of their own


def _nodes(starts: list[Attempt], ticket: object) -> str:
    if isinstance(ticket, LocalTicket):
        return "" if ticket.host == os.uname().nodename else ticket.host
    nodes = starts[-1].nodes if starts else ()
    return ",".join(nodes) if len(nodes) <= 3 else f"{nodes[0]},…,{nodes[-1]} ({len(nodes)})"


# --- speed


def _last_steps(metrics: Path) -> list[dict[str, Any]]:
    """The last lines of metrics.jsonl that have been written to their end."""
    try:
        lines = watch.last_lines(metrics, _NUM_STEPS + 1)
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:  # cut: at the block's begin, or just being written
            continue
        if isinstance(values, dict):
            found.append(values)
    return found


def _number(steps: list[dict[str, Any]], name: str) -> float | None:
    value = steps[-1].get(name) if steps else None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _left_s(run: RunDir, progress: dict[str, Any], steps: list[dict[str, Any]]) -> float | None:
    """By the median time of a step, which a pause (a save, a requeue) does not change; else by the stage's share."""
    done, total = progress.get("done"), progress.get("total")
    if not done or not total or done >= total:
        return None
    times = [step["time"] for step in steps if isinstance(step.get("time"), (int, float))]
    if progress.get("stage") == "train" and len(times) > 1:
        gaps = sorted(later - earlier for earlier, later in itertools.pairwise(times))
        return float(gaps[len(gaps) // 2] * (total - done))
    began, shown = (path.stat().st_mtime for path in (run.path / "state", run.progress))
    return float((shown - began) / done * (total - done))


# --- on the screen


def as_json(rows: Sequence[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False)


def show(rows: Sequence[Row]) -> None:
    """Runs of a sweep or pipeline stand together, under its name; columns that no run needs are left out."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    lines = [line for unit in _units(rows) for line in _lines(unit)]
    table = Table(box=None, pad_edge=False)
    is_used = {name: any(line[name] for line in lines) or name in ("run", "state") for name in _COLUMNS}
    for name in (name for name in _COLUMNS if is_used[name]):
        # a name that was cut could not be typed again: the note gives way first
        width = 0 if name == "note" else max(len(name), *(len(line[name]) for line in lines))
        table.add_column(name, no_wrap=True, min_width=width, overflow="ellipsis")
    for line in lines:
        table.add_row(*(escape(line[name]) for name in _COLUMNS if is_used[name]))
    is_seen = Console().is_terminal
    console = Console(width=None if is_seen else _WIDTH_OF_A_PIPE)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)


def watch_all(draw: Callable[[], Sequence[Row]], *, every_s: float) -> None:
    """Show what `draw` gives again and again, until Ctrl-C."""
    from rich.console import Console

    console = Console()
    try:
        while True:
            rows = draw()
            if console.is_terminal:
                console.clear()
            show(rows)
            print(f"{time.strftime('%H:%M:%S')}, every {every_s:g} s until Ctrl-C", flush=True)
            time.sleep(every_s)
    except KeyboardInterrupt:
        return


_COLUMNS = ("run", "state", "step", "loss", "images/s", "left", "nodes", "job", "starts", "age", "note")


def _units(rows: Sequence[Row]) -> list[list[Row]]:
    """A single run or all of a group, in the order of their newest."""
    units: dict[str, list[Row]] = {}
    for one in rows:
        units.setdefault(f"group {one.group}" if one.group else f"run {one.run}", []).append(one)
    return sorted(units.values(), key=lambda unit: (unit[-1].changed, unit[-1].run))


def _lines(unit: list[Row]) -> list[dict[str, str]]:
    if unit[0].group is None:
        return [_cells(one) for one in unit]
    counts = ", ".join(f"{count} {state}" for state, count in sorted(Counter(one.state for one in unit).items()))
    head = dict.fromkeys(_COLUMNS, "") | {"run": f"{unit[0].group}:", "note": counts}
    return [head, *(_cells(one, indent="  ") for one in unit)]


def _cells(one: Row, indent: str = "") -> dict[str, str]:
    starts = "" if one.starts is None else f"{one.starts}"
    if one.last_ending not in (None, "done"):
        starts += f" ({one.last_ending})"
    return {
        "run": indent + one.run,
        "state": one.state,
        "step": "" if one.stage is None else f"{one.stage} {one.done}/{one.total}",
        "loss": "" if one.loss is None else f"{one.loss:.4g}",
        "images/s": "" if one.images_per_s is None else f"{one.images_per_s:.0f}",
        "left": "" if one.left_s is None else span(one.left_s),
        "nodes": one.nodes,
        "job": one.job_id or "",
        "starts": starts,
        "age": span(time.time() - one.changed),
        "note": " ".join(one.note.split()),
    }


def span(seconds: float) -> str:
    """A time in words: 3 min."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
