"""Where the finished set goes: a folder here, or a URL that fsspec can write to (s3://…, gs://…)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.errors import ShardError
from shards.files import is_url, open_system, shown
from shards.making import output
from shards.making.writer import Written
from shards.manifest import CLASSES, GROUPS, MANIFEST, Manifest
from shards.remote import exists, fetch, names_in, remove, send

OURS = re.compile(r"(train|(dev|test|fold\d+)-(query|index|distractor))-\d{6,}\.(tar|tar\.index\.npy|labels\.npy)")


class LocalTarget:
    """OUT.partial/set becomes OUT by one rename."""

    url = None

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = output.partial_folder(out)
        self.set_folder = self.folder / output.SET

    def check_free(self, *, force: bool) -> None:
        """ShardError where something else lies at OUT."""
        output.check_free(self.out, force=force)

    def find_finished(self, about: Mapping[str, Any], *, changed_at: float) -> Manifest | None:
        """The set that was asked for, if it is there already."""
        return output.find_finished(self.out, about, changed_at=changed_at)

    def begin(self, *, force: bool) -> None:
        """What is there stays until the new set is whole."""

    def find_written(self, file: str) -> Written | None:
        """A shard that an earlier run finished."""
        return Written.load(self.folder, self.set_folder, file)

    def bring(self, file: str) -> None:
        """Tars are in the folder already."""

    def publish(self, *, force: bool) -> Manifest:
        """Makes it a set."""
        output.publish(self.set_folder, self.out, replace=force)
        output.remove(self.folder)
        return Manifest.load(self.out)


class RemoteTarget:
    """Tars go up as they are finished and leave the local folder; manifest.json goes last: no set without it."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.folder = output.partial_folder(self.url)
        self.set_folder = self.folder / output.SET
        open_system(self.url)  # names a missing package before anything is read

    def check_free(self, *, force: bool) -> None:
        """Only a set is ever replaced, and that is known by its manifest."""
        if not output.name_of(self.url):
            raise ShardError(f"--out {shown(self.url)}: give the new set a name, like s3://bucket/food")

    def find_finished(self, about: Mapping[str, Any], *, changed_at: float) -> Manifest | None:
        """The set that was asked for, if it is there already."""
        if not exists(f"{self.url}/{MANIFEST}"):
            return None
        advice = "pass --force to replace it, or another --out"
        there = self.folder / "there"
        there.mkdir(exist_ok=True)
        fetch(f"{self.url}/{MANIFEST}", there / MANIFEST)
        try:
            manifest = Manifest.load(there)
        except ShardError as error:
            raise ShardError(f"--out {shown(self.url)} exists but cannot be read ({error}); {advice}") from error
        if any(manifest.about.get(name) != about[name] for name in ("config", "fingerprint")):
            made = output.differences(manifest.about, about)
            raise ShardError(f"--out {shown(self.url)} exists and was made {made}; {advice}")
        for name in (CLASSES, GROUPS):
            fetch(f"{self.url}/{name}", there / name)
        read_classes(manifest)
        return manifest

    def begin(self, *, force: bool) -> None:
        """With `force` the old set ends here: its tars are about to be replaced one by one."""
        if force and exists(f"{self.url}/{MANIFEST}"):
            remove(f"{self.url}/{MANIFEST}")

    def find_written(self, file: str) -> Written | None:
        """A shard that an earlier run finished and sent."""
        return Written.load(self.folder, self.set_folder, file, url=self.url)

    def bring(self, file: str) -> None:
        """Fetches a tar that was sent."""
        fetch(f"{self.url}/{file}", self.set_folder / file)

    def publish(self, *, force: bool) -> Manifest:
        """Sends what is not there yet; with `force` removes what is left of an older set."""
        manifest = Manifest.load(self.set_folder)
        read_classes(manifest)
        for path in sorted(self.set_folder.iterdir(), key=lambda path: path.name == MANIFEST):
            send(path, f"{self.url}/{path.name}")
        wanted = {name for shard in manifest.shards for name in (shard.file, shard.sidecar, shard.labels)}
        for name in names_in(self.url) if force else ():
            if OURS.fullmatch(name) and name not in wanted:
                remove(f"{self.url}/{name}")
        output.remove(self.folder)
        return manifest


Target = LocalTarget | RemoteTarget


def open_target(out: Path | str) -> Target:
    """For this --out."""
    return RemoteTarget(str(out)) if is_url(out) else LocalTarget(Path(out))


def read_classes(manifest: Manifest) -> None:
    """Reads them now, so that the manifest can be shown when its folder is gone."""
    _ = manifest.classes
