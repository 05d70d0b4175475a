"""The run folder as submit finds and makes it: whether the run is active, and all that lies there before it starts."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from jobs import failure as failures
from jobs.job import JobConfig
from launcher import snapshot
from launcher import ticket as tickets
from launcher.looks import tracked
from launcher.plan import Plan
from launcher.snapshot import Code
from launcher.ticket import Ticket
from retrieval_train import config as configs
from retrieval_train.rundir import RunDir, write_json, write_text

_BY_HAND_S = 120.0  # a run that works writes more often than this


@contextlib.contextmanager
def only_one_submits(runs_root: Path, *, patience_s: float = 60.0) -> Iterator[None]:
    """Two submits of one run at the same moment become one: the second waits, then finds the first one's ticket."""
    runs_root.mkdir(parents=True, exist_ok=True)
    with (runs_root / ".submit.lock").open("w") as file:
        until = time.monotonic() + patience_s
        while not _locked(file.fileno()):
            if time.monotonic() > until:
                raise ValueError(f"another submit has held {file.name} for {patience_s:g} s; is it stuck?")
            time.sleep(0.1)
        yield


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # a file system without locks: two submits of one run in the same second are then the user's to avoid
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    return True


def link_of(config: JobConfig) -> Path:
    """`<runs_root>/<run.name>`, which will lead to the newest run of that name. Raises ValueError if it is a file."""
    link = Path(config.runs_root) / config.run.name
    if link.exists() and not link.is_symlink():
        raise ValueError(
            f"{link} is a real folder or file; the launcher keeps a link to the newest run of that name there: "
            "move it away, or choose another run.name"
        )
    return link


def active_ticket(run: RunDir) -> Ticket | None:
    """The ticket under which the run waits or works now; a run that died under its ticket is settled.

    Raises ValueError when the run may be active where we cannot see it.
    """
    ticket = tickets.read(run)
    if ticket is None:
        _refuse_a_run_by_hand(run)
        return None
    try:
        if ticket.is_active():
            return ticket
    except ValueError as error:
        raise ValueError(f"{run.path} is {run.state}: {error}. If it is gone for good, remove {run.ticket}") from error
    if run.state in ("queued", "running"):
        tickets.settle(run, ticket)
    return None


def _refuse_a_run_by_hand(run: RunDir) -> None:
    """Nobody wrote down which processes it has."""
    if run.state != "running":
        return
    written = [path for path in (run.path / "state", run.progress, *run.logs.glob("*.log")) if path.exists()]
    if (age_s := time.time() - max(path.stat().st_mtime for path in written)) < _BY_HAND_S:
        raise ValueError(f"{run.path} seems to run, started by hand: it wrote {age_s:.0f} s ago; end it first, or wait")


def prepare(
    run: RunDir,
    config: JobConfig,
    plan: Plan,
    *,
    command: str,
    refresh_code: bool,
    code: Code | None = None,
    belongs_to: Mapping[str, str] | None = None,
) -> None:
    """Everything that the job needs before it starts. `state` comes last but for the link: until then it is no run.

    `code`: what the run executes; None is the working tree. `belongs_to`: the sweep or pipeline, for `plan.json`.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    for aside in run.path.glob(".*"):  # what a killed process was writing
        shutil.rmtree(aside) if aside.is_dir() and not aside.is_symlink() else aside.unlink()
    code = code or snapshot.keep(run.path.parent)
    if refresh_code or not run.code.is_dir():
        snapshot.use(code, run.code)
    about = {"schema": 1, **plan.as_dict(), "command": command, "cwd": str(Path.cwd()), **(belongs_to or {})}
    # not yet on the disk when this returns: a sweep of hundreds would wait for each file
    write_json(run.plan, about | code.provenance, durable=False)
    write_text(run.config, configs.dump(config), durable=False)
    tracked.assign(run, config)
    failures.clear(run)
    for stale in (run.progress, run.ticket):
        stale.unlink(missing_ok=True)
    run.set_state("planned", durable=False)


def point(link: Path, run: RunDir) -> None:
    """Make `link` lead to the run, in one step."""
    aside = link.with_name(f".{link.name}.{os.getpid()}")
    aside.symlink_to(run.path.name)
    aside.replace(link)


def move_aside(run: RunDir) -> Path:
    """Rename the run's folder after the time of its last change; where it is now."""
    ended = datetime.datetime.fromtimestamp((run.path / "state").stat().st_mtime)
    old = run.path.with_name(f"{run.path.name}.{ended:%Y%m%d-%H%M%S}")
    run.path.rename(old)
    return old
