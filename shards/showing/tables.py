"""The numbers of a set (stats.py) as tables for the screen and the page, and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from shards.showing.stats import Stats

ALL = "all"
"""The name of the last row of a table of several domains."""
MOST_PAIRS = 20


class Table(NamedTuple):
    """Rows under columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


def count_table(stats: Stats) -> Table:
    """Images by domain (rows) and by split and role (columns)."""
    rows = [[domain, *row] for domain, row in zip(stats.manifest.domains, stats.counts.tolist(), strict=True)]
    if len(rows) > 1:
        rows.append([ALL, *stats.counts.sum(0).tolist()])
    return Table("images", ["domain", *(place_name(*place) for place in stats.places)], rows)


def class_table(stats: Stats) -> Table:
    """Classes by domain and split (or fold), with their smallest, median and largest number of images."""
    classes = stats.manifest.classes
    splits = [part for part in classes.parts if classes.counts(part).any()]
    rows = [
        [domain, *(describe_classes(stats, domain, split) for split in splits)] for domain in stats.manifest.domains
    ]
    return Table("classes, and images in the smallest / median / largest", ["domain", *splits], rows)


def size_table(stats: Stats) -> Table:
    """Width, height and file size of the images by domain."""
    rows = []
    for entry in size_entries(stats):
        extents = [join_three(entry[name]) for name in ("width", "height")]
        kilobytes = join_three([value / 1000 for value in entry["bytes"]])
        formats = ", ".join(f"{name} {count:,}" for name, count in entry["formats"].items())
        rows.append([ALL if entry["domain"] is None else entry["domain"], *extents, kilobytes, formats])
    title = f"image sizes, smallest / median / largest ({describe_measured(stats)})"
    return Table(title, ["domain", "width", "height", "kB", "formats"], rows)


def shared_table(stats: Stats) -> Table:
    """Classes in more than one split."""
    rows = [(*pair, found.count, first_names(found.names, found.count)) for pair, found in stats.shared_classes.items()]
    return Table("classes with images in two splits", ["split", "and", "classes", "such as"], rows)


def skipped_table(stats: Stats) -> Table:
    """Images left out, by reason."""
    rows = [(reason, found.count, first_names(found.names, found.count)) for reason, found in stats.skipped.items()]
    return Table("images skipped", ["reason", "images", "such as"], rows)


def as_json(stats: Stats) -> dict[str, Any]:
    """Everything above with plain numbers; `domain` is null in the row over all domains."""
    manifest, sizes, names = stats.manifest, stats.sizes, stats.manifest.classes.class_names()
    return {
        "name": manifest.name,
        "folder": str(manifest.folder),
        "digest": manifest.digest,
        "tool": manifest.about.get("tool"),
        "images": len(stats),
        "classes": len(manifest.classes),
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "multi_label": manifest.is_multi_label,
        "folds": manifest.num_folds,
        "counts": [
            {"domain": domain, "split": split, "role": role, "images": int(stats.counts[row, column])}
            for row, domain in enumerate(manifest.domains)
            for column, (split, role) in enumerate(stats.places)
        ],
        "class_sizes": [
            {"domain": domain, "split": split, "classes": len(found), "images": three(found)}
            for domain in manifest.domains
            for split in manifest.classes.parts
            if len(found := stats.class_sizes(domain, split))
        ],
        "shared_classes": [
            {"splits": list(pair), "classes": found.count, "first": list(found.names)}
            for pair, found in stats.shared_classes.items()
        ],
        "measured": len(sizes.at),
        "unreadable": int((sizes.formats == "").sum()),
        "sizes": size_entries(stats),
        "labels_together": [
            {"classes": [names[one], names[other]], "images": count}
            for one, other, count in stats.labels_together(most=MOST_PAIRS)
        ],
        "skipped": [
            {"reason": reason, "images": found.count, "first": list(found.names)}
            for reason, found in stats.skipped.items()
        ],
    }


def size_entries(stats: Stats) -> list[dict[str, Any]]:
    """Smallest, median and largest width, height and bytes, and formats, by domain; then over all."""
    sizes = stats.sizes
    domain_of, bytes_of = stats.rows["domain"], stats.rows["image_bytes"]
    is_read = sizes.formats != ""
    entries = []
    names: list[str | None] = [*stats.manifest.domains, *([None] if len(stats.manifest.domains) > 1 else [])]
    for number, name in enumerate(names):
        mine = is_read if name is None else is_read & (domain_of[sizes.at] == number)
        formats, counts = np.unique(sizes.formats[mine], return_counts=True)
        entry = {
            "domain": name,
            "width": three(sizes.width[mine]),
            "height": three(sizes.height[mine]),
            "bytes": three(bytes_of if name is None else bytes_of[domain_of == number]),
            "formats": dict(sorted(zip(formats.tolist(), counts.tolist(), strict=True), key=lambda item: -item[1])),
        }
        entries.append(entry)
    return entries


def three(values: np.ndarray) -> list[float]:
    """Smallest, median, largest; empty where there is none."""
    found = np.percentile(values, [0, 50, 100]).tolist() if len(values) else []
    return [int(value) if value.is_integer() else value for value in found]


def describe_set(stats: Stats) -> str:
    """One sentence."""
    manifest = stats.manifest
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    return (
        f"{len(stats):,} images of {len(manifest.classes):,} classes in {len(manifest.domains):,} domains, "
        f"{megabytes:,.1f} MB in {len(manifest.shards):,} shards"
    )


def describe_classes(stats: Stats, domain: str, split: str) -> str:
    """`512 of 2 / 11 / 40`; a dash where the domain has none."""
    sizes = stats.class_sizes(domain, split)
    return f"{len(sizes):,} of {join_three(three(sizes))}" if len(sizes) else "–"


def describe_measured(stats: Stats) -> str:
    """Which images the sizes are of."""
    num_measured, num_broken = len(stats.sizes.at), int((stats.sizes.formats == "").sum())
    of = "all images" if num_measured == len(stats) else f"{num_measured:,} of {len(stats):,} images, evenly spread"
    return of + (f"; {num_broken:,} unreadable, run `shards check`" if num_broken else "")


def join_three(values: Sequence[float]) -> str:
    """`2 / 11 / 40`, or one number where all are equal."""
    return " / ".join(short(value) for value in (values[:1] if len(set(values)) == 1 else values))


def short(value: float) -> str:
    """Whole from 100 on; 23.6, 5.5 and 0.78 below."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.{3 if value >= 10 else 2}g}"


def place_name(split: str, role: str) -> str:
    """`train`, `dev query`."""
    return split if split == role else f"{split} {role}"


def first_names(names: Sequence[str], count: int) -> str:
    """`a, b, …` where there are more than these."""
    return ", ".join(names) + (", …" if count > len(names) else "")
