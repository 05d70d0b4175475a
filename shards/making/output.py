"""The folder that a set ends in. The set grows in `OUT.partial/set`, which is renamed when everything is there; so OUT is a
whole set or does not exist. What the making needs lies beside it in `OUT.partial`: a stopped run leaves that, and the same
command goes on in it.

For a URL there is nothing to rename: finished shards are uploaded and leave the local folder, and manifest.json is
uploaded last.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from shards.errors import ShardError
from shards.making.lines import BLOBS, RECORDS
from shards.making.writer import DONE
from shards.manifest import MANIFEST, Manifest

PLAN, LOCK, SET = "plan.json", "lock", "set"
log = logging.getLogger(__name__)


def partial_folder(out: Path | str) -> Path:
    """Where the set of this name grows."""
    if isinstance(out, Path):
        if not out.name or out.name == "..":
            raise ShardError(f"--out {out}: give the new folder a name, like shard_sets/food")
        return out.with_name(f"{out.name}.partial")
    digest = hashlib.sha256(out.encode()).hexdigest()[:8]
    mine = Path(tempfile.gettempdir()) / f"shards-{os.getuid()}"
    mine.mkdir(mode=0o700, exist_ok=True)
    if mine.lstat().st_uid != os.getuid() or mine.is_symlink():
        raise ShardError(f"{mine} belongs to somebody else; set TMPDIR to a folder of yours")
    return mine / f"{name_of(out)}-{digest}.partial"


def name_of(out: Path | str) -> str:
    """The set's name: the last part of its path."""
    return out.name if isinstance(out, Path) else out.rstrip("/").rpartition("/")[2]


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Yields the folder, made if need be, while no other process may have it; ShardError where it is not of our making."""
    try:
        if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in (LOCK, PLAN)):
            raise ShardError(f"{folder} is in the way and was not made by `shards`; rename it, or choose another name")
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise ShardError(f"{folder}: {error.strerror}: nothing can be written there") from error
    with file:
        take_lock(file, folder)
        yield folder


def take_lock(file: IO[str], folder: Path) -> None:
    """ShardError where another process has it. File systems without locks are trusted."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ShardError(f"{folder}: another process is making this set; wait for it, or stop it") from error
    except OSError as error:
        log.warning(
            "%s: no locks on this file system (%s); see that no second process makes it", folder, error.strerror
        )
    try:
        is_same = os.fstat(file.fileno()).st_ino == (folder / LOCK).stat().st_ino
    except FileNotFoundError:
        is_same = False
    if not is_same:  # its last owner finished, and took the folder away, between our two calls
        raise ShardError(f"{folder}: another process has just finished with it; repeat the command")


def remove(folder: Path) -> None:
    """All of a partial folder."""
    shutil.rmtree(folder, ignore_errors=True)


def tidy(folder: Path) -> None:
    """What a killed process was in the middle of."""
    for path in [*folder.glob(".*"), *(folder / SET).glob(".*")]:
        path.unlink()


def begin(folder: Path, about: Mapping[str, Any], *, changed_at: float, force: bool) -> None:
    """Makes sure that what lies there is the beginning of this very set.

    Raises ShardError where it is the beginning of another one: that may be hours of work. `force` starts anew, unless the
    beginning was made with it, too: a run that is stopped again and again gets to its end.
    """
    wanted = {**about, "force": force}
    num_done = len(list(folder.glob(f"*{DONE}")))
    path = folder / PLAN
    try:
        before: dict[str, Any] = json.loads(path.read_bytes())
        is_same = all(before.get(name) == wanted[name] for name in ("config", "fingerprint", "force"))
        is_fresh = changed_at <= path.stat().st_mtime
    except (OSError, ValueError, AttributeError):
        before, is_same, is_fresh = {}, False, True
    if num_done and not force and not (is_same and is_fresh):
        reason = f"of a set made {differences(before, about)}; repeat that command to go on with it,"
        reason = reason if not is_same else "and images changed since; put them back,"
        raise ShardError(f"{folder} holds {num_done} finished shards {reason} or pass --force to start anew")
    if not (is_same and is_fresh):
        clear_but(folder, (LOCK, RECORDS, BLOBS))
        path.write_text(json.dumps(wanted))
    (folder / SET).mkdir(exist_ok=True)


def clear_but(folder: Path, names: Collection[str]) -> None:
    """Everything but these files."""
    for path in folder.iterdir():
        if path.name in names:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def how_to_go_on(folder: Path) -> str:
    """What a stop leaves, for the message."""
    num_done = len(list(folder.glob(f"*{DONE}"))) if folder.is_dir() else 0
    if not num_done:
        return "nothing half-written is left"
    return f"{num_done} finished shards are kept in {folder}; repeat the command to go on"


def leave(folder: Path) -> None:
    """After a run that did not end well: finished shards stay, the rest goes."""
    if not list(folder.glob(f"*{DONE}")):
        remove(folder)
        return
    tidy(folder)
    for name in (RECORDS, BLOBS, LOCK):
        (folder / name).unlink(missing_ok=True)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`with other options (seed was 0 and is 3)`, or that the input changed."""
    old, new = before.get("config", {}), now["config"]
    changes = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    if not changes:
        force = before.get("force", False) != now.get("force", False)
        return (
            "with --force"
            if force and before.get("force")
            else "without --force"
            if force
            else "from other images or labels"
        )
    return f"with other options ({'; '.join(changes)})"


def publish(folder: Path, out: Path, *, replace: bool) -> None:
    """Puts the finished folder in its place; with `replace` in the place of an older set."""
    (folder / LOCK).unlink(missing_ok=True)  # of a folder that was filled without a `set` inside
    old = replaced_path(out)
    if replace and out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except BaseException as error:
        if old.exists() and not out.exists():
            old.rename(out)
        if isinstance(error, OSError):
            raise ShardError(f"{out}: {error.strerror}; it appeared while the set was made") from error
        raise
    remove(old)


def replaced_path(out: Path) -> Path:
    """Where an older set waits until the new one is in its place."""
    return out.with_name(f"{out.name}.replaced")


def recover(out: Path) -> None:
    """Puts an older set back that a killed process had just taken from its place; removes it where the new one is there."""
    old = replaced_path(out)
    if not (old / MANIFEST).is_file():
        return
    if out.exists():
        remove(old)
    else:
        old.rename(out)


def check_free(out: Path, *, force: bool) -> None:
    """Refuses what must not be replaced: a file, a folder that is no set."""
    recover(out)
    if out.exists() and not out.is_dir():
        raise ShardError(f"--out {out} is a file; choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        hint = "--force replaces shard sets only; " if force else ""
        raise ShardError(f"--out {out} exists and is not a shard set; {hint}choose another --out")


def find_finished(out: Path, about: Mapping[str, Any], *, changed_at: float) -> Manifest | None:
    """The set that lies at OUT already, if it is the one asked for; None if nothing lies there.

    It is the one if the options and the records are equal, no image file changed since, and its shards are all there.
    """
    if not (out / MANIFEST).is_file():
        return None
    advice = "pass --force to replace it, or another --out"
    try:
        manifest = Manifest.load(out)
    except ShardError as error:
        raise ShardError(f"--out {out} exists but cannot be read ({error}); {advice}") from error
    if any(manifest.about.get(name) != about[name] for name in ("config", "fingerprint")):
        raise ShardError(f"--out {out} exists and was made {differences(manifest.about, about)}; {advice}")
    if changed_at > (out / MANIFEST).stat().st_mtime:
        raise ShardError(f"--out {out} exists and images changed after it was made; {advice}")
    for shard in manifest.shards:
        try:
            manifest.sidecar(shard)
        except ShardError as error:
            raise ShardError(f"--out {out} exists but is damaged ({error}); {advice}") from error
    return manifest
