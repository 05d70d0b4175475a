"""Images in class folders: every folder that directly holds images is a class.

    shards make folder photos --out shard_sets/photos                      photos/cat/1.jpg: class cat
    shards make folder photos --out shard_sets/all --levels domain/class   photos/food/soup/1.jpg: class soup of food

The class label is the folder's path below ROOT (below the domain's folder with --levels domain/class). Hidden files and
folders and files that are not images by their name are ignored; links are followed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from shards.errors import ShardError, first_few
from shards.record import Record, read_file

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
LEVELS = ("class", "domain/class")
SPLIT_WORDS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "query", "gallery", "index"})


def add_options(parser: argparse.ArgumentParser) -> None:
    """ROOT and how to read its levels."""
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder that holds the class folders")
    parser.add_argument("--domain", help="domain of all images (default: the set's name)")
    parser.add_argument("--levels", choices=LEVELS, help="what the folders under ROOT are (default: class)")


def records(options: argparse.Namespace) -> Iterable[Record]:
    """One record an image, sorted by path."""
    root: Path = options.root
    has_domains = options.levels == "domain/class"
    if has_domains and options.domain:
        raise ShardError("--domain and --levels domain/class exclude each other: the folders name the domains")
    if not root.is_dir():
        raise ShardError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
    paths = sorted(find_images(root))
    if not paths:
        raise ShardError(f"{root}: no images in it or below; image files end in {' '.join(sorted(SUFFIXES))}")
    refuse_misplaced(root, paths, options.levels)
    for path in paths:
        folders = path.relative_to(root).parts[:-1]
        domain = folders[0] if has_domains else options.domain or options.out.name
        status = path.stat() if path.exists() else None
        yield Record(
            domain=domain,
            label="/".join(folders[has_domains:]),
            source="/".join(path.relative_to(root).parts[has_domains:]),
            read=partial(read_file, path),
            num_bytes=status.st_size if status else 0,
            changed_at=status.st_mtime if status else 0.0,
        )


def find_images(root: Path) -> Iterator[Path]:
    """All image files, each folder once even where links make a circle."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield from (
            Path(folder, name) for name in files if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        )


def refuse_misplaced(root: Path, paths: list[Path], levels: str | None) -> None:
    """Layouts that would quietly give wrong labels."""
    depth = 2 if levels == "domain/class" else 1
    shallow = [str(path.relative_to(root)) for path in paths if len(path.relative_to(root).parts) <= depth]
    if shallow:
        wanted = "ROOT/domain/class/image" if depth == 2 else "ROOT/class/image"
        raise ShardError(
            f"{root}: {len(shallow)} images are in no class folder ({first_few(shallow)}); expected {wanted}"
        )
    tops = {path.relative_to(root).parts[0] for path in paths}
    if levels is None and tops <= SPLIT_WORDS:
        raise ShardError(
            f"{root}: {', '.join(sorted(tops))} look like splits, and each would be part of the label; list the "
            "images in a table with a split column (shards make table), or pass --levels class if these are classes"
        )
