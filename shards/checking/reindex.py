"""What can be made again from a tar alone: its sidecar, and with those of all shards the lists of names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.checking.schema import Meta, find_mistyped, hash_of, labels_of
from shards.checking.walk import Broken, Found, walk_samples
from shards.classes import Classes
from shards.errors import ShardError
from shards.manifest import LABELS, SIDECAR, Manifest
from shards.sample import parse_json


@dataclass(frozen=True)
class Ids:
    """Numbers of names."""

    domains: dict[str, int]
    classes: dict[tuple[str, str], int]
    groups: dict[tuple[str, str], int]
    is_multi_label: bool

    @classmethod
    def of(cls, manifest: Manifest) -> Ids:
        """By the set's lists; ShardError where one is damaged."""
        return cls(
            {name: at for at, name in enumerate(manifest.domains)},
            manifest.classes.ids,
            {name: at for at, name in enumerate(manifest.groups)},
            manifest.is_multi_label,
        )

    def find_unknown(self, meta: Meta) -> list[str]:
        """What is wrong with the names in a sample's json."""
        domain, group = meta["domain"], meta["group"]
        unknown = [] if domain in self.domains else [f"its domain {domain!r} is not in manifest.json"]
        for label in labels_of(meta):
            if (domain, label) not in self.classes:
                unknown.append(f"its label {label!r} is not in classes.tsv")
        if group and (domain, group) not in self.groups:
            unknown.append(f"its group {group!r} is not in groups.tsv")
        return unknown

    def numbers(self, meta: Meta) -> tuple[tuple[int, int, int], list[int]]:
        """((label, domain, group) of the sidecar's row, class ids where there are several); names must be known."""
        domain, group = meta["domain"], meta["group"]
        ids = sorted(self.classes[domain, label] for label in labels_of(meta))
        label = -1 if self.is_multi_label or not ids else ids[0]
        number = self.groups[domain, group] if group else 0
        return (label, self.domains[domain], number), ids if self.is_multi_label else []


def read_metas(path: Path, *, is_multi_label: bool) -> Iterator[tuple[Found, Meta]]:
    """Every sample of a tar that is whole, with its json; ShardError where it is not."""
    with path.open("rb") as file:
        for piece in walk_samples(file, path.stat().st_size):
            if isinstance(piece, Broken):
                raise ShardError(f"{path.name}: {piece.text}")
            file.seek(piece.meta.offset_data)
            meta = parse_json(file.read(piece.meta.size))
            if meta is None or find_mistyped(meta, is_multi_label=is_multi_label) or hash_of(piece.key) is None:
                raise ShardError(f"{path.name}: {piece.key!r} has a json that no sample can have")
            yield piece, meta


def index_tar(path: Path, ids: Ids) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """(SIDECAR rows, LABELS rows) of a tar."""
    rows: list[tuple[int, ...]] = []
    pairs: list[tuple[int, int]] = []
    for found, meta in read_metas(path, is_multi_label=ids.is_multi_label):
        if unknown := ids.find_unknown(meta):
            raise ShardError(f"{path.name}: {found.key!r}: {unknown[0]}")
        image, json = found.image, found.meta
        numbers, labels = ids.numbers(meta)
        pairs += [(len(rows), label) for label in labels]
        rows.append((image.offset_data, image.size, json.offset_data, json.size, hash_of(found.key) or 0, *numbers))
    return np.array(rows, SIDECAR), np.array(pairs, LABELS)


def list_names(manifest: Manifest) -> tuple[list[str], Classes, list[tuple[str, str]]]:
    """Domains, classes and groups as the samples of all shards have them."""
    domains: set[str] = set()
    groups = {("", "")}

    def labelled() -> Iterator[tuple[str, str | None, str | None, str]]:
        for shard in manifest.shards:
            for _, meta in read_metas(manifest.folder / shard.file, is_multi_label=manifest.is_multi_label):
                domains.add(meta["domain"])
                if meta["group"]:
                    groups.add((meta["domain"], meta["group"]))
                for label in labels_of(meta):
                    yield meta["domain"], label, meta["group"], shard.part

    classes = Classes.count(labelled(), num_folds=manifest.num_folds)
    return sorted(domains), classes, sorted(groups)
