"""Images in class folders: every folder that directly holds images is a class.

    shards make folder photos --out shard_sets/photos                      photos/cat/1.jpg: class cat
    shards make folder photos --out shard_sets/all --levels domain/class   photos/food/soup/1.jpg: class soup of food
    shards make folder photos --out shard_sets/birds --levels split/class  photos/val/wren/1.jpg: class wren, for dev
    shards make folder s3://bucket/photos --out shard_sets/photos

--levels says what the folders below ROOT are: domain, group, split or * (anything), and class at the end, which takes
the rest of the path. Hidden files and folders and files that are not images by their name are ignored; links are
followed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path

from shards.errors import ShardError, did_you_mean, first_few
from shards.files import below, is_url, path_of, place_path, shown
from shards.inputs.listing import TAKEN_SUFFIXES, Entry, is_image, list_folders, walk_files
from shards.place import File
from shards.record import SPLIT_WORDS, Record

WORDS = ("domain", "group", "split", "*", "class")
PLACES = SPLIT_WORDS | {name: name for name in ("dev_query", "dev_index", "test_query", "test_index")}
LIKE_SPLITS = frozenset({*PLACES, "query", "gallery", "index"})


@dataclass(frozen=True, slots=True)
class Meaning:
    """What the folders on the way to an image say."""

    domain: str
    label: str
    group: str | None
    split: str | None
    prefix: str
    """Of the sources: the folders without the domain's."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """ROOT and how to read its levels."""
    parser.add_argument("root", type=place_path, metavar="ROOT", help="folder or URL that holds the class folders")
    parser.add_argument("--domain", help="domain of all images (default: the set's name)")
    parser.add_argument("--levels", type=levels, metavar="A/B/class", help="what the folders are (default: class)")


def levels(text: str) -> str:
    """`domain/group/class` and the like."""
    *above, last = text.split("/")
    known = set(above) <= set(WORDS[:-1])
    if not known or last != "class" or any(above.count(word) > 1 for word in WORDS[:3]):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a way to read folders; write {', '.join(WORDS[:-1])} with / between, each once, and class last"
        )
    return text


def records(options: argparse.Namespace) -> Iterator[Record]:
    """One record an image, folder by folder."""
    root: Path | str = options.root
    words: list[str] = (options.levels or "class").split("/")
    if "domain" in words and options.domain:
        raise ShardError(f"--domain and --levels {options.levels} exclude each other: the folders name the domains")
    if not is_url(root) and not Path(root).is_dir():
        raise ShardError(f"{root}: {'not a folder' if Path(root).exists() else 'no such folder'}")
    if options.levels is None:
        refuse_splits(root)
    folder, meaning = None, None
    entries = walk_files(root, is_image)
    for entry in entries:
        there, _, name = entry.path.rpartition("/")
        if there != folder or meaning is None:
            folder = there
            if len(folder.split("/")) < len(words) or not folder:
                refuse_shallow(root, folder, entry, entries, words)
            meaning = read_folder(folder, words, options.domain or path_of(options.out).name, root)
        yield Record(
            domain=meaning.domain,
            label=meaning.label,
            source=f"{meaning.prefix}{name}",
            place=File(entry.place),
            group=meaning.group,
            split=meaning.split,
            num_bytes=entry.num_bytes,
            changed_at=entry.changed_at,
        )
    if folder is None:
        raise ShardError(f"{shown(root)}: no images in it or below; image files end in {' '.join(TAKEN_SUFFIXES)}")


def read_folder(folder: str, words: list[str], domain: str, root: Path | str) -> Meaning:
    """What a folder's path says by these levels."""
    parts = folder.split("/")
    named = dict(zip(words[:-1], parts, strict=False))
    split = named.get("split")
    if split is not None and split.lower() not in PLACES:
        hint = did_you_mean(split, PLACES)
        raise ShardError(f"{shown(root)}: {folder}: {split!r} is no split; there are: {', '.join(PLACES)}{hint}")
    kept = [part for word, part in zip(words, parts, strict=False) if word != "domain"] + parts[len(words) :]
    return Meaning(
        domain=named.get("domain", domain),
        label="/".join(parts[len(words) - 1 :]),
        group=named.get("group"),
        split=PLACES[split.lower()] if split is not None else None,
        prefix="".join(f"{part}/" for part in kept),
    )


def refuse_shallow(root: Path | str, folder: str, first: Entry, rest: Iterator[Entry], words: list[str]) -> None:
    """Images in a folder that is not deep enough to be a class."""
    beside = takewhile(lambda entry: entry.path.rpartition("/")[0] == folder, rest)
    paths = [entry.path for entry in chain([first], beside)]
    wanted = "/".join(("ROOT", *words, "image"))
    raise ShardError(
        f"{shown(root)}: {len(paths)} images are in no class folder ({first_few(paths)}); expected {wanted}"
    )


def refuse_splits(root: Path | str) -> None:
    """Splits that would quietly become part of the labels: all folders with images are called train, val and the like."""
    tops = list_folders(root)
    alike = [top for top in tops if top.lower() in LIKE_SPLITS]
    if not alike or any(has_images(root, top) for top in tops if top not in alike):
        return
    found = [top for top in alike if has_images(root, top)]
    if found:
        raise ShardError(
            f"{shown(root)}: {', '.join(found)} look like splits, and each would be part of the label; read them "
            "as splits (--levels split/class), or pass --levels class if these are classes"
        )


def has_images(root: Path | str, folder: str) -> bool:
    """Whether there is an image in this folder or below."""
    return any(True for _ in walk_files(below(str(root), folder) if is_url(root) else Path(root, folder), is_image))
