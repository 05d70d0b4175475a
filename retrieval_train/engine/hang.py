"""A hung rank ends the run with its reason, instead of letting all the others wait for it.

In every rank a thread looks how long ago the main thread said `beat`. The first one that finds the time-out passed rings an
alarm, a file that all ranks look at; then each rank writes where it is and the stacks of its threads, reads what the
others wrote, and ends its process: the main thread cannot be asked to, it sits in a collective.

    stacks/alarm.txt    a line for every rank that rang it, of all starts of the run
    stacks/<rank>.txt   one JSON line, where the rank was, and then its stacks; gone when the run ends well

A thread of Python cannot look while a C call holds the interpreter. For that case faulthandler's own timer, which needs
no interpreter, writes the stacks a little later and ends the process with exit code 1.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

HUNG = 75  # the exit code of a rank that the watchdog ends: EX_TEMPFAIL of sysexits.h, "try again"


@dataclass(frozen=True)
class Sighting:
    """Where one rank was when the alarm rang."""

    rank: int
    host: str
    pid: int
    phase: str
    step: int | None
    silent_s: float
    """Seconds since its last beat."""
    line: str
    """The line that its main thread was in."""


class Watchdog:
    """Watches this rank's main thread for as long as it is open.

    `hosts` are the host names of all ranks. `say` is called with the reason on every rank that can, before its process
    ends; it must not wait for another rank. From the last beat to the end it takes `timeout_s` and at most twice `grace_s`.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        hosts: Sequence[str],
        *,
        timeout_s: float,
        say: Callable[[str], None],
        grace_s: float = 10,
    ) -> None:
        self._folder, self._rank, self._hosts, self._say = folder, rank, list(hosts), say
        self._timeout_s, self._grace_s = timeout_s, grace_s
        self._look_s = min(timeout_s / 20, grace_s / 5)
        self._own, self._alarm = _stacks_of(folder, rank), folder / "alarm.txt"
        self._last: tuple[float, str, int | None] = (time.monotonic(), "start", None)
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, phase: str, step: int | None = None) -> None:
        """The main thread is alive and begins `phase`; `step` are the steps done, kept until another is given."""
        self._last = (time.monotonic(), phase, self._last[2] if step is None else step)

    def __enter__(self) -> Watchdog:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._own.unlink(missing_ok=True)
        self._file = os.open(self._own, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        # what is older than my own new file is of an earlier start; times of one file server can be compared
        self._began_ns = os.fstat(self._file).st_mtime_ns
        # made now, since an NFS client believes for a minute that a file is not there, but asks again about one that it opens
        self._alarm.open("a").close()
        self.beat("start")
        self._arm(self._timeout_s)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closing.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        os.close(self._file)
        self._own.unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._is_closing.wait(self._look_s):
            left_s = self._timeout_s - (time.monotonic() - self._last[0])
            if left_s < 0 or self._new_text(self._alarm):
                # in a thread: the file system may be what hangs
                report = threading.Thread(target=self._report, daemon=True)
                report.start()
                report.join(1.4 * self._grace_s)
                os._exit(HUNG)
            self._arm(left_s)

    def _arm(self, left_s: float) -> None:
        """For the case that this thread does not run any more; late enough for the other ranks to say the reason first."""
        faulthandler.dump_traceback_later(left_s + 1.5 * self._grace_s, exit=True, file=self._file)

    def _new_text(self, path: Path) -> str:
        """What a file holds that was written since this start; "" where it cannot be read: the own time-out still holds."""
        try:
            with path.open(errors="replace") as file:  # opening makes NFS ask its server
                is_new = os.fstat(file.fileno()).st_mtime_ns > self._began_ns
                return file.read() if is_new else ""
        except OSError:
            return ""

    def _report(self) -> None:
        try:
            self._write(self._sighting())
        finally:  # the reason is told on a full disk too
            until = time.monotonic() + self._grace_s
            while len(found := self._sightings()) < len(self._hosts) and time.monotonic() < until:
                time.sleep(self._look_s)
            self._say(reason(found, self._hosts, timeout_s=self._timeout_s, folder=self._folder))

    def _write(self, mine: Sighting) -> None:
        with self._alarm.open("a") as file:
            silent = f"no beat for {mine.silent_s:.0f} s in '{mine.phase}' after step {mine.step}"
            file.write(f"{time.strftime('%F %T')} rank {mine.rank} on {mine.host}: {silent}\n")
        os.write(self._file, (json.dumps(asdict(mine)) + "\n").encode())
        faulthandler.dump_traceback(file=self._file, all_threads=True)

    def _sighting(self) -> Sighting:
        at, phase, step = self._last
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        code = frame.f_code
        line = f"{'/'.join(Path(code.co_filename).parts[-2:])}:{frame.f_lineno} in {code.co_name}"
        silent_s = round(time.monotonic() - at, 1)
        return Sighting(self._rank, socket.gethostname(), os.getpid(), phase, step, silent_s, line)

    def _sightings(self) -> list[Sighting]:
        """Those of this start that lie in the folder by now, in rank order."""
        found = []
        for path in (_stacks_of(self._folder, rank) for rank in range(len(self._hosts))):
            first, newline, _ = self._new_text(path).partition("\n")
            if newline and first.startswith("{"):  # else it is half written, or by faulthandler's timer
                found.append(Sighting(**json.loads(first)))
        return found


def reason(found: Sequence[Sighting], hosts: Sequence[str], *, timeout_s: float, folder: Path) -> str:
    """One sentence for the run's user: which ranks to look at, where they were, and where the others were.

    To blame are the ranks that left no stack; else those that were in another phase or step than most; else those
    whose main thread was in another line than most. Where no side is larger, the longer silent one is to blame.
    """
    missing = sorted(set(range(len(hosts))) - {one.rank for one in found})
    sides = _sides(found)
    told = [
        f"{_names(missing, hosts)} left no stack (the process is gone or stopped, or its interpreter hangs)"
        if missing
        else "",
        *(_told(side, hosts) for side in sides[:-1]),
        _told(sides[-1]) if sides else "",
    ]
    steps = [one.step for one in found if one.step is not None]
    after = f" after step {max(steps)}" if steps else ""
    hint = "" if missing or len(sides) > 1 or len(hosts) == 1 else " No rank differs: compare the stacks."
    return (
        f"no sign of life for {_minutes(timeout_s)}{after}: {'; '.join(filter(None, told))}.{hint} Stacks of all threads: "
        f"{folder}. The same command goes on from the last checkpoint; if the same node hangs again, leave it out, and if "
        "nothing was wrong but slow, raise run.hang_minutes"
    )


def _sides(found: Sequence[Sighting]) -> list[list[Sighting]]:
    """Ranks that were in the same place together; those that most likely only waited for the others come last."""
    for key in (lambda one: (one.phase, one.step), lambda one: one.line):
        sides = defaultdict(list)
        for one in found:
            sides[key(one)].append(one)
        if len(sides) > 1:
            break
    return sorted(sides.values(), key=lambda side: (len(side), -max(one.silent_s for one in side)))


def _told(side: Sequence[Sighting], hosts: Sequence[str] = ()) -> str:
    one = side[0]
    ranks = _names([one.rank for one in side], hosts)
    step = "" if one.step is None else f", step {one.step}"
    return f"{ranks} {'was' if len(side) == 1 else 'were'} in '{one.phase}'{step} ({one.line})"


def _names(ranks: Sequence[int], hosts: Sequence[str] = ()) -> str:
    """'rank 3 on gpu-17', 'ranks 0-2, 4'; the hosts only where they are given."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][-1] == rank - 1:
            spans[-1][1:] = [rank]
        else:
            spans.append([rank])
    told = f"rank{'s' if len(ranks) > 1 else ''} {', '.join('-'.join(map(str, span)) for span in spans)}"
    return told + (f" on {', '.join(dict.fromkeys(hosts[rank] for rank in ranks))}" if hosts else "")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.3g} min" if seconds >= 60 else f"{seconds:.3g} s"


def _stacks_of(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.txt"
