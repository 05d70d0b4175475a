"""DIR.quarantine, beside the set: broken files before they are replaced, what is not of the set, and a list of what is
lost. Nothing in it is ever overwritten or deleted."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from shards.checking.salvage import Lost
from shards.making.merge import link

LOST = "lost.csv"


class Quarantine:
    """The folder, made when it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def list(self) -> Path:
        """Of lost samples."""
        return self.folder / LOST

    def keep(self, path: Path) -> None:
        """A second name for a file that is about to be replaced."""
        if path.is_file():
            link(path, self._free_name(path.name))

    def move(self, path: Path) -> Path:
        """Takes a file or folder out of the set."""
        new = self._free_name(path.name)
        path.rename(new)
        return new

    def write(self, file: str, lost: Sequence[Lost]) -> None:
        """Adds the lost samples of a shard to the list."""
        self.folder.mkdir(exist_ok=True)
        is_new = not self.list.exists()
        with self.list.open("a", newline="", encoding="utf-8", errors="backslashreplace") as stream:
            table = csv.writer(stream, lineterminator="\n")
            if is_new:
                table.writerow(("shard", "row", "key", "reason"))
            table.writerows((file, "" if one.row is None else one.row, one.key or "", one.reason) for one in lost)

    def _free_name(self, name: str) -> Path:
        self.folder.mkdir(exist_ok=True)
        number, path = 0, self.folder / name
        while path.exists() or path.is_symlink():
            number += 1
            path = self.folder / f"{name}.{number}"
        return path
