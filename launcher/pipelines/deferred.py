"""A run whose config can only be made when others are done: an evaluation of an export that is not there yet.

It is a job of SLURM that waits for the others. When its turn comes, its batch step completes the config, makes the run
folder and goes on as for any other run, so the run has the name that it would have been given by hand.

    <folder>/stage.json   config, or its file and overrides; plan, code
    <folder>/run          a link to the run, once there is one
    <folder>/error.txt    why there is none
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs import job
from jobs.job import JobConfig
from launcher import folder as folders
from launcher import submission
from launcher import ticket as tickets
from launcher.pipelines.pipeline import fill
from launcher.plan import Plan
from launcher.snapshot import Code
from launcher.starts import executors, tasks
from launcher.starts.launch import Launch
from launcher.sweeps import search_task
from launcher.ticket import SlurmTicket, Ticket
from retrieval_train import config as configs
from retrieval_train.rundir import RunDir, read_json, write_json, write_text

_PATIENCE_S = 600.0  # many stages may begin at the same moment, one after the other


@dataclass(frozen=True)
class Stage:
    """A run to be; `folder` is its own."""

    folder: Path
    file: Path
    """Its config."""
    overrides: Sequence[str]
    """`key=value`s."""
    needs: Mapping[str, Path]
    """Name -> the stage's folder, or the run's, that it waits for."""
    plan: Plan
    """With the resources; which run it is will be known later."""
    command: str
    belongs_to: Mapping[str, str]
    values: Mapping[str, Any] | None = None
    """The config as it was read at the submit, where {name} stands for the run that `needs` calls so; None: it is read
    on the node."""
    again: bool = False
    """A run that is there already is moved aside."""
    refresh_code: bool = False
    trial: Mapping[str, Any] | None = None
    """Of a search: which one it is; `file` and `overrides` are then the sweep's."""


def write(stage: Stage, code: Code, *, after: str) -> None:
    """So that `begin` finds it on the node."""
    about = {"schema": 1, "file": str(stage.file.absolute()), "overrides": list(stage.overrides)}
    about |= {"after": after, "values": stage.values, "again": stage.again, "refresh_code": stage.refresh_code}
    about |= {"trial": stage.trial}
    about |= {"needs": {name: str(path) for name, path in stage.needs.items()}, "plan": stage.plan.as_dict()}
    about |= {"command": stage.command, "cwd": str(Path.cwd()), "belongs_to": dict(stage.belongs_to)}
    for stale in ("run", "error.txt", "ticket.json"):
        (stage.folder / stale).unlink(missing_ok=True)
    about |= {"code": str(code.folder), "provenance": code.provenance}
    write_json(stage.folder / "stage.json", about)


def submit(
    stages: Sequence[Stage], code: Code, *, runs_root: Path, name: str, after: str, parallel: int = 256
) -> list[SlurmTicket]:
    """Into the queue as one job, an array where there are several; `after` as sbatch's --dependency has it."""
    here = submission.array_folder(runs_root, name)
    tasks.write(here, [stage.folder for stage in stages])
    for stage in stages:
        write(stage, code, after=after)
    launches = [Launch("", "")] * len(stages)
    found = executors.submit_array(
        stages[0].plan,
        launches,
        code=code.folder,
        folder=here,
        name=name,
        runs_root=runs_root,
        parallel=parallel,
        after=after,
    )
    for stage, ticket in zip(stages, found, strict=True):
        write_json(stage.folder / "ticket.json", asdict(ticket))
    return found


def ticket_of(folder: Path) -> SlurmTicket | None:
    """The job that the stage waits in, or ran in."""
    try:
        return SlurmTicket(**read_json(folder / "ticket.json"))
    except FileNotFoundError:
        return None


def after(folder: Path) -> list[str]:
    """The jobs behind which the stage was put into the queue."""
    return str(read_json(folder / "stage.json")["after"]).split(":")[1:]


def begin(folder: Path, job_id: str) -> RunDir:
    """The run, ready to start; or done already. What it raises, ValueError mostly, it also writes down in the folder."""
    try:
        run = _make(folder, SlurmTicket(job_id))
        (folder / "error.txt").unlink(missing_ok=True)
    except Exception as error:
        words = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):  # of a disk that is full, say: what is raised tells of it
            write_text(folder / "error.txt", f"{words}\n")
        raise
    return run


def _make(folder: Path, mine: SlurmTicket) -> RunDir:
    about = read_json(folder / "stage.json")
    os.chdir(about["cwd"])
    config = _config(folder, about)
    run = RunDir(Path.cwd() / job.run_folder(config).path)
    before, ticket = tickets.read(run), _active_ticket(run, mine)  # SLURM may answer late: not while the others wait
    with folders.only_one_submits(run.path.parent, patience_s=_PATIENCE_S):
        if tickets.read(run) != before:  # somebody was quicker
            ticket = _active_ticket(run, mine)
        if ticket is not None and ticket != mine:
            raise ValueError(f"{run.path} is active already ({ticket.in_words()}); submit again when it has ended")
        if ticket is None and about["again"] and run.state and tickets.read(run) != mine:
            folders.move_aside(run)
        if run.state != "done" and ticket is None:
            folders.prepare(
                run,
                config,
                Plan.from_dict(about["plan"] | {"run_dir": str(run.path), "job": config.job}),
                command=about["command"],
                refresh_code=about["refresh_code"],
                code=Code(Path(about["code"]), about["provenance"]),
                belongs_to=about["belongs_to"],
            )
            run.set_state("queued")
            tickets.write(run, mine)
        folders.point(folders.link_of(config), run)
    _link(folder / "run", run.path)
    return run


def _active_ticket(run: RunDir, mine: SlurmTicket) -> Ticket | None:
    """Of whoever is at the run now. Raises ValueError when that cannot be seen."""
    return mine if tickets.read(run) == mine else folders.active_ticket(run)


def end(folder: Path, run: RunDir) -> None:
    """What a search asks after; called when the run has ended on the node."""
    if (about := read_json(folder / "stage.json"))["trial"] is not None:
        search_task.end(folder, about, run)


def _config(folder: Path, about: Mapping[str, Any]) -> JobConfig:
    if about["trial"] is None:
        return job.check(_values(about), where=about["file"])
    if (begun := run_of(folder)) is not None and begun.state is not None:  # it is queued again
        return job.load(begun)
    return search_task.config(folder, about)


def _values(about: Mapping[str, Any]) -> dict[str, Any]:
    """The config, the runs' folders filled in."""
    if about["values"] is None:
        return configs.read(Path(about["file"]), overrides=about["overrides"])
    filled = fill(about["values"], {name: _run_or(Path(path)) for name, path in about["needs"].items()})
    assert isinstance(filled, dict)
    return filled


def _run_or(folder: Path) -> Path:
    """The run of a stage's folder; or the folder, which is a run's itself."""
    run = run_of(folder)
    return folder if run is None else run.path


def run_of(folder: Path) -> RunDir | None:
    """The stage's run, if it has begun."""
    link = folder / "run"
    return RunDir(link.resolve()) if link.is_symlink() else None


def _link(link: Path, target: Path) -> None:
    aside = link.with_name(f".{link.name}.{os.getpid()}")
    aside.symlink_to(target)
    aside.replace(link)
