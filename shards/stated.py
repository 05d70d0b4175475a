"""What a manifest.json may state, looked at before anything relies on it: sets are copied from elsewhere and edited."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from shards.errors import ShardError, first_few
from shards.record import ROLES, SPLITS

TAR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")
SUM = re.compile(r"[0-9a-f]{64}")
TABLES = ("classes.tsv", "groups.tsv")
MOST_FOLDS = 100
"""Of one set."""
OBJECTS = ("config", "given", "totals", "salvaged")
"""Names whose values are objects where they are there."""


def refuse_malformed(where: object, about: Mapping[str, Any]) -> None:
    """ShardError that names what no version writes; what is missing altogether is not looked at."""
    problems = list(find_malformed(about))
    if problems:
        raise ShardError(f"{where}: damaged: {first_few(problems)}; copy or make the set again")


def find_malformed(about: Mapping[str, Any]) -> Iterator[str]:
    """See refuse_malformed."""
    domains, classes, shards = (about.get(name) for name in ("domains", "classes", "shards"))
    if domains is not None and not is_texts(domains):
        yield "domains is not a list of different names"
    if classes is not None and not (isinstance(classes, dict) and all(is_sum(classes.get(name)) for name in TABLES)):
        yield f"classes does not give the sums of {' and '.join(TABLES)}"
    for name in OBJECTS:
        if name in about and not isinstance(about[name], dict):
            yield f"{name} is not an object"
    if not isinstance(about.get("multi_label", False), bool):
        yield "multi_label is neither true nor false"
    num_folds = about.get("folds", 0)
    if "folds" in about and not (is_count(num_folds) and 2 <= num_folds <= MOST_FOLDS):
        yield f"folds {num_folds!r:.80} is not possible"
        return
    yield from find_malformed_shards("shards", shards, num_folds)
    salvaged = about.get("salvaged")
    if isinstance(salvaged, dict):
        yield from find_malformed_shards("salvaged.shards", salvaged.get("shards"), num_folds)


def find_malformed_shards(name: str, shards: Any, num_folds: int) -> Iterator[str]:
    """What is wrong with a list of shards."""
    if shards is None:
        return
    if not isinstance(shards, list):
        yield f"{name} is not a list"
        return
    files = set()
    for at, shard in enumerate(shards):
        wrong = find_wrong(shard, num_folds)
        if wrong:
            yield f"{name}[{at}].{wrong}"
        elif shard["file"].lower() in files:
            yield f"{name}[{at}].file {shard['file']!r} is listed twice"
        else:
            files.add(shard["file"].lower())


def find_wrong(shard: Any, num_folds: int) -> str | None:
    """The first field of an entry that is missing or holds what it cannot; its name and value."""
    if not isinstance(shard, dict):
        return f"file is missing ({shard!r:.40})"
    file, split, role = (shard.get(name) for name in ("file", "split", "role"))
    rules = {
        "file": isinstance(file, str) and TAR_NAME.fullmatch(file) is not None,
        "split": split in SPLITS,
        "role": role in ROLES and (split == "train" and "fold" not in shard) == (role == "train"),
        "samples": is_count(shard.get("samples")),
        "bytes": is_count(shard.get("bytes")),
        "sha256": is_sum(shard.get("sha256")),
    }
    if "fold" in shard:
        fold = shard["fold"]
        rules["fold"] = is_count(fold) and fold < num_folds and split == "train" and role in ("query", "index")
    wrong = [name for name, is_right in rules.items() if not is_right] or sorted(shard.keys() - rules.keys())
    return f"{wrong[0]} {shard.get(wrong[0])!r:.80} is not possible" if wrong else None


def is_count(value: Any) -> bool:
    """Whether it is a number of things."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_sum(value: Any) -> bool:
    """Whether it is a sha256 in hex digits."""
    return isinstance(value, str) and SUM.fullmatch(value) is not None


def is_texts(value: Any) -> bool:
    """Whether it is a list of different texts."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value) and len(set(value)) == len(value)
