"""The folder that a set ends in. The set grows in `OUT.partial` beside it, which is renamed when everything is there; so
OUT is a whole set or does not exist. A stopped run leaves OUT.partial, and the same command goes on in it.

For a URL there is nothing to rename: OUT.partial is a local folder, finished shards are uploaded and leave it, and
manifest.json is uploaded last.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.errors import ShardError
from shards.making.catalog import BLOBS, RECORDS
from shards.making.writer import DONE
from shards.manifest import MANIFEST, Manifest

PLAN, LOCK = "plan.json", "lock"


def partial_folder(out: Path | str) -> Path:
    """Where the set of this name grows."""
    if isinstance(out, Path):
        return out.with_name(f"{out.name}.partial")
    digest = hashlib.sha256(out.encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"shards-{name_of(out)}-{digest}.partial"


def name_of(out: Path | str) -> str:
    """The set's name: the last part of its path."""
    return out.name if isinstance(out, Path) else out.rstrip("/").rpartition("/")[2]


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Yields the folder, made if need be, while no other process may have it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise ShardError(f"{folder}: {error.strerror}; choose another --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ShardError(f"{folder}: another process is making this set; wait for it, or stop it") from error
        yield folder


def remove(folder: Path) -> None:
    """All of a partial folder."""
    shutil.rmtree(folder, ignore_errors=True)


def tidy(folder: Path) -> None:
    """What a killed process was in the middle of."""
    for path in folder.glob(".*"):
        path.unlink()


def agree(folder: Path, about: Mapping[str, Any], *, changed_at: float) -> None:
    """Makes sure that what lies there is the beginning of this very set.

    Raises ShardError where it is the beginning of another one: that may be hours of work.
    """
    num_done = len(list(folder.glob(f"*{DONE}")))
    path = folder / PLAN
    try:
        before: dict[str, Any] | None = json.loads(path.read_bytes())
    except (OSError, ValueError):
        before = None
    if num_done and before != dict(about):
        changes = differences(before or {}, about)
        raise ShardError(
            f"{folder} holds {num_done} finished shards of a set made {changes}; repeat that command to go on with it, "
            "or pass --force to start anew"
        )
    if num_done and changed_at > path.stat().st_mtime:
        raise ShardError(
            f"{folder} holds {num_done} finished shards, and images changed since; pass --force to start anew"
        )
    if before != dict(about):
        clear_but(folder, (LOCK, RECORDS, BLOBS))
        path.write_text(json.dumps(about))


def clear_but(folder: Path, names: tuple[str, ...]) -> None:
    """Everything but these files."""
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


def how_to_go_on(folder: Path) -> str:
    """What a stop leaves, for the message."""
    num_done = len(list(folder.glob(f"*{DONE}"))) if folder.is_dir() else 0
    if not num_done:
        return "nothing half-written is left"
    return f"{num_done} finished shards are kept in {folder}; repeat the command to go on"


def leave(folder: Path) -> None:
    """After a run, however it ended: finished shards stay, the rest goes."""
    if not folder.is_dir():
        return
    if not list(folder.glob(f"*{DONE}")):
        remove(folder)
        return
    for name in (LOCK, RECORDS, BLOBS):
        (folder / name).unlink(missing_ok=True)
    tidy(folder)


def clear_unfinished(folder: Path) -> None:
    """What belongs to the making, not to the set."""
    for path in folder.iterdir():
        if path.name in (PLAN, LOCK, RECORDS, BLOBS) or path.name.endswith(DONE):
            path.unlink()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`with other options (seed was 0 and is 3)`, or that the input changed."""
    old, new = before.get("config", {}), now["config"]
    changes = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    return f"with other options ({'; '.join(changes)})" if changes else "from other images or labels"


def publish(folder: Path, out: Path, *, replace: bool) -> None:
    """Puts the finished folder in its place; with `replace` in the place of an older set."""
    clear_unfinished(folder)
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    if replace and out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except OSError as error:
        if old.exists():
            old.rename(out)
        raise ShardError(f"{out}: {error.strerror}; it appeared while the set was made") from error
    shutil.rmtree(old, ignore_errors=True)


def check_free(out: Path, *, force: bool) -> None:
    """Refuses what must not be replaced: a file, a folder that is no set."""
    if not out.name or out.name == "..":
        raise ShardError(f"--out {out}: give the new folder a name, like shard_sets/food")
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
