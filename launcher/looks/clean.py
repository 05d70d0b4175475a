"""What of the runs may go: a list first; then, only when told so, gone, each thing as a whole.

Nothing is looked for or removed behind a symbolic link, and nothing of a run that is active, or may be.
A thing is renamed to a dotted name before it is removed: who is interrupted leaves a leftover, never half of a run.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from launcher import folder
from launcher.looks import activity, lookup
from launcher.pipelines.pipeline import fill
from retrieval_train.rundir import RunDir, read_json

Kind = Literal["checkpoints", "runs", "code", "leftovers", "logs"]
KINDS: tuple[Kind, ...] = get_args(Kind)
USUAL: tuple[Kind, ...] = ("checkpoints", "runs", "code", "leftovers")

_DAY_S = 86400.0
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
_ASIDE = "[a-z0-9_]{8}"  # tempfile's letters
# what our writers leave behind: a file or folder that was being written, one that was replaced, a checkpoint
_LEFTOVER = re.compile(
    rf"\.((state|latest|best|tracker_id|export|embeddings|origin|step-\d{{8}}|.+\.(json|jsonl|yaml|txt|tsv|html))\.{_ASIDE}"
    r"|.+\.old-\d+|step-\d{8}|(part-\d{5}\.)?keys\.\d+|part-\d{5}\.\d+\.npy)"
)
_LINK = re.compile(r"\..+\.\d+")  # one that was being made: a run's name, `code`


@dataclass(frozen=True)
class Item:
    """A folder or file that may go."""

    kind: Kind
    path: Path
    bytes: int
    why: str
    run: RunDir | None = None
    mark: tuple[object, ...] = ()
    """Of the run, when it was looked at: another one means that it was submitted since."""


@dataclass(frozen=True)
class Found:
    items: list[Item]
    untouched: list[tuple[RunDir, str]]
    """Runs that cannot be told to be inactive, and why."""


def find(runs_root: Path, *, kinds: Sequence[str] = USUAL, days: float = 30.0) -> Found:
    """All of these kinds; failed and planned runs, and logs, when their state is older than `days`."""
    if odd := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"{', '.join(odd)}: nothing that can be cleaned; there are: {', '.join(KINDS)}")
    if not runs_root.is_dir():
        raise ValueError(f"no runs in {runs_root}; --runs-root names another folder")
    root = runs_root.resolve()
    runs = sorted(lookup.all_runs(root), key=lambda run: run.path.name)
    marks = {run.path: _mark(run) for run in runs}  # before the question: who is submitted after it has another one
    seen = activity.look(runs)
    idle = [run for run in runs if seen[run.path].is_active is False]
    items = _code(root, runs) if "code" in kinds else []
    if "leftovers" in kinds:
        items += _leftovers([root])
    if "logs" in kinds:
        items += _arrays(root, days=days, idle={run.path for run in idle})
    needed = _needed_checkpoints(root, runs)
    for run in idle:
        found = _of_run(run, kinds, days=days, needed=needed)
        items += [replace(item, run=run, mark=marks[run.path]) for item in found]
    untouched = [(run, seen[run.path].words) for run in runs if seen[run.path].is_active is None]
    items.sort(key=lambda item: (KINDS.index(item.kind), item.path))
    return Found(items, untouched)


def _mark(run: RunDir) -> tuple[object, ...]:
    """Changes with every submit and start."""
    found: list[object] = []
    for path in (run.path / "state", run.ticket):
        try:
            about = path.stat()
            found += [about.st_ino, about.st_mtime_ns]
        except FileNotFoundError:
            found.append(None)
    return tuple(found)


# --- what may go


def _of_run(run: RunDir, kinds: Sequence[str], *, days: float, needed: set[Path]) -> list[Item]:
    state, age_s = run.state, time.time() - (run.path / "state").stat().st_mtime
    is_old = age_s > days * _DAY_S
    since = f"{state} for {age_s / _DAY_S:.0f} days"
    is_origin = any(path.is_relative_to(run.path) for path in needed)
    if "runs" in kinds and state in ("failed", "planned") and is_old and not is_origin:
        return [Item("runs", run.path, size(run.path), since)]
    items = _leftovers(_folders(run)) if "leftovers" in kinds else []
    if "checkpoints" in kinds and state == "done":
        items += _checkpoints(run, needed)
    if "logs" in kinds and state == "done" and is_old and _is_own_folder(run.logs):
        items.append(Item("logs", run.logs, size(run.logs), since))
    return items


def _checkpoints(run: RunDir, needed: set[Path]) -> list[Item]:
    """All but the last, the best, those that the config keeps for good, and those that another run is to begin from."""
    if not _is_own_folder(run.checkpoints):
        return []
    latest = run.latest_checkpoint()
    if latest is None:
        return []
    stay = {latest, run.best_checkpoint(), *needed}
    others = [path for path in run.checkpoints.glob("step-*") if path not in stay and _is_own_folder(path)]
    every = _kept_every(run) if others else 0
    return [
        Item("checkpoints", path, size(path), f"the run is done, with {latest.name}")
        for path in sorted(others)
        if (number := path.name.partition("-")[2]).isdecimal() and not (every and int(number) % every == 0)
    ]


def _kept_every(run: RunDir) -> int:
    """0: nothing is kept for good."""
    section = _config(run).get("checkpoint")
    every = section.get("keep_every") if isinstance(section, dict) else None
    return every if isinstance(every, int) else 0


def _needed_checkpoints(root: Path, runs: Sequence[RunDir]) -> set[Path]:
    """Those that runs name as their origin: a run is looked at by what it began with, also when it is done."""
    begins = [(_config(run), str(lookup.plan_of(run).get("cwd", "."))) for run in runs]
    for file in (root / ".stages").rglob("stage.json"):
        about = read_json(file)
        needs = {name: Path(path) for name, path in about.get("needs", {}).items()}  # stages' folders, or runs'
        named = {
            name: (path / "run").resolve() if (path / "run").is_symlink() else path for name, path in needs.items()
        }
        begins.append((fill(about.get("values") or {}, named), str(about.get("cwd", "."))))
    found = set()
    for config, cwd in begins:
        section = config.get("origin")
        if isinstance(section, dict) and isinstance(section.get("checkpoint"), str):
            path = Path(cwd, section["checkpoint"])
            found |= {path, path.resolve()}
    return found


def _arrays(root: Path, *, days: float, idle: Set[Path]) -> list[Item]:
    """submitit's folders of job arrays whose runs are over."""
    store = root / ".arrays"
    folders = [path for path in store.iterdir() if _is_own_folder(path)] if _is_own_folder(store) else []
    found = []
    for path in sorted(folders):
        age_s = time.time() - max(file.lstat().st_mtime for file in (path, *path.iterdir()))
        if age_s > days * _DAY_S and _is_over(path, idle):
            found.append(Item("logs", path, size(path), f"its jobs have been over for {age_s / _DAY_S:.0f} days"))
    return found


def _is_over(array: Path, idle: Set[Path]) -> bool:
    """Whether nobody is at a task of it, or waits."""
    try:
        tasks = read_json(array / "tasks.json")["tasks"]
    except (OSError, ValueError, KeyError):  # it was never submitted
        return True
    runs = [Path(task["run"]) for task in tasks if "run" in task]
    if any(run.exists() and run not in idle for run in runs):
        return False
    files = [Path(task["stage"]) / "ticket.json" for task in tasks if "stage" in task]
    try:
        return not activity.active_jobs([read_json(file)["job_id"] for file in files if file.exists()])
    except ValueError:  # SLURM does not answer
        return False


def _config(run: RunDir) -> dict[str, Any]:
    try:
        values = yaml.load(run.config.read_text(encoding="utf-8"), Loader=_YAML)
    except (OSError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _code(root: Path, runs: Sequence[RunDir]) -> list[Item]:
    """Snapshots that no run leads to, and no stage that waits for its turn."""
    store = root / ".code"
    if not _is_own_folder(store):
        return []
    used = {run.code.resolve() for run in runs}
    for file in (root / ".stages").rglob("stage.json"):
        used.add(Path(read_json(file).get("code", ".")).resolve())
    return [
        Item("code", path, size(path), "no run executes it")
        for path in sorted(store.iterdir())
        if _is_own_folder(path) and not path.name.startswith(".") and path.resolve() not in used and _is_day_old(path)
    ]


def _folders(run: RunDir) -> list[Path]:
    """Where a run's files are written aside. Others keep dotted files of their own below code/ and wandb/."""
    inner = [path for path in run.path.iterdir() if path.name not in ("code", "wandb") and _is_own_folder(path)]
    return [run.path, *inner, *([run.scheduler] if _is_own_folder(run.scheduler) else [])]


def _leftovers(folders: Sequence[Path]) -> list[Item]:
    return [
        Item("leftovers", path, size(path), "its writer was killed")
        for parent in folders
        for path in sorted(parent.iterdir())
        if _is_leftover(path) and _is_day_old(path)
    ]


def _is_leftover(path: Path) -> bool:
    return bool(_LEFTOVER.fullmatch(path.name) or (path.is_symlink() and _LINK.fullmatch(path.name)))


def _is_day_old(path: Path) -> bool:
    return time.time() - path.lstat().st_mtime > _DAY_S


def _is_own_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def size(path: Path) -> int:
    """Bytes of a file or of all files in a folder, links not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(_size_of_files(folder, files) for folder, _, files in os.walk(path))


def _size_of_files(folder: str, files: Sequence[str]) -> int:
    total = 0
    for name in files:
        try:
            total += os.lstat(os.path.join(folder, name)).st_size
        except FileNotFoundError:  # another clean is at it
            continue
    return total


# --- it goes


def remove(runs_root: Path, items: Sequence[Item]) -> Iterator[tuple[Item, str]]:
    """Each item with why it stays, or nothing when it is gone."""
    root = runs_root.resolve()
    for item in items:
        with folder.only_one_submits(root):  # a submit that comes now finds the thing whole, or not at all
            why, aside = _put_aside(root, item)
        if aside is not None:
            _delete(aside)
        yield item, why


def _put_aside(root: Path, item: Item) -> tuple[str, Path | None]:
    path = item.path
    if not path.parent.resolve().is_relative_to(root):
        return f"it lies outside of {root}", None
    if item.run is not None and _mark(item.run) != item.mark:
        return "its run was submitted again meanwhile", None
    if item.kind == "code" and not _is_unused(root, path):
        return "a run that was submitted meanwhile executes it", None
    aside = path if item.kind == "leftovers" else path.with_name(f".{path.name.lstrip('.')}.old-{os.getpid()}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return "it is gone already", None
    if item.kind == "runs":
        _remove_links(root, path)
    return "", aside


def _is_unused(root: Path, path: Path) -> bool:
    return any(item.path == path for item in _code(root, lookup.all_runs(root)))


def _remove_links(root: Path, path: Path) -> None:
    """The name of the run's newest, where it was this one."""
    for link in root.iterdir():
        if link.is_symlink() and root / os.readlink(link) == path:
            link.unlink()


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
