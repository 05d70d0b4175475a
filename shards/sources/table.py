"""Images listed in a table: CSV, TSV, JSON lines or Parquet, beside the images, in one tar with them, or holding them.

    shards make table food.csv --images photos --out shard_sets/food
    shards make table release.tar --out shard_sets/release       the first table in the tar, images read from the tar
    shards make table s3://bucket/food.csv --images s3://bucket/photos --out shard_sets/food
    shards make table train.parquet --out shard_sets/birds       images in the table, as Hugging Face data sets have them

Columns: image (a path below --images, or a URL), label, and if there are any domain, group, split, role; all others go
into the samples' json. split is train, dev (or val) or test, also with a role: dev_query, dev_index, dev_distractor; or
the role stands in a column of its own. Rows without a label are distractors. A label that starts with its own `domain/`
loses it.
In Parquet, a column `bytes` (or bytes in the image column) is the image itself. A row with a box is one object of its
image, which may have several: its source ends in `#left,top,right,bottom`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from shards.errors import ShardError, did_you_mean
from shards.files import is_url, open_binary, open_part, parent, path_of, place_path, shown
from shards.inputs.cells import FORMATS, read_box, read_image, read_labels
from shards.inputs.rows import KINDS, Row, Table, open_table, storable
from shards.inputs.store import Store, TarStore, open_store
from shards.place import File
from shards.record import SPLIT_WORDS, Record, Unreadable

COLUMNS = ("image", "bytes", "label", "domain", "group", "split", "role")
TEXT = ("label", "domain", "group", "split", "role")
REQUIRED = ("image", "label")
NOWHERE = File("")


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows become records."""

    columns: dict[str, str]
    """The table's column for each of ours that it has."""
    domain: str
    """Of rows that name none."""
    store: Store
    changed_at: float
    """Of the table, which may hold the images."""
    labels: str | None
    """Column with several labels."""
    separator: str
    box: list[str]
    """Columns with the box."""
    box_format: str

    @property
    def used(self) -> frozenset[str]:
        """Columns that do not go into the json as they are."""
        return frozenset([*self.columns.values(), *self.box, *([self.labels] if self.labels else [])])


def add_options(parser: argparse.ArgumentParser) -> None:
    """TABLE, where the images are, and which column is which."""
    add = parser.add_argument
    add("table", type=place_path, metavar="TABLE", help=f"file or URL: {' '.join(KINDS)}, or a .tar that holds one")
    add("--images", type=place_path, help="folder, tar or URL that the paths start from (default: the table's own)")
    add("--table-member", help="the table inside the tar (default: the first one)")
    add("--domain", help="domain of rows that name none (default: the set's name)")
    for column in COLUMNS:
        add(f"--{column}-column", metavar="NAME", help=f"column with the {column} (default: {column})")
    add("--labels-column", metavar="NAME", help="column with several labels, in place of one: a list, or text between…")
    add("--label-separator", metavar="TEXT", default=",", help="…these (default: a comma)")
    add(
        "--box-columns",
        type=column_names,
        metavar="A,B,C,D",
        help="columns with the object's box, or one with all four",
    )
    add("--box-format", choices=FORMATS, help="corners, or a corner, width and height; in pixels (default: xyxy)")


def column_names(text: str) -> list[str]:
    """Four names, or one."""
    names = text.split(",")
    if len(names) not in (1, 4) or not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is neither one column nor four, as in x1,y1,x2,y2")
    return names


def records(options: argparse.Namespace) -> Iterator[Record]:
    """One record a row."""
    refuse_contradictions(options)
    images = open_store(options.images) if options.images else None
    with open_listed(options) as (table, archive):
        reading = Reading(
            columns=match_columns(table, options),
            domain=options.domain or path_of(options.out).name,
            store=images or archive or open_store(parent(options.table)),
            changed_at=0.0 if is_url(options.table) else options.table.stat().st_mtime,
            labels=options.labels_column,
            separator=options.label_separator,
            box=options.box_columns or [],
            box_format=options.box_format or FORMATS[0],
        )
        used = reading.used
        for number, row in enumerate(table.rows, start=1):
            yield make_record(number, row, reading, used)


def refuse_contradictions(options: argparse.Namespace) -> None:
    """Options that exclude or need each other."""
    if options.labels_column and options.label_column:
        raise ShardError("--label-column and --labels-column exclude each other: an image has one label or a list")
    if options.box_format and not options.box_columns:
        raise ShardError(f"--box-format {options.box_format} without --box-columns, which name the columns")


@contextmanager
def open_listed(options: argparse.Namespace) -> Iterator[tuple[Table, TarStore | None]]:
    """The table, and the tar that it lies in if it does."""
    path: Path | str = options.table
    name, kind = shown(path), path_of(path).suffix.lower()
    if not is_url(path) and not Path(path).is_file():
        what = "a folder, not a table; see shards make folder" if Path(path).is_dir() else "no such table"
        raise ShardError(f"{name}: {what}")
    if kind == ".tar":
        archive = TarStore(path)
        member = find_table(archive, options.table_member)
        with open_part(archive.place, *archive.members[member]) as file:
            yield open_table(member, file), archive
        return
    if options.table_member:
        raise ShardError(f"--table-member {options.table_member}: only for a .tar, and {path_of(path).name} is none")
    try:
        with open_binary(path, in_place=kind == ".parquet") as file:
            yield open_table(path, file), None
    except FileNotFoundError as error:
        raise ShardError(f"{name}: no such table") from error
    except OSError as error:
        raise ShardError(f"{name}: cannot be read ({error.strerror or error})") from error


def find_table(archive: TarStore, name: str | None) -> str:
    """The table inside a tar."""
    tables = [member for member in archive.members if PurePath(member).suffix.lower() in KINDS]
    if name is None and not tables:
        place = shown(archive.path)
        raise ShardError(f"{place}: no table ({', '.join(KINDS)}) in it; pass a table and --images {place}")
    if name is not None and name not in archive.members:
        there = ", ".join(tables) or "no tables"
        raise ShardError(
            f"--table-member {name!r} is not in {shown(archive.path)}; there are: {there}{did_you_mean(name, tables)}"
        )
    return name or tables[0]


def match_columns(table: Table, options: argparse.Namespace) -> dict[str, str]:
    """The table's column for each of ours that it has."""
    matched = {}
    for column in COLUMNS:
        given = getattr(options, f"{column}_column")
        name = given or column
        if column == "label" and options.labels_column:
            continue
        if name in table.columns and (column != "bytes" or given or name in table.binary):
            matched[column] = name
        elif given or (column in REQUIRED and not (column == "image" and "bytes" in table.binary)):
            hint = "" if given else f"; name it with --{column}-column"
            refuse_missing(table, options, name, hint)
        if column in TEXT and name in table.binary:
            raise ShardError(f"{shown(options.table)}: the column {name!r} holds bytes, and a {column} is text")
    for name in [options.labels_column, *(options.box_columns or [])]:
        if name and name not in table.columns:
            refuse_missing(table, options, name, "")
    if "bytes" in matched and matched["bytes"] not in table.binary:
        raise ShardError(f"{shown(options.table)}: the column {matched['bytes']!r} holds no bytes; only Parquet can")
    return matched


def refuse_missing(table: Table, options: argparse.Namespace, name: str, hint: str) -> None:
    """A column that is not there."""
    there = ", ".join(table.columns)
    hint = did_you_mean(name, table.columns) or hint
    raise ShardError(f"{shown(options.table)}: no column {name!r}; there are: {there}{hint}")


def make_record(number: int, row: Row, reading: Reading, used: frozenset[str]) -> Record:
    """The record of a row; with a problem where its image cannot be there."""
    cells = {column: str(row[name]) for column, name in reading.columns.items() if column in TEXT and name in row}
    domain = cells.get("domain", reading.domain)
    if "split" in cells:
        cells["split"] = SPLIT_WORDS.get(cells["split"].lower(), cells["split"])
    split = "_".join(cells[name] for name in ("split", "role") if name in cells).replace("train_train", "train")
    known: dict[str, Any] = {
        "domain": domain,
        "label": strip_domain(cells.get("label"), domain),
        "group": cells.get("group"),
        "split": split or None,
        "extra": {name: kept for name in row if name not in used and (kept := storable(row[name])) is not None},
    }
    image = row.get(reading.columns.get("image", ""))
    beside = row.get(reading.columns.get("bytes", ""))
    if image is None and beside is None:
        return Record(source=f"row {number}", place=NOWHERE, problem=f"row {number} names no image", **known)
    source = image if isinstance(image, str) else f"row {number}"
    try:
        source, found = read_image(image, beside, number, reading.store)
        box = read_box([row.get(name) for name in reading.box], reading.box_format) if reading.box else None
        labels = read_labels(row.get(reading.labels), reading.separator) if reading.labels in row else []
    except Unreadable as error:
        return Record(source=shown(source), place=NOWHERE, problem=f"row {number}: {error}", **known)
    return Record(
        source=f"{source}#{','.join(format(side, '.10g') for side in box)}" if box else source,
        place=found.place,
        labels=tuple(sorted({label for name in labels if (label := strip_domain(name, domain))})),
        box=box,
        num_bytes=found.num_bytes,
        changed_at=found.changed_at or reading.changed_at,
        **known,
    )


def strip_domain(label: str | None, domain: str) -> str | None:
    """`apparel/shirt` in domain apparel is shirt."""
    return label.removeprefix(f"{domain}/") or None if label else None
