"""Checkpoints at a URL: a run that loses its machine goes on elsewhere from the copies that it sent there.

    <url>/<run name>/step-00010000/    the files of that checkpoint, as checkpoint.py describes them

The newest few stay there, and the best one where training is judged; those of `keep_every` stay in the run folder only.

`state.json` is sent last and removed first: a folder that has one is whole, whenever a sender was killed. What comes back
may have been written by anybody: only plain names that `sums.json` lists are taken, each with its sum.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from retrieval_train.rundir import RunDir, written_aside
from shards import remote
from shards.files import below, is_url, open_system, shown, with_retries

log = logging.getLogger(__name__)

_STEP = re.compile(r"step-(\d{8,12})", re.ASCII)
_FILE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,200}\.(safetensors|json|txt)", re.ASCII | re.IGNORECASE)
_SUM = re.compile(r"[0-9a-f]{64}")
_ENDS = ("sums.json", "state.json")  # the first and the last file that is sent


class MirrorError(ValueError):
    """A URL that checkpoints cannot be sent to or taken from: which, why, and what to do."""


class Damaged(MirrorError):
    """A checkpoint at a URL with a file that is missing, changed, or of a name that no checkpoint has."""


class Mirror:
    """The checkpoints of one run below a URL or in a local folder. One process at a time sends there."""

    def __init__(
        self, url: str, run_name: str, *, keep: int = 2, best: Callable[[], Path | None] = lambda: None
    ) -> None:
        """`best` is asked at each sending which checkpoint stays beside the newest."""
        self._url, self._keep, self.best = _join(url, run_name), keep, best

    def put(self, folder: Path) -> None:
        """Send a sealed checkpoint; it and the newest before it stay, `keep` in all, and the best. Raises MirrorError.

        Files that an earlier try has sent are not sent again. A folder that is removed or replaced meanwhile is given up.
        Checkpoints of later steps are of a future that the run went back from, and are removed too.
        """
        url = _join(self._url, folder.name)
        with _told(url, "cannot be written"):
            try:
                is_sent = _send(folder, url)
            except FileNotFoundError:
                if (folder / "state.json").is_file():
                    raise
                is_sent = False
            if is_sent:
                self._prune(folder.name)
            else:
                log.warning("%s was removed or replaced while it was sent to %s: given up", folder, shown(url))

    def bring(self, step: int, into: Path) -> Path:
        """Download the checkpoint of `step`, as `fetch` does."""
        return fetch(_join(self._url, f"step-{step:08d}"), into)

    def newest(self) -> tuple[int, str] | None:
        """(step, URL) of the newest whole checkpoint; None where there is none. Raises MirrorError."""
        return next(self.whole(), None)

    def whole(self) -> Iterator[tuple[int, str]]:
        """(step, URL) of the whole checkpoints, the newest first. Raises MirrorError."""
        for name in reversed(self._names()):
            url = _join(self._url, name)
            with _told(url, "cannot be read"):
                is_whole = isinstance(_json_of(_read(url, "state.json")), dict)
            if is_whole:
                yield _step_of(name), url

    def _names(self) -> list[str]:
        """Of all checkpoints, whole or not, the oldest first."""
        with _told(self._url, "cannot be listed"):
            try:
                names = remote.names_in(self._url)
            except FileNotFoundError:  # nothing was sent yet
                return []
        return sorted(filter(_STEP.fullmatch, names), key=_step_of)

    def _prune(self, sent: str) -> None:
        names = self._names()
        older = [name for name in names if _step_of(name) <= _step_of(sent)]
        # not `exists`, which some file systems answer with no when they cannot reach the server
        whole = [name for name in older if _read(_join(self._url, name), "state.json") is not None]
        best = self.best()
        stay = {*whole[-self._keep :], *(name for name in whole if best and name == best.name)}
        for name in names:
            if name not in stay:
                _remove(_join(self._url, name))


def fetch(url: str, into: Path) -> Path:
    """Download the checkpoint at `url` to `into/step-XXXXXXXX`: written aside, every file checked, renamed.

    Raises Damaged, and MirrorError for a URL that cannot be reached or holds no checkpoint.
    """
    with _told(url, "cannot be read"):
        sums_json, state_json = (_read(url, name) for name in _ENDS)
        step, sums = _checked(url, sums_json, state_json)
        folder = into / f"step-{step:08d}"
        with written_aside(folder) as aside:
            for name, wanted in sums.items():
                _take(_join(url, name), aside / name, wanted)
            (aside / "sums.json").write_bytes(sums_json or b"")
            (aside / "state.json").write_bytes(state_json or b"")
    return folder


def catch_up(mirror: Mirror, run: RunDir) -> Path | None:
    """Give the run the newest checkpoint of the mirror where that is newer than its own; returns it. Raises MirrorError.

    A damaged one is passed over for the one before it, with a warning; Damaged where there is no other, and none here.
    """
    own, damaged = run.latest_checkpoint(), None
    for step, url in mirror.whole():
        if own is not None and step <= _step_of(own.name):
            break
        try:
            folder = fetch(url, run.checkpoints)
        except Damaged as error:
            log.warning("%s; the checkpoint before it is tried", error)
            damaged = damaged or error
            continue
        run.set_latest(folder)
        log.info("took %s from %s", folder.name, shown(url))
        return folder
    if damaged and own is None:  # to begin again would throw away what was trained
        raise damaged
    return None


# --- one checkpoint


def _send(folder: Path, url: str) -> bool:
    """The files of a checkpoint, `state.json` last; False for a folder that was replaced meanwhile."""
    sums, state = ((folder / name).read_bytes() for name in _ENDS)
    if _read(url, "sums.json") != sums:  # another run's, or none: no file there can be relied on
        _remove(url)
        _write(url, "sums.json", sums)
    for name in json.loads(sums):
        there = _join(url, name)
        if remote.size(there) != (folder / name).stat().st_size:
            remote.send(folder / name, there)
    if (folder / "sums.json").read_bytes() != sums:
        return False
    _write(url, "state.json", state)
    return True


def _remove(url: str) -> None:
    """A folder that has no `state.json` is no checkpoint any more, so that goes first."""
    system, there = open_system(url)
    if _read(url, "state.json") is not None:
        remote.remove(_join(url, "state.json"))
    with suppress(FileNotFoundError):  # gone is what is wanted
        with_retries(lambda: system.rm(there, recursive=True))


def _checked(url: str, sums_json: bytes | None, state_json: bytes | None) -> tuple[int, dict[str, str]]:
    """(step, sums) of a checkpoint whose `sums.json` and `state.json` are what they should be."""
    if state_json is None or sums_json is None:
        lacks = "state.json" if state_json is None else "sums.json"
        raise MirrorError(f"{shown(url)} is no checkpoint: it has no {lacks}; give the URL of a folder step-XXXXXXXX")
    sums, state = _json_of(sums_json), _json_of(state_json)
    step = state.get("step") if isinstance(state, dict) else None
    if type(step) is not int or not _STEP.fullmatch(f"step-{step:08d}"):
        raise _damaged(_join(url, "state.json"), f"holds no step but {step!r}")
    if not isinstance(sums, dict) or not all(
        isinstance(value, str) and _SUM.fullmatch(value) for value in sums.values()
    ):
        raise _damaged(_join(url, "sums.json"), "is no mapping of file names to sha256")
    for name in sums:
        if not _FILE.fullmatch(name) or name in _ENDS:
            text = f"lists {name!r}, which is no name that a checkpoint's file has (like model.safetensors)"
            raise _damaged(_join(url, "sums.json"), text)
    return step, sums


def _take(url: str, file: Path, wanted: str) -> None:
    """One file, on the disk when this returns."""
    try:
        remote.fetch(url, file)
    except FileNotFoundError as error:
        raise _damaged(url, "is missing") from error
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        os.fsync(opened.fileno())
    if digest != wanted:
        raise _damaged(url, "was changed or damaged")


def _damaged(url: str, text: str) -> Damaged:
    return Damaged(f"{shown(url)} {text}; remove the folder that it is in to go on from the checkpoint before it")


# --- bytes


def _join(url: str, name: str) -> str:
    return below(url, name) if is_url(url) else f"{url.rstrip('/')}/{name}"


def _step_of(name: str) -> int:
    return int(name.removeprefix("step-"))


def _read(url: str, name: str) -> bytes | None:
    """A small file's bytes; None where there is no such file."""
    system, there = open_system(_join(url, name))

    def read() -> bytes | None:
        try:
            return bytes(system.cat_file(there))
        except FileNotFoundError:  # an answer, and no trouble to try again for
            return None

    return with_retries(read)


def _write(url: str, name: str, data: bytes) -> None:
    system, there = open_system(_join(url, name))

    def write() -> None:
        system.makedirs(system._parent(there), exist_ok=True)  # of no meaning to object stores, needed elsewhere
        system.pipe_file(there, data)

    with_retries(write)


def _json_of(data: bytes | None) -> Any:
    """What the bytes hold; None for what is no JSON, as a file of which half was written."""
    try:
        return json.loads(data or b"")
    except ValueError:
        return None


@contextmanager
def _told(url: str, trouble: str) -> Iterator[None]:
    """Errors of the system and of fsspec as MirrorError, without secrets."""
    try:
        yield
    except MirrorError:
        raise
    except (OSError, ValueError) as error:
        hint = "see to the URL, the credentials and the free space"
        raise MirrorError(f"{shown(url)} {trouble}: {shown(error)}; {hint}") from error
