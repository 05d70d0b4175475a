"""What the ranks of a run wrote: one rank's log as it is, or those of all merged by time; read once, or followed.

A log that is followed may grow, be begun anew by the next start (another file, or a shorter one), or only come to be.
"""

from __future__ import annotations

import datetime
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher import ticket as tickets
from launcher.looks import lookup, watch
from launcher.starts import attempts
from launcher.starts.attempts import Attempt
from launcher.ticket import ENDED, LocalTicket
from retrieval_train.rundir import RunDir

_ASK_SLURM_S, _ASK_ENDED_S = 10.0, 2.0
_STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Line:
    """An entry of a log: a line or, merged, one with line breaks in it."""

    time: float | None
    """Seconds since 1970; None where the log does not say (what a library prints)."""
    text: str


class Tail:
    """What a file has got since it was last looked at, in whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file, self._position = 0, 0

    def new(self, *, is_over: bool = False) -> list[str]:
        """`is_over`: nobody writes any more, so the last line may lack its end."""
        try:
            with self.path.open("rb") as file:
                about = self.path.stat()
                if about.st_ino != self._file or about.st_size < self._position:  # begun anew
                    self._file, self._position = about.st_ino, 0
                file.seek(self._position)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data if is_over else data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        return whole.decode(errors="replace").split("\n")[: -1 if whole.endswith(b"\n") else None] if whole else []


# --- sources


class OneRank:
    """The log of a rank; before it has one, what it wrote to stderr."""

    def __init__(self, choose: Callable[[], Path | None]) -> None:
        self._choose = choose
        self._tail: Tail | None = None

    def new(self, *, is_over: bool) -> list[Line]:
        path = self._choose()
        found: list[str] = []
        if path is not None and (self._tail is None or self._tail.path != path):
            if self._tail is not None:
                found = [*self._tail.new(is_over=True), f"==> {watch.shown(path)} <=="]
            self._tail = Tail(path)
        if self._tail is not None:
            found += self._tail.new(is_over=is_over)
        return [Line(_stamp(text), text) for text in found]

    @property
    def is_empty(self) -> bool:
        return self._tail is None


class AllRanks:
    """Every rank's lines by their time, each with `[rank@node]` before it."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._tails: dict[int, Tail] = {}
        self._per_node = int(lookup.plan_of(run).get("tasks_per_node") or 1)

    def new(self, *, is_over: bool) -> list[Line]:
        for path in self._run.logs.glob("*.jsonl"):
            if path.stem.isdigit():
                self._tails.setdefault(int(path.stem), Tail(path))
        starts, host = attempts.read(self._run), self._host()
        lines = []
        for rank, tail in sorted(self._tails.items()):
            for text in tail.new(is_over=is_over):
                at, level, message = _record(text)
                head = f"[{rank}@{self._node(rank, at, starts) or host}]" if host or starts else f"[{rank}]"
                clock = "" if at is None else f"{datetime.datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S} "
                body = "\n".join(f"{head} {line}" for line in f"{clock}{level}{message}".split("\n"))
                lines.append(Line(at, body))
        return sorted(lines, key=lambda line: line.time or 0.0)

    @property
    def is_empty(self) -> bool:
        return not self._tails

    def _host(self) -> str:
        ticket = tickets.read(self._run)
        return ticket.host if isinstance(ticket, LocalTicket) else ""

    def _node(self, rank: int, at: float | None, starts: Sequence[Attempt]) -> str:
        """Ranks fill one node after the other; which nodes those were, the start before the line says."""
        before = [start for start in starts if at is None or start.begun <= at + 60] or list(starts[:1])
        nodes = before[-1].nodes if before else ()
        place = rank // self._per_node
        return nodes[place] if place < len(nodes) else ""


def of_rank(run: RunDir, rank: int) -> OneRank:
    return OneRank(lambda: watch.log_of(run, rank))


def of_batch(run: RunDir) -> OneRank:
    """What stands above the ranks: the batch script and its supervisor on SLURM, the controller on this machine."""

    def newest() -> Path | None:
        # an array has one batch log for all its tasks, and it is not here; before there was a supervisor, rank 0's had it
        for name in ("*_batch.log", "supervisor.log", "controller.log", "*_0_log.err"):
            written = [path for path in run.scheduler.glob(name) if path.stat().st_size]
            if written:
                return max(written, key=lambda path: path.stat().st_mtime)
        return None

    return OneRank(newest)


# --- reading


def show(
    run: RunDir, source: OneRank | AllRanks, *, follow: bool, last: int | None = None, since: float | None = None
) -> bool:
    """Print the lines, and when following go on until the run is no longer active; whether there were any.

    `last`: so many of those that are there now. `since`: not those before (seconds since 1970).
    """
    is_first = True
    for lines in _looks(run, source, follow=follow):
        texts = [text for line in _not_before(lines, since) for text in line.text.split("\n")]
        if is_first and last is not None:
            texts = texts[-last:] if last else []
        is_first = False
        if texts:
            print("\n".join(texts), flush=True)
    return not source.is_empty


def _looks(run: RunDir, source: OneRank | AllRanks, *, follow: bool) -> Iterator[list[Line]]:
    asked_at, is_local, is_active = -math.inf, True, follow
    while True:
        pause_s = 0.5 if is_local else _ASK_ENDED_S if run.state in ENDED else _ASK_SLURM_S
        if follow and time.monotonic() >= asked_at + pause_s:  # before the last lines are read
            (is_local, is_active), asked_at = _asked(run), time.monotonic()
        yield source.new(is_over=not is_active)
        if not is_active:
            return
        time.sleep(0.5)


def _asked(run: RunDir) -> tuple[bool, bool]:
    """Whether the run is one of this machine; whether it is active. Who cannot tell waits on: the run may go on."""
    ticket = tickets.read(run)
    if ticket is None:
        return True, False
    try:
        return isinstance(ticket, LocalTicket), ticket.is_active()
    except ValueError:
        return isinstance(ticket, LocalTicket), True


def _not_before(lines: Sequence[Line], since: float | None) -> list[Line]:
    """A line without a time (of a traceback) belongs to the one before it."""
    if since is None:
        return list(lines)
    shown, is_after = [], True
    for line in lines:
        if line.time is not None:
            is_after = line.time >= since
        if is_after:
            shown.append(line)
    return shown


def moment(text: str) -> float:
    """`--since` as seconds since 1970: 10m, 2h, 1d ago, or a time as 2026-11-23T08:00 or 08:00. Raises ValueError."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)", text):
        return time.time() - float(match[1]) * _UNITS[match[2]]
    is_today = re.fullmatch(r"\d\d?:\d\d(:\d\d)?", text)
    try:
        return datetime.datetime.fromisoformat(
            f"{datetime.date.today():%Y-%m-%d} {text:0>5}" if is_today else text
        ).timestamp()
    except ValueError:
        known = "30s, 10m, 2h or 1d ago; a time today as 08:00; or 2026-11-23T08:00"
        raise ValueError(f"--since {text}: give {known}") from None


def _stamp(text: str) -> float | None:
    match = _STAMP.match(text)
    return datetime.datetime.fromisoformat(match[0]).timestamp() if match else None


def _record(text: str) -> tuple[float | None, str, str]:
    """Time, level and message of a line of `logs/<rank>.jsonl`."""
    try:
        values = json.loads(text)
        return float(values["time"]), f"{values['level']:<7} ", str(values["message"]).rstrip()
    except (ValueError, KeyError, TypeError):  # torn by a crash: shown as it is
        return None, "", text
