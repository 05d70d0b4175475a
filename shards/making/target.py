"""Where the finished set goes: a folder here, or a URL that fsspec can write to (s3://…, gs://…)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.errors import ShardError
from shards.files import is_url, open_system
from shards.making import output
from shards.making.writer import Written
from shards.manifest import MANIFEST, Manifest
from shards.remote import exists, fetch, send


class LocalTarget:
    """OUT.partial becomes OUT by one rename."""

    url = None

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = output.partial_folder(out)

    def check_free(self, *, force: bool) -> None:
        """ShardError where something else lies at OUT."""
        output.check_free(self.out, force=force)

    def find_finished(self, about: Mapping[str, Any], *, changed_at: float) -> Manifest | None:
        """The set that was asked for, if it is there already."""
        return output.find_finished(self.out, about, changed_at=changed_at)

    def find_written(self, file: str) -> Written | None:
        """A shard that an earlier run finished."""
        return Written.load(self.folder, file)

    def bring(self, file: str) -> None:
        """Tars are in the folder already."""

    def publish(self, *, force: bool) -> Manifest:
        """Makes it a set."""
        output.publish(self.folder, self.out, replace=force)
        return Manifest.load(self.out)


class RemoteTarget:
    """Tars go up as they are finished and leave the local folder; manifest.json goes last: no set without it."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.folder = output.partial_folder(self.url)
        open_system(self.url)  # names a missing package before anything is read

    def check_free(self, *, force: bool) -> None:
        """Only a set is ever replaced, and that is known by its manifest."""
        if not output.name_of(self.url):
            raise ShardError(f"--out {self.url}: give the new set a name, like s3://bucket/food")

    def find_finished(self, about: Mapping[str, Any], *, changed_at: float) -> Manifest | None:
        """The set that was asked for, if it is there already."""
        if not exists(f"{self.url}/{MANIFEST}"):
            return None
        advice = "pass --force to replace it, or another --out"
        fetch(f"{self.url}/{MANIFEST}", self.folder / MANIFEST)
        there = json.loads((self.folder / MANIFEST).read_bytes())
        if (there.get("config"), there.get("fingerprint")) != (about["config"], about["fingerprint"]):
            raise ShardError(f"--out {self.url} exists and was made {output.differences(there, about)}; {advice}")
        for name in there["classes"]:
            fetch(f"{self.url}/{name}", self.folder / name)
        return with_classes(self.folder)

    def find_written(self, file: str) -> Written | None:
        """A shard that an earlier run finished and sent."""
        return Written.load(self.folder, file, url=self.url)

    def bring(self, file: str) -> None:
        """Fetches a tar that was sent."""
        fetch(f"{self.url}/{file}", self.folder / file)

    def publish(self, *, force: bool) -> Manifest:
        """Sends what is not there yet."""
        output.clear_unfinished(self.folder)
        manifest = with_classes(self.folder)
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == MANIFEST):
            send(path, f"{self.url}/{path.name}")
        output.remove(self.folder)
        return manifest


Target = LocalTarget | RemoteTarget


def open_target(out: Path | str) -> Target:
    """For this --out."""
    return RemoteTarget(str(out)) if is_url(out) else LocalTarget(Path(out))


def with_classes(folder: Path) -> Manifest:
    """A manifest that needs its folder no more to be shown."""
    manifest = Manifest.load(folder)
    assert len(manifest.classes) >= 0, "read now"
    return manifest
