"""An audit as a page, with the images in question side by side, and as a table on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shards.audit import balance
from shards.audit.confirm import MOST_LEVELS
from shards.audit.examine import Audit
from shards.audit.findings import SEVERITIES, Finding
from shards.audit.images import Images
from shards.audit.phash import NUM_BITS
from shards.showing.page import Page, Tile

if TYPE_CHECKING:
    from rich.table import Table

MOST_SHOWN = 24
"""Pairs or images of one finding on the page; the lists have the rest."""
COLUMNS = ("", "finding", "where", "count", "what")
SEVERITY_TEXT = {
    "grave": "an evaluation on this set would mislead",
    "notable": "look at it before training",
    "mild": "for information",
}


def fill_page(audit: Audit) -> Page:
    """The whole page."""
    images = audit.images
    page = Page(f"Audit of {images.sets[0].name}", describe(audit))
    page.heading("Findings")
    page.table(COLUMNS, finding_table(audit))
    page.text("; ".join(f"{name}: {text}" for name, text in SEVERITY_TEXT.items()) + ".")
    page.text(describe_search(audit))
    files = read_shown(audit)
    for finding in audit.findings:
        if finding.pairs or finding.images:
            add_finding(page, audit, finding, files)
    page.heading("Class balance")
    page.text("Images of the training classes, by domain. Gini coefficient: 0 where all classes are equal.")
    page.table(*balance_table(images))
    return page


def describe(audit: Audit) -> str:
    """One line on all of it."""
    images = audit.images
    against = f", against {images.sets[1].name}" if len(images.sets) > 1 else ""
    graves = sum(finding.severity == SEVERITIES[0] for finding in audit.findings)
    told = f"{len(audit.findings)} findings, {graves} of them grave" if audit.findings else "no finding"
    num_drops = len(audit.drops)
    dropped = f"; {num_drops:,} images in the list to leave out" if num_drops else ""
    return f"{int(images.is_ours.sum()):,} images{against}: {told}{dropped}."


def describe_search(audit: Audit) -> str:
    """What a near duplicate is."""
    text = (
        f"Exact duplicates have equal bytes. Near duplicates have perceptual hashes that differ in at most "
        f"{audit.question.threshold_bits} of {NUM_BITS} bits, and pictures that, laid over each other, differ by at most "
        f"{MOST_LEVELS:g} of 256 grey levels at every place once brightness and contrast are brought to one another; "
        f"{audit.copies.num_candidates:,} pairs were looked at. "
        "Mirrored, turned and strongly cropped copies are not found."
    )
    left_out = audit.copies.num_left_out
    return text + (f" {left_out:,} pairs with similar hashes were too many to look at." if left_out else "")


def finding_table(audit: Audit) -> list[tuple[str, str, str, int, str]]:
    """One row a finding, as COLUMNS."""
    return [(one.severity, one.kind, one.title, one.count, one.what) for one in audit.findings]


def add_finding(page: Page, audit: Audit, finding: Finding, files: dict[int, bytes]) -> None:
    """A section with images."""
    page.heading(f"{finding.kind}: {finding.title}" if finding.title else finding.kind)
    total = finding.count if finding.pairs else len(finding.images)
    shown = min(MOST_SHOWN, len(finding.pairs or finding.images))
    unit = "pair" if finding.pairs else "image"
    counted = f" {shown} of {total:,} {unit}s shown." if shown < total else f" {total:,} {unit}{'s' * (total > 1)}."
    page.text(f"{finding.severity.capitalize()}: {finding.what}.{counted}")
    if finding.pairs:
        page.pairs([pair_tiles(audit, pair, files) for pair in finding.pairs[:MOST_SHOWN]])
    else:
        keys = audit.images.keys(finding.images[:MOST_SHOWN])
        page.sheet([tile(audit.images, at, keys[at], files) for at in finding.images[:MOST_SHOWN]])


def pair_tiles(audit: Audit, pair: tuple[int, int, int], files: dict[int, bytes]) -> tuple[Tile, Tile, str]:
    """Both images, and what becomes of them."""
    *ats, bits = pair
    one, other = (tile(audit.images, at, audit.keys[at], files) for at in ats)
    out = [side for side, at in zip(("left", "right"), ats, strict=True) if at in audit.drops]
    fate = {0: "both stay", 1: f"to leave out: the {''.join(out)} one", 2: "to leave out: both"}[len(out)]
    return one, other, f"{bits} bit{'s' * (bits > 1)} apart; {fate}" if bits else fate


def tile(images: Images, at: int, key: str, files: dict[int, bytes]) -> Tile:
    """An image with its key, place, label and size."""
    row = images.rows[at]
    return Tile(
        files[at], key, f"{images.place(at)} · {images.label(at) or 'no label'} · {row['width']}×{row['height']}"
    )


def read_shown(audit: Audit) -> dict[int, bytes]:
    """The files of all images on the page."""
    ats = list[int]()
    for finding in audit.findings:
        ats += [at for one, other, _ in finding.pairs[:MOST_SHOWN] for at in (one, other)]
        ats += finding.images[:MOST_SHOWN]
    return {at: sample.image for at, sample in audit.images.samples(ats)}


def balance_table(images: Images) -> tuple[Sequence[str], list[Sequence[object]]]:
    """(columns, rows) by domain."""
    columns = ["domain", "classes", "smallest", "median", "largest", "largest / median", "Gini"]
    few = [f"below {least} images" for least in balance.FEW]
    rows: list[Sequence[object]] = []
    for one in balance.measure(images):
        shares = [f"{share:.1%}" for share in one.few]
        rows.append([*one[:5], round(one.ratio, 2), round(one.gini, 3), *shares])
    return [*columns, *few], rows


def screen_table(audit: Audit) -> Table:
    """The findings for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in COLUMNS:
        table.add_column(column, justify="right" if column == "count" else "left", no_wrap=column in COLUMNS[:2])
    for row in finding_table(audit):
        cells = [f"{cell:,}" if isinstance(cell, int) else cell for cell in row]
        table.add_row(*(Text("".join(letter if letter.isprintable() else "�" for letter in cell)) for cell in cells))
    return table
