"""Images listed in a table: CSV, TSV, JSON lines or Parquet, beside the images or inside one tar with them.

    shards make table food.csv --images photos --out shard_sets/food
    shards make table release.tar --out shard_sets/release       the first table in the tar, images read from the tar

Columns: image (a path below --images), label, and if there are any domain, group, split, role; all others go into the
samples' json. split is train, dev or test, also with a role: dev_query, dev_index, dev_distractor; or the role stands
in a column of its own. Rows without a label are distractors. A label that starts with its own `domain/` loses it.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from shards.errors import ShardError, did_you_mean
from shards.record import Record, Unreadable
from shards.rows import KINDS, Row, Table, read_table
from shards.store import Store, TarStore, open_store

COLUMNS = ("image", "label", "domain", "group", "split", "role")
REQUIRED = ("image", "label")


def add_options(parser: argparse.ArgumentParser) -> None:
    """TABLE, where the images are, and which column is which."""
    parser.add_argument("table", type=Path, metavar="TABLE", help=f"{' '.join(KINDS)}, or a .tar that holds one")
    parser.add_argument(
        "--images", type=Path, help="folder or tar that the paths start from (default: the table's own)"
    )
    parser.add_argument("--table-member", help="the table inside the tar (default: the first one)")
    parser.add_argument("--domain", help="domain of rows that name none (default: the set's name)")
    for column in COLUMNS:
        parser.add_argument(f"--{column}-column", metavar="NAME", help=f"column with the {column} (default: {column})")


def records(options: argparse.Namespace) -> Iterator[Record]:
    """One record a row."""
    path: Path = options.table
    if not path.is_file():
        raise ShardError(
            f"{path}: {'a folder, not a table; see shards make folder' if path.is_dir() else 'no such table'}"
        )
    store: Store | None = open_store(options.images) if options.images else None
    if path.suffix.lower() == ".tar":
        archive = TarStore(path)
        table = read_member(archive, options.table_member)
        store = store or archive
    elif options.table_member:
        raise ShardError(f"--table-member {options.table_member}: only for a .tar, and {path.name} is none")
    else:
        with path.open("rb") as file:
            table = read_table(str(path), file)
        store = store or open_store(path.parent)
    columns = match_columns(table, options)
    for number, row in enumerate(table.rows, start=1):
        yield make_record(number, row, columns, store, options.domain or options.out.name)


def read_member(archive: TarStore, name: str | None) -> Table:
    """The table inside a tar."""
    tables = [member for member in archive.members if PurePath(member).suffix.lower() in KINDS]
    if name is None and not tables:
        raise ShardError(
            f"{archive.path}: no table ({', '.join(KINDS)}) in it; pass a table and --images {archive.path}"
        )
    if name is not None and name not in archive.members:
        there = ", ".join(tables) or "no tables"
        raise ShardError(
            f"--table-member {name!r} is not in {archive.path}; there are: {there}{did_you_mean(name, tables)}"
        )
    member = name or tables[0]
    return read_table(member, io.BytesIO(archive.read(member)))


def match_columns(table: Table, options: argparse.Namespace) -> dict[str, str]:
    """The table's column for each of ours that it has."""
    matched = {}
    for column in COLUMNS:
        given = getattr(options, f"{column}_column")
        name = given or column
        if name in table.columns:
            matched[column] = name
        elif given or column in REQUIRED:
            there = ", ".join(table.columns)
            hint = did_you_mean(name, table.columns) or ("" if given else f"; name it with --{column}-column")
            raise ShardError(f"{options.table}: no column {name!r}; there are: {there}{hint}")
    return matched


def make_record(number: int, row: Row, columns: dict[str, str], store: Store, domain: str) -> Record:
    """The record of a row; with a problem where its image cannot be there."""
    cells = {column: str(row[name]) for column, name in columns.items() if name in row}
    extra = {name: value for name, value in row.items() if name not in columns.values()}
    known: dict[str, Any] = {
        "domain": cells.get("domain", domain),
        "label": strip_domain(cells.get("label"), cells.get("domain", domain)),
        "group": cells.get("group"),
        "split": "_".join(cells[name] for name in ("split", "role") if name in cells).replace("train_train", "train")
        or None,
        "extra": extra,
    }
    if "image" not in cells:
        return Record(source=f"row {number}", read=bytes, problem=f"row {number} names no image", **known)
    try:
        found = store.find(cells["image"])
    except Unreadable as error:
        return Record(source=cells["image"], read=bytes, problem=f"row {number}: {error}", **known)
    return Record(
        source=str(PurePosixPath(cells["image"])),
        read=found.read,
        num_bytes=found.num_bytes,
        changed_at=found.changed_at,
        **known,
    )


def strip_domain(label: str | None, domain: str) -> str | None:
    """`apparel/shirt` in domain apparel is shirt."""
    return label.removeprefix(f"{domain}/") or None if label else None
