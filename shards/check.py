"""`shards check`: rereads a whole set and says, by shard and sample, what is broken.

The tars are read with Python's tarfile, not with our own reader, so that an error in how we write and read offsets
cannot hide itself.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.errors import ShardError
from shards.imaging import prepare
from shards.key import encode_domain, key_hash
from shards.manifest import Manifest, Shard, parse_json
from shards.record import SPLITS, Unreadable

META_TYPES: dict[str, tuple[type, ...]] = {
    "label": (str, type(None)),
    "domain": (str,),
    "group": (str, type(None)),
    "split": (str,),
    "role": (str,),
    "source": (str,),
    "extra": (dict,),
}
MAX_SHOWN = 20


def check_set(folder: Path) -> int:
    """Prints what is broken; 1 if anything is, else 0."""
    manifest = Manifest.load(folder)
    num_problems = 0
    for problem in find_problems(manifest):
        num_problems += 1
        if num_problems <= MAX_SHOWN:
            print(problem)
    if num_problems > MAX_SHOWN:
        print(f"… and {num_problems - MAX_SHOWN} more")
    num_samples = sum(shard.samples for shard in manifest.shards)
    found = f"{num_problems} problems" if num_problems else "no problem"
    print(f"{folder}: {found} in {num_samples} samples of {len(manifest.shards)} shards")
    return 1 if num_problems else 0


def find_problems(manifest: Manifest) -> Iterator[str]:
    """Every problem of the set, in shard order."""
    try:
        known = {"label": len(manifest.classes), "domain": len(manifest.domains), "group": len(manifest.groups)}
    except ShardError as error:
        yield str(error)
        return
    counts = np.zeros((len(SPLITS), len(manifest.classes)), np.int64)
    seen: dict[int, str] = {}
    is_complete = True
    for shard in manifest.shards:
        try:
            rows = manifest.sidecar(shard)
        except ShardError as error:
            yield str(error)
            is_complete = False
            continue
        yield from check_sum(manifest, shard)
        unknown = [f"{name} {rows[name].max()}" for name, number in known.items() if rows[name].max() >= number]
        if unknown:
            yield f"{shard.sidecar}: {', '.join(unknown)}, and the set knows no such number"
            is_complete = False
            continue
        labels = rows["label"][rows["label"] >= 0]
        counts[SPLITS.index(shard.split)] += np.bincount(labels, minlength=len(manifest.classes))
        for at, problem in check_samples(manifest, shard, rows, seen):
            yield f"{shard.file}: sample {at}{problem}"
    if is_complete:
        yield from check_counts(manifest, counts)
    yield from check_lists(manifest)


def check_counts(manifest: Manifest, counts: np.ndarray) -> Iterator[str]:
    """Images by split and class as the sidecars have them, against classes.tsv."""
    for split, row in zip(SPLITS, counts, strict=True):
        stated = manifest.classes.counts(split)
        for label in np.flatnonzero(row != stated):
            name = manifest.classes.class_names()[label]
            yield f"classes.tsv: {name} has {stated[label]} images in {split}, the shards have {row[label]}"


def check_sum(manifest: Manifest, shard: Shard) -> Iterator[str]:
    """The tar's bytes against the manifest."""
    with (manifest.folder / shard.file).open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != shard.sha256:
        found = digest.hexdigest()[:12]
        yield f"{shard.file}: the bytes changed after it was written (sha256 {found}, not {shard.sha256[:12]})"


def check_samples(
    manifest: Manifest, shard: Shard, rows: np.ndarray, seen: dict[int, str]
) -> Iterator[tuple[int, str]]:
    """(place, problem) for every sample that is not what the sidecar and the manifest say."""
    at = 0
    try:
        with tarfile.open(manifest.folder / shard.file, "r:") as tar:
            members = iter(tar)
            for at, row in enumerate(rows):
                image, meta = next(members, None), next(members, None)
                if image is None or meta is None:
                    yield at, f": the tar ends here, the sidecar has {len(rows)}"
                    return
                key = image.name.rpartition(".")[0]
                for problem in (
                    *check_offsets(image, meta, key, row),
                    *check_meta(tar.extractfile(meta).read(), shard, manifest, key, row),  # type: ignore[union-attr]
                    *check_image(tar.extractfile(image).read(), image.name),  # type: ignore[union-attr]
                    *check_unique(key, f"{shard.file}: sample {at}", seen),
                ):
                    yield at, f", {key!r}: {problem}"
            if next(members, None):
                yield len(rows), ": the tar goes on, the sidecar does not"
    except (tarfile.TarError, OSError) as error:
        yield at, f": the tar cannot be read here ({error})"


def check_offsets(image: tarfile.TarInfo, meta: tarfile.TarInfo, key: str, row: np.void) -> Iterator[str]:
    """Where the two members lie, against the sidecar."""
    if meta.name != f"{key}.json":
        yield f"followed by {meta.name!r}, not by its json"
    there = (image.offset_data, image.size, meta.offset_data, meta.size, key_hash(key))
    stated = tuple(int(row[name]) for name in ("image_at", "image_bytes", "json_at", "json_bytes", "key_hash"))
    if there != stated:
        yield f"the sidecar says (offset, size, offset, size, key hash) {stated}, the tar {there}"


def check_meta(raw: bytes, shard: Shard, manifest: Manifest, key: str, row: np.void) -> Iterator[str]:
    """The json against its schema, the shard and the sidecar's ids."""
    meta = parse_json(raw)
    if meta is None:
        yield "its json cannot be parsed"
        return
    names = META_TYPES.keys() | meta.keys()
    wrong = sorted(name for name in names if not isinstance(meta.get(name, ...), META_TYPES.get(name, ())))
    if wrong:
        yield f"its json lacks, adds or mistypes {', '.join(wrong)}"
        return
    if (meta["split"], meta["role"]) != (shard.split, shard.role):
        yield f"its json says {meta['split']} {meta['role']}"
    domain, label, group = meta["domain"], meta["label"], meta["group"]
    if key.partition("/")[0] != encode_domain(domain) or manifest.domains[row["domain"]] != domain:
        yield f"its json says domain {domain!r}, the sidecar {manifest.domains[row['domain']]!r}"
    if (-1 if label is None else manifest.classes.ids.get((domain, label))) != row["label"]:
        yield f"its json says label {label!r}, the sidecar class {row['label']}"
    stated = manifest.groups[row["group"]]
    if stated != ((domain, group) if group else ("", "")):
        yield f"its json says group {group!r}, the sidecar {stated[1]!r}"


def check_image(data: bytes, name: str) -> Iterator[str]:
    """Whether it decodes, and is what its extension says."""
    try:
        _, extension = prepare(data)
    except Unreadable as error:
        yield f"the image is broken: {error}"
        return
    if not name.endswith(f".{extension}"):
        yield f"{name} is a {extension}"


def check_unique(key: str, place: str, seen: dict[int, str]) -> Iterator[str]:
    """Whether the key is new in the set."""
    first = seen.setdefault(key_hash(key), place)
    if first != place:
        yield f"its key occurs before, at {first}"


def check_lists(manifest: Manifest) -> Iterator[str]:
    """The files for other readers, and what lies in the folder besides."""
    listed = {shard.file: shard.samples for shard in manifest.shards}
    trained = {shard.file: shard.samples for shard in manifest.shards if shard.role == "train"}
    try:
        sizes = json.loads((manifest.folder / "sizes.json").read_bytes())
        wids = json.loads((manifest.folder / "wids.json").read_bytes())["shardlist"]
        wids = {entry["url"]: entry["nsamples"] for entry in wids}
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"sizes.json or wids.json cannot be read ({error!r})"
        return
    for name, stated, true in (("sizes.json", sizes, listed), ("wids.json", wids, trained)):
        if stated != true:
            yield f"{name}: its counts are not the manifest's"
    for path in sorted(manifest.folder.glob("*.tar")):
        if path.name not in listed:
            yield f"{path.name}: not in the manifest"
