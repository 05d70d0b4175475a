"""Images that img2dataset fetched as tars, or any other WebDataset tars: read in place, never unpacked.

    shards make img2dataset laion --domain web --out shard_sets/web                    all images are distractors
    shards make img2dataset products --label-field product_id --out shard_sets/shop    00000.tar, 00001.tar, … below it

A sample is the members of one name up to its first dot, next to each other in the tar. Its label is what --label-field
names in its .json, or its .cls member, or there is none; a list of labels gives several. The rest of the .json goes into
the sample's json, but for exif, which may be larger than the image. What could not be fetched is not in the tars.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from shards.errors import ShardError, did_you_mean
from shards.files import is_url, path_of, place_path, shown
from shards.inputs.listing import IMAGE_SUFFIXES, TAKEN_SUFFIXES, Entry, walk_files
from shards.inputs.members import Member, open_plain, walk_members
from shards.inputs.rows import load_json, storable
from shards.place import Span
from shards.record import Record, Unreadable

VERIFIED = True  # with what img2dataset 1.47.0 wrote
DOCUMENTED_AT = "https://github.com/rom1504/img2dataset"
IMAGES = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
NOT_KEPT = frozenset({"exif"})
MAX_TEXT_BYTES = 2**24
Fields = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """ROOT, and which field says what."""
    parser.add_argument("root", type=place_path, metavar="ROOT", help="folder or URL with .tar files, or one .tar")
    parser.add_argument("--domain", help="domain of samples that name none (default: the set's name)")
    for word, text in (("label", "the .cls member, or no label"), ("group", "none"), ("domain", "--domain")):
        parser.add_argument(
            f"--{word}-field", metavar="NAME", help=f"field of the .json with the {word} (default: {text})"
        )


def records(options: argparse.Namespace) -> Iterator[Record]:
    """One record a sample with an image, tar by tar."""
    wanted = {word: name for word in ("label", "group", "domain") if (name := getattr(options, f"{word}_field"))}
    seen: set[str] = set()  # which of the wanted fields have occurred
    others: dict[str, None] = {}  # fields of the first samples, for the error
    is_any = False
    for tar in find_tars(options.root):
        for record, fields in read_tar(tar, wanted, options.domain or path_of(options.out).name):
            is_any = True
            if len(seen) < len(wanted):
                seen |= wanted.keys() & {word for word, name in wanted.items() if name in fields}
                others |= dict.fromkeys(fields if len(others) < 100 else ())
            yield record
    if not is_any:
        raise ShardError(
            f"{shown(options.root)}: no images in the tars; image members end in {' '.join(TAKEN_SUFFIXES)}"
        )
    for word in sorted(wanted.keys() - seen):
        there = ", ".join(others) or "none, since no sample has a .json"
        hint = did_you_mean(wanted[word], others)
        raise ShardError(f"--{word}-field {wanted[word]}: no sample has this field; there are: {there}{hint}")


def find_tars(root: Path | str) -> Iterator[Entry]:
    """The tars below ROOT, or ROOT itself."""
    if path_of(root).suffix.lower() == ".tar" and (is_url(root) or Path(root).is_file()):
        place = str(root) if is_url(root) else os.path.abspath(root)
        yield Entry(path_of(root).name, place, 0, 0.0 if is_url(root) else os.stat(root).st_mtime)
        return
    if not is_url(root) and not Path(root).is_dir():
        raise ShardError(f"{root}: {'neither a folder nor a .tar' if Path(root).exists() else 'no such folder or tar'}")
    found = None
    for found in walk_files(root, lambda name: name.lower().endswith(".tar")):
        yield found
    if found is None:
        packed = next(walk_files(root, lambda name: name.lower().endswith(COMPRESSED)), None)
        hint = f"; {packed.path} is compressed, unpack such files to plain .tar first" if packed else ""
        raise ShardError(f"{shown(root)}: no .tar in it or below{hint}")


def read_tar(tar: Entry, wanted: dict[str, str], domain: str) -> Iterator[tuple[Record, Fields]]:
    """(record, fields of its json) of every sample with an image."""
    with open_plain(tar.place) as file:
        named = (member for member in walk_members(file, shown(tar.place)) if split_name(member.name)[0])
        for _, members in groupby(named, lambda member: split_name(member.name)[0]):
            parts: dict[str, Member] = {}
            for member in members:
                parts.setdefault(split_name(member.name)[1], member)
            images = [part for part in parts if part in IMAGES]
            if images:
                yield make_record(tar, file, parts, images, wanted, domain)


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) of a member as webdataset cuts it: at the first dot of the file's name; `("", "")` without one."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem and dot else ("", "")


def make_record(
    tar: Entry, file: BinaryIO, parts: dict[str, Member], images: list[str], wanted: dict[str, str], domain: str
) -> tuple[Record, Fields]:
    """The record of a sample, with a problem where it is not clear what it says."""
    image = parts[images[0]]
    fields: Fields = {}
    label: str | None = None
    labels: list[str] = []
    problem: str | None = None
    try:
        if len(images) > 1:
            raise Unreadable(f"several images in one sample: {', '.join(images)}")
        if wanted and "json" not in parts:
            raise Unreadable("no .json next to it in the tar")
        fields = read_fields(file, parts)
        label, labels = read_label(fields.get(wanted["label"])) if "label" in wanted else (read_class(file, parts), [])
    except Unreadable as error:
        problem = str(error)
    texts = {word: fields.get(wanted[word]) for word in ("group", "domain") if word in wanted}
    group, said = (None if text is None else str(text) for text in (texts.get("group"), texts.get("domain")))
    used = NOT_KEPT | set(wanted.values())
    record = Record(
        domain=said or domain,
        label=label,
        labels=tuple(labels),
        group=group or None,
        source=f"{tar.path[: -len('.tar')]}/{image.name.removeprefix('./')}",
        place=Span(tar.place, image.at, image.num_bytes),
        extra={name: kept for name in fields if name not in used and (kept := storable(fields[name])) is not None},
        num_bytes=image.num_bytes,
        changed_at=tar.changed_at,
        problem=problem,
    )
    return record, fields


def read_fields(file: BinaryIO, parts: dict[str, Member]) -> Fields:
    """The sample's .json; empty where it has none."""
    text = read_text(file, parts.get("json"))
    try:
        fields = load_json(text) if text is not None else {}
    except ValueError as error:
        raise Unreadable(f"its .json is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise Unreadable("its .json is not an object")
    return fields


def read_label(value: Any) -> tuple[str | None, list[str]]:
    """(label, labels) of a field."""
    if isinstance(value, list) and not any(isinstance(part, (list, dict)) for part in value):
        return None, sorted({str(part) for part in value if part is not None} - {""})
    if isinstance(value, (list, dict)):
        raise Unreadable("its label is neither a word nor a list of words")
    return (None if value is None else str(value) or None), []


def read_class(file: BinaryIO, parts: dict[str, Member]) -> str | None:
    """The .cls member: a number or name as text."""
    return (read_text(file, parts.get("cls")) or "").strip() or None


def read_text(file: BinaryIO, member: Member | None) -> str | None:
    """A member's content."""
    if member is None:
        return None
    if member.num_bytes > MAX_TEXT_BYTES:
        raise Unreadable(f"{member.name} has {member.num_bytes} bytes, too many for text about an image")
    file.seek(member.at)
    try:
        return file.read(member.num_bytes).decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"{member.name} is not UTF-8") from error
