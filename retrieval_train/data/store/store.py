"""A store gives bytes of the tars of one set, wherever they lie; `open_set` finds the right one for a config.

folder             LocalStore     pread; the kernel's page cache is the cache, shared by all ranks of a node
s3://… https://…   RemoteStore    ranged requests with retries; tables and sidecars are copied once a node (tables.py)
either + scratch   ScratchStore   whole shards copied to the node's own disk, by whichever process is first
"""

from __future__ import annotations

import logging
import os
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pydantic import Field, field_validator

from retrieval_train.config import FileName, Section, place
from shards.files import is_url
from shards.manifest import ShardError

if TYPE_CHECKING:
    from shards.manifest import Manifest

log = logging.getLogger(__name__)


class StoreError(ShardError):
    """Bytes cannot be had now: the machine, the network or who may read is at fault, or a file is not there. What another
    run may find there must not change what this one trains on, so it ends the run; damaged bytes are a plain ShardError."""


class Store(Protocol):
    """Where the tars of one set lie. Safe to hand to forked and to spawned workers."""

    def read(self, file: str, at: int, count: int) -> bytes:
        """Exactly `count` bytes of a tar. Raises an error that names the file and the place where they are not: StoreError
        where they cannot be had now, ShardError where the tar has no such bytes."""
        ...

    def ahead(self, file: str, at: int, count: int) -> None:
        """These bytes will be read soon. Never waits for them and never raises: what is wrong, `read` will say."""
        ...


class StoreConfig(Section):
    """Where the sets lie. Nothing of this is part of what a run is: the same run goes on from another disk."""

    locations: dict[FileName, str] = Field(default={}, json_schema_extra=place())
    """Set name -> folder or URL (s3://, gs://, https://, …: what fsspec opens); without an entry: shards_root/name.
    `$NAME` is filled in where the job runs."""
    scratch: str | None = Field(default=None, json_schema_extra=place())
    """Folder on the node's own disk for copies of shards; null: they are read in place. `$SLURM_TMPDIR` and other
    variables are filled in where the job runs (`${oc.env:…}` would be where it is submitted)."""
    scratch_gb: float = Field(default=100.0, gt=0, json_schema_extra=place())
    """Bound on all copies in that folder, in 10^9 bytes; the least recently used go first."""
    fetch_threads: int = Field(default=4, ge=1, le=32, json_schema_extra=place())
    """Shards that are copied at a time on one node, all its ranks together."""

    @field_validator("locations")
    @classmethod
    def _no_commands(cls, locations: dict[str, str]) -> dict[str, str]:
        for name, location in locations.items():
            if location.lstrip().lower().startswith("pipe:"):
                raise ValueError(
                    f"{name}: 'pipe:' gives a stream from front to back, but a set is read at any place; "
                    "give a folder or a URL that fsspec opens (s3://, gs://, https://)"
                )
            if not location.strip():
                raise ValueError(f"{name}: '' is no place; give a folder or a URL")
        return locations

    def location(self, name: str, shards_root: Path) -> str:
        """Folder or URL of a set."""
        given = self.locations.get(name)
        return str(shards_root / name) if given is None else _filled_in(given, f"data.store.locations.{name}")

    def scratch_folder(self) -> Path | None:
        """The folder, as this node has it."""
        return None if self.scratch is None else Path(_filled_in(self.scratch, "data.store.scratch"))


def _filled_in(text: str, where: str) -> str:
    filled = os.path.expanduser(os.path.expandvars(text)) if not is_url(text) else os.path.expandvars(text)
    if unset := re.findall(r"\$\{?(\w+)", filled):
        raise ShardError(
            f"{where} {text}: {unset[0]} is not set on {socket.gethostname()}; "
            "set it in the job's environment, or write the place out"
        )
    return filled


def open_set(name: str, config: StoreConfig, shards_root: Path) -> tuple[Manifest, Store]:
    """A set and where its tars lie. Raises ShardError for a set that is not there or a scratch folder of no use."""
    from retrieval_train.data.store.local import LocalStore
    from shards.manifest import Manifest

    location, scratch = config.location(name, shards_root), config.scratch_folder()
    if is_url(location):
        from retrieval_train.data.store.remote import RemoteStore
        from retrieval_train.data.store.tables import fetch_tables

        manifest = fetch_tables(name, location, scratch)
        source: Store = RemoteStore(location)
    else:
        manifest = replace(Manifest.load(location), name=name)
        source = LocalStore(manifest.folder)
    if scratch is None:
        return manifest, source
    return manifest, _copied(manifest, source, location, scratch, config)


def open_manifest(name: str, config: StoreConfig, shards_root: Path) -> Manifest:
    """A set for looking at what it has, with its classes but perhaps without sidecars: needs no scratch folder, which a
    login node has not. Raises ShardError."""
    from shards.manifest import Manifest

    location = config.location(name, shards_root)
    if not is_url(location):
        return replace(Manifest.load(location), name=name)
    from retrieval_train.data.store.tables import fetch_tables

    return fetch_tables(name, location, None, with_rows=False)


def _copied(manifest: Manifest, source: Store, location: str, scratch: Path, config: StoreConfig) -> Store:
    """A ScratchStore, unless the set lies on the scratch disk already: a copy would only cost room."""
    from retrieval_train.data.store.cache import Cache
    from retrieval_train.data.store.scratch import ScratchStore

    cache = Cache.open(scratch, max_bytes=int(config.scratch_gb * 1e9), slots=config.fetch_threads)
    if manifest.has_tars and manifest.folder.stat().st_dev == cache.root.stat().st_dev:
        log.info("%s: lies on the same disk as data.store.scratch, so it is read where it is", location)
        return source
    return ScratchStore(manifest, source, cache)
