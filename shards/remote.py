"""Whole files to and from a URL."""

from __future__ import annotations

import os
from pathlib import Path

from shards.files import open_system, with_retries


def send(path: Path, url: str) -> None:
    """Uploads a file."""
    system, there = open_system(url)

    def upload() -> None:
        system.makedirs(system._parent(there), exist_ok=True)  # of no meaning to object stores, needed elsewhere
        system.put_file(str(path), there)

    with_retries(upload)


def fetch(url: str, path: Path) -> None:
    """Downloads a file; under its name only when it is whole."""
    system, there = open_system(url)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with_retries(lambda: system.get_file(there, str(temporary)))
    temporary.rename(path)


def exists(url: str) -> bool:
    """Whether there is such a file."""
    system, there = open_system(url)
    return bool(with_retries(lambda: system.exists(there)))


def size(url: str) -> int:
    """Bytes of a file; -1 where there is none."""
    system, there = open_system(url)
    try:
        return int(with_retries(lambda: system.info(there))["size"])
    except FileNotFoundError:
        return -1


def remove(url: str) -> None:
    """Deletes a file."""
    system, there = open_system(url)
    with_retries(lambda: system.rm_file(there))


def names_in(url: str) -> list[str]:
    """Names of the files directly below a URL."""
    system, there = open_system(url)
    listed = with_retries(lambda: system.ls(there, detail=False, refresh=True))
    return [str(path).rstrip("/").rpartition("/")[2] for path in listed]
