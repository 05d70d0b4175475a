"""Follow a run until it ends: a progress bar, or a line now and then where nobody sees a bar; then how it ended."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from launcher.ticket import ENDED, LocalTicket, Ticket, settle
from retrieval_train.rundir import RunDir, State, read_json

_LINE_S = 15.0
_NUM_LOG_LINES = 15


def follow(run: RunDir, ticket: Ticket) -> State:
    """Show the run's progress until its processes are gone; the state it ended with."""
    is_local = isinstance(ticket, LocalTicket)
    pause_s, longest_s = (0.2, 0.2) if is_local else (2.0, 15.0)
    ask_at = 0.0
    with _display() as display:
        while True:
            if time.monotonic() >= ask_at or run.state in ENDED:
                silence = ""
                try:
                    if not ticket.is_active():
                        break
                except ValueError as error:  # a controller that is restarted, say: the run does not mind
                    silence = str(error)
                ask_at = time.monotonic() + pause_s
                pause_s = min(pause_s * 1.2, longest_s)
            display.show(read_progress(run) or {"stage": silence or _waiting(run, ticket)})
            time.sleep(0.2 if is_local else 2.0)
        display.show(read_progress(run) or {})
    return settle(run, ticket, patience_s=1.0 if is_local else 5.0)


def read_progress(run: RunDir) -> dict[str, Any] | None:
    """{stage, done, total, unit, note} as the job last wrote it, or None before its first word."""
    try:
        progress: dict[str, Any] = read_json(run.progress)
    except (FileNotFoundError, json.JSONDecodeError):  # not there yet; or seen half on a shared file system
        return None
    return progress


def _waiting(run: RunDir, ticket: Ticket) -> str:
    return (
        "starting" if isinstance(ticket, LocalTicket) or run.state == "running" else f"{ticket.in_words()}: {run.state}"
    )


# --- while it runs


class _Display(Protocol):
    def show(self, progress: dict[str, Any]) -> None: ...


@contextlib.contextmanager
def _display() -> Iterator[_Display]:
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield _Bars(bars)


class _Bars:
    """One bar a stage; those that are over stay on the screen."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._stage: str | None = None
        self._task: Any = None

    def show(self, progress: dict[str, Any]) -> None:
        if not progress:
            return
        total = progress.get("total")
        if progress["stage"] != self._stage:
            if self._task is not None and self._bars.tasks[self._task].total is None:
                self._bars.remove_task(self._task)  # the wait before the first stage
            self._stage = progress["stage"]
            self._task = self._bars.add_task(_plain(self._stage), total=total, count="", note="")
        note = _plain(progress.get("note", ""))
        self._bars.update(self._task, completed=progress.get("done", 0), total=total, count=_count(progress), note=note)


class _Lines:
    """For log files and pipes: a line at each new stage, each tenth of it, and each quarter of a minute with news."""

    def __init__(self) -> None:
        self._shown: tuple[str, int] = ("", 0)
        self._at = 0.0
        self._line = ""

    def show(self, progress: dict[str, Any]) -> None:
        if not progress:
            return
        stage, total = progress["stage"], progress.get("total") or 0
        tenth = progress.get("done", 0) * 10 // total if total else 0
        line = " ".join(filter(None, [stage, _count(progress), progress.get("note", "")]))
        is_due = (stage, tenth) != self._shown or time.monotonic() - self._at > _LINE_S
        if line != self._line and is_due:
            print(line, file=sys.stderr, flush=True)
            self._shown, self._at, self._line = (stage, tenth), time.monotonic(), line


def _count(progress: dict[str, Any]) -> str:
    return f"{progress['done']}/{progress['total']} {progress['unit']}" if "total" in progress else ""


def _plain(text: str) -> str:
    """rich reads [..] as markup."""
    return text.replace("[", r"\[")


# --- when it has ended


def results(run: RunDir) -> str:
    """Where what the run made lies: one line for each thing that is there."""
    there = {"report": run.page, "text": run.text, "numbers": run.report, "export": run.export, "metrics": run.metrics}
    return "".join(f"\n  {name:<8} {shown(path)}" for name, path in there.items() if path.exists())


def failure(run: RunDir) -> str:
    """Why the run failed: its own words, its log and, unless the words are a user's to act on, the log's last lines."""
    error = run.error.read_text(encoding="utf-8").strip() if run.error.exists() else "it left no word"
    rank = int(match[1]) if (match := re.search(r"\(rank (\d+); ", error)) else 0
    told, _, where = error.partition("\n(rank ")
    log = log_of(run, rank, died=told.startswith(("rank ", "the run ended")))
    said = f"log: {shown(log)}" if log else f"no log in {shown(run.logs)}"
    lines = [f"{shown(run.path)} failed:", _indented(told), said]
    if log and not _is_for_the_user(told):
        lines += [f"  | {line}" for line in last_lines(log, _NUM_LOG_LINES)]
    if where and rank:
        lines.append(f"(rank {rank} was the first to fail)")
    return "\n".join(lines)


def _is_for_the_user(error: str) -> bool:
    """jobs/job.py tells a ValueError in its own words, all else as `Type: words`; a death is told by us."""
    return not re.match(r"[A-Z]\w*: |rank \d+ |the run ended without", error)


def log_of(run: RunDir, rank: int, *, died: bool = False) -> Path | None:
    """The rank's log or, where it did not get that far (or `died` in the middle of it), what it wrote to stderr."""
    started = run.ticket.stat().st_mtime if run.ticket.exists() else 0.0
    ours = [run.log(rank)]
    theirs = [path for kind in ("err", "out") for path in run.scheduler.glob(f"*_{rank}_log.{kind}")]
    found = (theirs[:1] + ours + theirs[1:]) if died else ours + theirs
    written = [path for path in [*found, run.scheduler / "controller.log"] if path.is_file() and path.stat().st_size]
    # logs of earlier starts lie beside those of this one; clocks of machines differ a little
    return next((path for path in written if path.stat().st_mtime > started - 60), None)


def last_lines(path: Path, count: int) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64_000))
        return file.read().decode(errors="replace").splitlines()[-count:]


def shown(path: Path) -> str:
    """The path as its user would write it: from where they stand, if it is below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
