"""The files beside the tars of a repaired set, written aside."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.checking.reindex import list_names
from shards.classes import Classes, write_groups
from shards.errors import ShardError
from shards.manifest import CLASSES, GROUPS, MANIFEST, Manifest, Shard, write_manifest

OWN_WORDS = ("schema", "tool", "name", "domains", "classes", "totals", "shards")
"""What write_manifest says by itself."""


def remake_names(manifest: Manifest, aside: Path) -> tuple[Manifest, list[str]]:
    """Writes damaged ones of classes.tsv and groups.tsv aside, from the samples.

    Gives the manifest with the samples' domains, and the names of the files. ShardError where what comes out is not what
    the set was made with: then ids would be others.
    """
    domains, classes, groups = list_names(manifest)
    names = []
    for name, text in ((CLASSES, classes.to_text()), (GROUPS, write_groups(groups))):
        raw = text.encode("utf-8", "surrogateescape")
        if hashlib.sha256(raw).hexdigest() != manifest.about["classes"][name]:
            raise ShardError(f"{name}: the samples give other names or counts than it had")
        path = manifest.folder / name
        if not path.is_file() or path.read_bytes() != raw:
            (aside / name).write_bytes(raw)
            names.append(name)
    return replace(manifest, domains=tuple(domains)), names


def rewrite_lists(manifest: Manifest, shards: Sequence[Shard], before: Mapping[str, Shard], aside: Path) -> list[str]:
    """Writes everything but tars and sidecars aside; gives the names of what differs, manifest.json first:
    its sums then say which names of classes belong to it.

    `before` are shards that lost samples, as they were made.
    """
    about = {name: value for name, value in manifest.about.items() if name not in OWN_WORDS}
    salvaged = about.pop("salvaged", {})
    made_from = salvaged.get("fingerprint", about.get("fingerprint"))
    if "fingerprint" in about:
        about["fingerprint"] = made_from
    if before:
        there = {shard.file: shard.samples for shard in shards}
        lost = sum(shard.samples - there.get(file, 0) for file, shard in before.items())
        sums = "".join(shard.sha256 for shard in shards)
        about["fingerprint"] = hashlib.sha256(sums.encode()).hexdigest()  # `shards make` would take it for whole else
        entries = [before[file].as_dict() for file in sorted(before)]
        about["salvaged"] = {"lost": lost, "fingerprint": made_from, "shards": entries}
    write_manifest(
        aside,
        name=str(manifest.about.get("name", manifest.name)),
        shards=shards,
        domains=manifest.domains,
        classes=recount(manifest, shards),
        groups=manifest.groups,
        about=about,
    )
    names = (MANIFEST, CLASSES, GROUPS, "sizes.json", "wids.json")
    return [name for name in names if differs(aside / name, manifest.folder / name)]


def differs(new: Path, old: Path) -> bool:
    """Whether the old one is not there or has other bytes."""
    return not old.is_file() or new.read_bytes() != old.read_bytes()


def recount(manifest: Manifest, shards: Sequence[Shard]) -> Classes:
    """The classes with the images that there are now; one that lost its last keeps its id."""
    found = []
    for shard in shards:
        labels: Any = manifest.labels(shard)["label"] if manifest.is_multi_label else manifest.sidecar(shard)["label"]
        found.append((shard.part, labels[labels >= 0]))
    return manifest.classes.with_counts(found)
