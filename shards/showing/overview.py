"""The page of `shards show --page`: a set's numbers, and samples of each domain to look at."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np

from shards.manifest import MANIFEST, Manifest
from shards.showing.page import Page, Tile
from shards.showing.stats import Stats
from shards.showing.tables import (
    MOST_PAIRS,
    Table,
    class_table,
    count_table,
    describe_measured,
    describe_set,
    place_name,
    shared_table,
    size_table,
    skipped_table,
)

NUM_TRAIN, NUM_QUERIES, NUM_MATCHES, NUM_DISTRACTORS = 12, 6, 6, 24
MOST_DOMAINS = 40
"""A page with samples of more would weigh over 20 MB."""


def fill_page(stats: Stats) -> Page:
    """The whole page, ready to be written."""
    manifest = stats.manifest
    page = Page(manifest.name, describe_set(stats))
    page.facts(collect_facts(manifest))
    page.heading("Images")
    add_table(page, count_table(stats), title=False)
    add_classes(page, stats)
    add_sizes(page, stats)
    if stats.skipped:
        page.heading("Skipped")
        add_table(page, skipped_table(stats), title=False)
    add_samples(page, stats)
    return page


def collect_facts(manifest: Manifest) -> dict[str, object]:
    """Where the set came from."""
    about: dict[str, Any] = dict(manifest.about)
    config = {**about.get("config", {}), **about.get("given", {})}
    options = ", ".join(f"{name} {value}" for name, value in config.items() if value not in (None, False))
    made_at = datetime.fromtimestamp((manifest.folder / MANIFEST).stat().st_mtime)
    facts = {
        "digest": manifest.digest,
        "made by": f"{about.get('tool')}, {made_at:%Y-%m-%d %H:%M}",
        "from": options,
        "skipped": about.get("skipped"),
        "left out": f"{about['small']:,} images of too small classes" if about.get("small") else None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def add_table(page: Page, table: Table, *, title: bool = True) -> None:
    """A table, and what it is of."""
    if title:
        page.text(f"{table.title[:1].upper()}{table.title[1:]}:")
    page.table(table.columns, table.rows)


def add_classes(page: Page, stats: Stats) -> None:
    """How many, how large, shared by splits, seen together."""
    page.heading("Classes")
    add_table(page, class_table(stats))
    shared = shared_table(stats)
    if shared.rows:
        add_table(page, shared)
    page.text("How many classes have how many images, over all splits:")
    for domain in stats.manifest.domains:
        page.histogram(domain, stats.class_sizes(domain), "images a class", log=True)
    if stats.manifest.is_multi_label:
        num_labels = np.bincount(stats.labels[0], minlength=len(stats))
        page.histogram("labels of an image", num_labels[~stats.have_role("distractor")], "labels")
        pairs = stats.labels_together(most=MOST_PAIRS)
        page.bars("images with both labels", [name_pair(stats, *pair[:2]) for pair in pairs], [n for *_, n in pairs])


def name_pair(stats: Stats, one: int, other: int) -> str:
    """`red + round`, with the domain where there are several."""
    classes = stats.manifest.classes
    domain = f"{classes.domains[one]}: " if len(stats.manifest.domains) > 1 else ""
    return f"{domain}{classes.labels[one]} + {classes.labels[other]}"


def add_sizes(page: Page, stats: Stats) -> None:
    """In pixels and bytes."""
    page.heading("Image sizes")
    add_table(page, size_table(stats))
    sizes = stats.sizes
    is_read = sizes.formats != ""
    width, height = sizes.width[is_read], sizes.height[is_read]
    page.histogram("short side", np.minimum(width, height), "pixels", log=True)
    page.histogram("long side", np.maximum(width, height), "pixels", log=True)
    page.histogram("aspect", width / height, "width / height", log=True)
    page.histogram("file size", stats.rows["image_bytes"] / 1000, "kB", log=True)
    formats, counts = np.unique(sizes.formats[is_read], return_counts=True)
    if len(formats) > 1:
        page.bars(f"formats of {describe_measured(stats)}", formats.tolist(), counts.tolist())


def add_samples(page: Page, stats: Stats) -> None:
    """Of every domain a sheet of training images and some queries with their index images; then distractors."""
    domains = stats.manifest.domains
    largest = np.sort(np.argsort(-stats.counts.sum(1), kind="stable")[:MOST_DOMAINS])
    for number in largest.tolist():
        page.heading(domains[number])
        for at, (split, role) in enumerate(stats.places):
            members = np.flatnonzero((stats.place_ids == at) & (stats.rows["domain"] == number))
            if len(members) and role == "train":
                chosen = choose(stats, members, NUM_TRAIN)
                page.text(f"{len(chosen):,} of {len(members):,} images of {place_name(split, role)}:")
                page.sheet([get_tile(stats, place) for place in chosen])
            elif len(members) and role == "query":
                chosen = choose(stats, members, NUM_QUERIES)
                page.text(f"{len(chosen):,} of {len(members):,} queries of {split}, each with what it should find:")
                page.matches([add_matches(stats, place) for place in chosen])
    if len(largest) < len(domains):
        page.text(f"Samples of the {len(largest)} largest of {len(domains)} domains are shown.")
    distractors = np.flatnonzero(stats.have_role("distractor"))
    if len(distractors):
        page.heading("Distractors")
        chosen = spread(distractors[np.argsort(stats.rows["domain"][distractors], kind="stable")], NUM_DISTRACTORS)
        page.text(f"{len(chosen):,} of {len(distractors):,} images that no query should find:")
        page.sheet([get_tile(stats, place) for place in chosen])


def spread(places: np.ndarray, most: int) -> np.ndarray:
    """So many of them, evenly spread."""
    return places[np.linspace(0, len(places) - 1, min(len(places), most)).astype(np.int64)]


def choose(stats: Stats, places: np.ndarray, most: int) -> np.ndarray:
    """So many of these samples, of as many classes as possible, by class."""
    labels = stats.rows["label"]
    first = spread(places[np.unique(labels[places], return_index=True)[1]], most)
    chosen = np.concatenate([first, spread(np.setdiff1d(places, first), most - len(first))])
    return chosen[np.argsort(labels[chosen], kind="stable")]


def add_matches(stats: Stats, query: int) -> tuple[Tile, list[Tile]]:
    """A query, and the first of the index images that have one of its labels."""
    at, ids = stats.labels
    split, _ = stats.places[stats.place_ids[query]]
    places = np.unique(at[np.isin(ids, stats.labels_of(query))])
    found = places[stats.have_role("index", split)[places]]
    tile = get_tile(stats, query)
    more = f" ({NUM_MATCHES} of {len(found):,} shown)" if len(found) > NUM_MATCHES else ""
    return tile._replace(caption=tile.caption + more), [get_tile(stats, place) for place in found[:NUM_MATCHES]]


def get_tile(stats: Stats, place: int) -> Tile:
    """The sample with its labels, or its domain where it has none, and its key."""
    manifest, row = stats.manifest, stats.rows[place]
    sample = manifest.read(manifest.shards[row["shard"]], int(row["row"]))
    labels = ", ".join(manifest.classes.labels[label] for label in stats.labels_of(place))
    return Tile(sample.image, labels or manifest.domains[row["domain"]], sample.key)
