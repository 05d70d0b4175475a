"""What is in a set, as tables: `shards show`, and the last lines of `shards make`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shards.errors import first_few
from shards.maker import Made
from shards.manifest import Manifest
from shards.record import SPLITS

if TYPE_CHECKING:
    from rich.table import Table


def show_set(folder: Path) -> None:
    """Prints counts by domain, split and role, and class sizes."""
    from rich.console import Console

    manifest = Manifest.load(folder)
    console = Console()
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    num_samples = sum(shard.samples for shard in manifest.shards)
    config = manifest.about["config"]
    console.print(
        f"[bold]{manifest.name}[/]: {num_samples:,} images of {len(manifest.classes):,} classes in "
        f"{len(manifest.domains)} domains, {megabytes:,.1f} MB in {len(manifest.shards)} shards",
        f"made by {manifest.about['tool']} from {config['source']}; {manifest.about['skipped']} images skipped, "
        f"{manifest.about['small']} of too small classes left out; digest {manifest.digest[:12]}",
        "",
        "images",
        count_table(manifest),
        "classes, and images in the smallest / median / largest",
        class_table(manifest),
        sep="\n",
        highlight=False,
        soft_wrap=True,
    )


def count_table(manifest: Manifest) -> Table:
    """Images by domain (rows) and by split and role (columns)."""
    from rich.table import Table

    places = list(dict.fromkeys((shard.split, shard.role) for shard in manifest.shards))
    counts = np.zeros((len(manifest.domains), len(places)), np.int64)
    for shard in manifest.shards:
        domains = manifest.sidecar(shard)["domain"]
        counts[:, places.index((shard.split, shard.role))] += np.bincount(domains, minlength=len(manifest.domains))
    table = Table()
    table.add_column("domain")
    for split, role in places:
        table.add_column(split if split == role else f"{split} {role}", justify="right")
    for domain, row in zip(manifest.domains, counts, strict=True):
        table.add_row(domain, *(f"{count:,}" for count in row))
    if len(manifest.domains) > 1:
        table.add_section()
        table.add_row("all", *(f"{count:,}" for count in counts.sum(0)))
    return table


def class_table(manifest: Manifest) -> Table:
    """Classes by domain and split, with their smallest, median and largest number of images."""
    from rich.table import Table

    classes = manifest.classes
    domain_C = np.array(classes.domains)
    table = Table()
    table.add_column("domain")
    splits = [split for split in SPLITS if classes.counts(split).any()]
    for split in splits:
        table.add_column(split, justify="right")
    for domain in manifest.domains:
        cells = []
        for split in splits:
            sizes = classes.counts(split)[domain_C == domain]
            sizes = sizes[sizes > 0]
            low, middle, high = np.percentile(sizes, [0, 50, 100]) if len(sizes) else (0, 0, 0)
            cells.append(f"{len(sizes):,} of {low:.0f} / {middle:.0f} / {high:.0f}")
        table.add_row(domain, *cells)
    return table


def describe_made(made: Made) -> None:
    """What was made, and what to do next."""
    manifest = made.manifest
    num_samples = sum(shard.samples for shard in manifest.shards)
    state = "already there, made from the same input with the same options" if made.was_there else "made"
    num_classes, num_shards = len(manifest.classes), len(manifest.shards)
    print(f"{manifest.folder}: {state}: {num_samples} images of {num_classes} classes, {num_shards} shards")
    for split, roles in manifest.about["totals"].items():
        print(f"  {split:<6}" + ", ".join(f"{role} {cell['samples']}" for role, cell in roles.items()))
    shared = (manifest.classes.table > 0).sum(0) > 1
    if shared.any():
        names = [name for name, is_shared in zip(manifest.classes.class_names(), shared, strict=True) if is_shared]
        print(f"  {len(names)} classes have images in more than one split ({first_few(names)}), as the input says")
    if made.num_small:
        print(f"  {made.num_small} images left out: their classes have fewer than --min-images")
    if made.skips:
        print(f"  {len(made.skips)} images skipped, listed in {manifest.folder / 'skipped.csv'}")
