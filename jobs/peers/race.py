"""Contestants in processes of their own take turns, A B C A B C …: what slows the machine for a while slows all of them.

Between its turns a contestant is stopped (SIGSTOP) with all its workers, so that it neither disturbs the others nor gets
ahead. The first round is not counted: it fills the page cache and starts what starts late.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from jobs.peers.task import Task

CODE = Path(__file__).resolve().parents[2]
PATIENCE_S = 300.0


class PeerError(Exception):
    """A contestant could not do what it was asked."""


@dataclass(frozen=True)
class Entry:
    """Who takes part."""

    module: str
    """File in jobs/peers."""
    title: str
    package: str = ""
    """What `pip install` calls it; empty: it is always there."""
    python: Path | None = None
    """The Python that has it; None: this one."""
    is_needed: bool = False
    """Without it there is nothing to compare: its failure ends the race."""


@dataclass(frozen=True)
class Rates:
    """What one contestant's turns gave, round by round."""

    first_batch_s: float
    per_s: tuple[float, ...]
    """Images a second of wall-clock time."""
    per_cpu_s: tuple[float, ...]
    """Images a second of CPU time, of all its processes."""

    @property
    def images_per_s(self) -> float:
        return median(self.per_s)

    @property
    def images_per_cpu_s(self) -> float:
        return median(self.per_cpu_s)

    def times(self, other: Rates) -> float:
        """How many times as fast as the other: the median over the rounds, each compared within itself."""
        return median(mine / theirs for mine, theirs in zip(self.per_s, other.per_s, strict=True))

    def times_by_cpu(self, other: Rates) -> float:
        """The same by CPU time: what remains true where other programs take some of the cores."""
        return median(mine / theirs for mine, theirs in zip(self.per_cpu_s, other.per_cpu_s, strict=True))


class Contestant:
    """A process that answers questions (process.py) and stands still in between."""

    def __init__(
        self,
        entry: Entry,
        log: Path,
        *,
        process: str = "jobs.peers.process",
        threads: int = 1,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`process` is the module that answers; `env` are more environment variables of it."""
        self.entry, self.log = entry, log
        log.parent.mkdir(parents=True, exist_ok=True)
        python = str(entry.python or sys.executable)
        # Its own process group, in our session: if we die, the kernel wakes it and hangs up on it, stopped or not.
        self._process = subprocess.Popen(
            [python, "-m", process, f"jobs.peers.{entry.module}"],
            cwd=CODE,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": "", **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("ab"),
            process_group=0,
        )
        self.group = self._process.pid
        """Its processes'."""

    def ask(self, **question: Any) -> dict[str, Any]:
        """Raises PeerError with what it said, or where to read why it said nothing."""
        self.tell(**question)
        return self.hear()

    def tell(self, **question: Any) -> None:
        """Wake it with a question, without waiting for the answer."""
        assert self._process.stdin
        try:
            os.killpg(self.group, signal.SIGCONT)
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ProcessLookupError) as error:
            raise PeerError(f"{self.entry.title} has ended; see {self.log}") from error

    def hear(self) -> dict[str, Any]:
        """The answer; then it stands still."""
        output = self._process.stdout
        assert output
        if not select.select([output], [], [], PATIENCE_S)[0]:
            raise PeerError(f"{self.entry.title} has not answered for {PATIENCE_S:g} s; see {self.log}")
        line = output.readline()
        if not line:
            raise PeerError(f"{self.entry.title} ended without a word; see {self.log}")
        os.killpg(self.group, signal.SIGSTOP)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise PeerError(f"{reply['error']}; see {self.log}")
        return reply

    def end(self) -> None:
        """Let it end by itself, which removes what it shares; then by force."""
        assert self._process.stdin and self._process.stdout
        try:
            os.killpg(self.group, signal.SIGCONT)
            self._process.stdin.close()
            self._process.wait(10)
        except (ProcessLookupError, BrokenPipeError, subprocess.TimeoutExpired):
            pass
        finally:
            if self._process.poll() is None:
                os.killpg(self.group, signal.SIGKILL)
            self._process.wait()
            self._process.stdout.close()


@contextmanager
def started(entries: Sequence[Entry], logs: Path) -> Iterator[tuple[list[Contestant], dict[str, str]]]:
    """Those who are there, ready to open a stream; and why the others are not, by title."""
    absent: dict[str, str] = {}
    ready = []
    with ExitStack() as stack:
        invited = [Contestant(entry, logs / f"{entry.module}.log") for entry in entries]
        for contestant in invited:
            stack.callback(contestant.end)
        for contestant in invited:  # all import at the same time
            contestant.tell(do="hello")
        for contestant in invited:
            entry = contestant.entry
            try:
                missing = contestant.hear().get("missing")
            except PeerError as error:
                _leave_out(entry, error, absent)
                continue
            if missing:
                absent[entry.title] = f"not installed: pip install {entry.package or missing}"
            else:
                ready.append(contestant)
        yield ready, absent


Shown = Callable[[int], None]
"""Called with the turns taken."""


def take_turns(
    contestants: Sequence[Contestant], tasks: Mapping[str, Task], *, rounds: int, turn_s: float, shown: Shown
) -> tuple[dict[str, Rates], dict[str, str]]:
    """Rates by title, and why some have none. `tasks` by module; who is not in it sits this one out."""
    failed: dict[str, str] = {}
    first_s: dict[str, float] = {}
    turns: dict[str, list[dict[str, float]]] = {}
    racing = [one for one in contestants if one.entry.module in tasks]
    for one in racing:
        task = dataclasses.asdict(tasks[one.entry.module])
        try:
            first_s[one.entry.title] = one.ask(do="open", task=task)["first_batch_s"]
        except PeerError as error:
            _leave_out(one.entry, error, failed)
    for number in range(rounds + 1):
        for at, one in enumerate(racing):
            if one.entry.title not in failed:
                try:
                    turn = one.ask(do="turn", seconds=turn_s if number else min(turn_s, 1.0))
                except PeerError as error:
                    _leave_out(one.entry, error, failed)
                    continue
                turns.setdefault(one.entry.title, []).append(turn)
            shown(number * len(racing) + at + 1)
    for one in racing:
        if one.entry.title not in failed:
            one.ask(do="close")
    rates = {name: _rates(first_s[name], found[1:]) for name, found in turns.items() if name not in failed}
    return rates, failed


def _leave_out(entry: Entry, error: PeerError, reasons: dict[str, str]) -> None:
    if entry.is_needed:
        raise error
    reasons[entry.title] = str(error)


def _rates(first_batch_s: float, turns: Sequence[Mapping[str, float]]) -> Rates:
    per_s, per_cpu_s = ([turn[key] for turn in turns] for key in ("images_per_s", "images_per_cpu_s"))
    return Rates(first_batch_s, tuple(per_s), tuple(per_cpu_s))


def usable_cores(count: int) -> tuple[int, ...]:
    """The last so many CPUs that this process may use; the first one is busy with the system more often."""
    return tuple(sorted(os.sched_getaffinity(0))[-count:])


def time_openings(entry: Entry, tasks: Sequence[Task], logs: Path, *, rounds: int) -> list[list[float]]:
    """For each task, seconds from building the loader to its first batch: in a new process, then in the same one."""
    with started([entry] * len(tasks), logs) as (contestants, _):
        return [_openings(one, task, rounds) for one, task in zip(contestants, tasks, strict=True)]


def _openings(contestant: Contestant, task: Task, rounds: int) -> list[float]:
    seconds = []
    for _ in range(rounds + 1):
        seconds.append(contestant.ask(do="open", task=dataclasses.asdict(task))["first_batch_s"])
        contestant.ask(do="close")
    return seconds
