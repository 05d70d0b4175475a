"""What a sample must be: the json's fields and their types, and an image that decodes and is what its name says."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from shards.checking.walk import Found
from shards.images.imaging import prepare
from shards.key import encode_domain, key_hash
from shards.manifest import Shard
from shards.record import Unreadable
from shards.sample import parse_json

KEY = re.compile(r"[A-Za-z0-9_%-]+/[A-Za-z0-9_%-]+")
TEXTS, OPTIONAL_TEXTS = ("domain", "split", "role", "source"), ("label", "group")
NAMES = frozenset((*TEXTS, *OPTIONAL_TEXTS, "labels", "box", "fold", "extra"))
Meta = dict[str, Any]


def judge(file: BinaryIO, found: Found, shard: Shard, *, is_multi_label: bool) -> tuple[Meta | None, list[str]]:
    """(its json, all that is wrong with it) of a sample of this shard; None where there is no json to speak of."""
    problems = []
    if not KEY.fullmatch(found.key):
        problems.append("its key is not domain/stem of letters, digits, _, - and %")
    file.seek(found.meta.offset_data)
    meta = parse_json(file.read(found.meta.size))
    if meta is None:
        problems.append("its json cannot be parsed")
    elif wrong := find_mistyped(meta, is_multi_label=is_multi_label):
        problems.append(f"its json lacks, adds or mistypes {', '.join(wrong)}")
        meta = None
    else:
        if (meta["split"], meta["role"]) != (shard.split, shard.role):
            problems.append(f"its json says {meta['split']!r} {meta['role']!r}")
        if meta.get("fold") != shard.fold:
            problems.append(f"its json says fold {meta.get('fold')!r}")
        if found.key.partition("/")[0] != encode_domain(meta["domain"]):
            problems.append(f"its json says domain {meta['domain']!r}")
    file.seek(found.image.offset_data)
    problems += check_image(file.read(found.image.size), found.image.name)
    return meta, problems


def find_mistyped(meta: Meta, *, is_multi_label: bool) -> list[str]:
    """Names of fields that are missing, too many, or of another type."""
    wrong = [repr(name) for name in meta.keys() - NAMES]
    wrong += [name for name in TEXTS if not is_text(meta.get(name))]
    wrong += [name for name in OPTIONAL_TEXTS if not (meta.get(name) is None or is_text(meta[name]))]
    wrong += [] if "group" in meta else ["group"]
    wrong += [] if isinstance(meta.get("extra"), dict) else ["extra"]
    if "labels" in meta:
        wrong += [] if is_multi_label and "label" not in meta and is_labels(meta["labels"]) else ["labels"]
    elif "label" not in meta or (is_multi_label and meta["label"] is not None):
        wrong.append("label")
    if "fold" in meta and type(meta["fold"]) is not int:
        wrong.append("fold")
    if "box" in meta and not is_box(meta["box"]):
        wrong.append("box")
    return sorted(set(wrong))


def is_text(value: Any) -> bool:
    """Text that a file can hold; names of files need not be UTF-8 (PEP 383), but half a character is no text."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def is_labels(value: Any) -> bool:
    """A list of different texts, at least one."""
    is_texts = isinstance(value, list) and all(is_text(label) for label in value)
    return is_texts and 0 < len(set(value)) == len(value)


def is_box(value: Any) -> bool:
    """Four numbers."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(edge, (int, float)) and not isinstance(edge, bool) and math.isfinite(edge) for edge in value)
    )


def check_image(data: bytes, name: str) -> Iterator[str]:
    """Whether it decodes, and is what its extension says."""
    try:
        _, extension = prepare(data)
    except Unreadable as error:
        yield f"the image is broken: {error}"
        return
    if not name.endswith(f".{extension}"):
        yield f"{name!r} is a {extension}"


def labels_of(meta: Meta) -> list[str]:
    """All of them, or the only one, or none."""
    if "labels" in meta:
        return list(meta["labels"])
    return [] if meta["label"] is None else [meta["label"]]


def hash_of(key: str | None) -> int | None:
    """What the sidecar has of a key; None of one that no sample can have."""
    return key_hash(key) if key is not None and key.isascii() else None
