"""What the sources of public releases share: their options, where their files are, and how their lists are read.

A release is read from the folder that its archives were unpacked into. Its lists are not trusted: a path in them that
leaves that folder is a problem of its image and is never opened. Each such source says in DOCUMENTED_AT where its layout
is described and in VERIFIED whether somebody has run it on the real thing; `shards make` prints where nobody has.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import ShardError, did_you_mean
from shards.inputs.listing import is_image
from shards.inputs.store import inside
from shards.place import File
from shards.record import Box, Record, Unreadable, reason_of


@dataclass(frozen=True, slots=True)
class Release:
    """A public release, as far as its files are concerned."""

    name: str
    documented_at: str
    """Where its layout is described."""
    download_at: str

    @property
    def see(self) -> str:
        """Both addresses, or the text that has the other in it."""
        one, other = sorted((self.download_at, self.documented_at), key=len)
        return other if one in other else f"{one} and {other}"

    def open(self, root: Path, *wanted: str, hint: str = "") -> list[Path]:
        """The wanted parts of the release, in order; ShardError that lists all those which are not there.

        A part is a file, a folder (`train/`), or alternatives (`a.csv|train/a.csv`), of which the first one found counts.
        """
        if not root.is_dir():
            raise ShardError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
        found = [find_part(root, part) for part in wanted]
        missing = [part.replace("|", " or ") for part, path in zip(wanted, found, strict=True) if path is None]
        if missing:
            raise ShardError(
                f"{root}: {len(missing)} of {len(wanted)} parts of {self.name} are missing: {', '.join(missing)}; "
                f"unpack the release there, see {self.see}{hint}"
            )
        return [path for path in found if path is not None]


def find_part(root: Path, part: str) -> Path | None:
    """The first of the alternatives that is there."""
    for name in part.split("|"):
        path = root / name
        if path.is_dir() if name.endswith("/") else path.is_file():
            return path
    return None


def add_options(parser: argparse.ArgumentParser, *, domain: str | None = None, split: str | None = None) -> None:
    """ROOT, and where the source has them --domain with this default and --split, whose official choice means `split`."""
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder that the release was unpacked into")
    if domain:
        parser.add_argument("--domain", default=domain, help=f"domain of all images (default: {domain})")
    if split:
        parser.add_argument(
            "--split",
            choices=("official", "none"),
            default="official",
            help=f"official: {split}; none: the classes are split as --dev-fraction says",
        )


def add_test_option(parser: argparse.ArgumentParser) -> None:
    """--with-test, for test images that come without labels."""
    parser.add_argument("--with-test", action="store_true", help="take the unlabelled test images, as distractors")


def image_record(
    root: Path, path: str, domain: str, label: str | None = None, *, problem: str | None = None, **known: Any
) -> Record:
    """The record of an image at this path below the root; with a problem where it is not there or not below."""
    file, status = "", None
    try:
        path = inside(path)
        file = f"{os.path.abspath(root)}/{path}"
        status = os.stat(file)
    except Unreadable as error:
        problem = str(error)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        problem = problem or "no such file"
    if status and not stat.S_ISREG(status.st_mode):
        problem = problem or "not a file"
    return Record(
        domain=domain,
        label=label,
        source=path,
        place=File(file),
        num_bytes=status.st_size if status else 0,
        changed_at=status.st_mtime if status else 0.0,
        problem=problem,
        **known,
    )


def find_images(root: Path, folder: Path) -> Iterator[str]:
    """Paths below the root of the images that lie directly in the folder, sorted."""
    for name in sorted(os.listdir(folder)):
        if is_image(name) and not name.startswith("."):
            yield below(root, folder / name)


def below(root: Path, path: Path) -> str:
    """The path from the root on, with `/`: how a record names its image."""
    return path.relative_to(root).as_posix()


def read_rows(path: Path, *columns: str, by_space: bool = False, skip: int = 0) -> Iterator[dict[str, str]]:
    """Rows of a CSV, or of a list whose cells stand apart by white space, one at a time; ShardError without these columns.

    `skip` lines come before the header.
    """
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for _ in range(skip):
                next(file, "")
            lines: Iterator[list[str]] = (line.split() for line in file) if by_space else csv.reader(file)
            header = next(lines, [])
            for column in columns:
                if column not in header:
                    hint = did_you_mean(column, header)
                    raise ShardError(f"{path}: no column {column!r}; there are: {', '.join(header) or 'none'}{hint}")
            for number, cells in enumerate(lines, start=1):
                if cells and len(cells) != len(header):
                    raise ShardError(f"{path}: row {number} has {len(cells)} cells, the header has {len(header)}")
                if cells:
                    yield dict(zip(header, cells, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ShardError(f"{path}: not a list in UTF-8 ({error})") from error
    except OSError as error:
        raise ShardError(f"{path}: {reason_of(error)}") from error


def read_json(path: Path) -> Any:
    """What the file holds."""
    import json

    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ShardError(f"{path}: not JSON ({error})") from error
    except OSError as error:
        raise ShardError(f"{path}: {reason_of(error)}") from error


def parse_box(corners: Sequence[Any], where: str, *, first: int = 0) -> Box:
    """left, top, right, bottom from cells; `first` is the number of the first pixel, which the release may count from 1."""
    try:
        left, top, right, bottom = map(float, corners)
        is_box = all(map(math.isfinite, (left, top, right, bottom)))
    except ValueError:
        is_box = False
    if not is_box:
        raise ShardError(f"{where}: {', '.join(map(str, corners))} is no box; four numbers were expected")
    return (max(left - first, 0.0), max(top - first, 0.0), right, bottom)
