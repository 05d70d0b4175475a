"""Tables as rows: CSV, TSV, JSON lines and Parquet all become dictionaries, in file order, without empty cells."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, BinaryIO

from shards.errors import ShardError

KINDS = (".csv", ".tsv", ".jsonl", ".parquet")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """Column names in order, and the rows."""

    columns: list[str]
    rows: list[Row]


def read_table(name: str, file: BinaryIO) -> Table:
    """Reads the whole table; `name` says its kind and appears in messages."""
    kind = PurePath(name).suffix.lower()
    if kind not in KINDS:
        raise ShardError(f"{name}: a table ends in {', '.join(KINDS)}")
    if kind == ".parquet":
        return read_parquet(name, file)
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ShardError(f"{name}: not UTF-8 at byte {error.start}; save the table as UTF-8") from error
    table = read_lines(name, text) if kind == ".jsonl" else read_delimited(name, text, "," if kind == ".csv" else "\t")
    if not table.rows:
        raise ShardError(f"{name}: no rows in the table")
    return table


def read_delimited(name: str, text: str, delimiter: str) -> Table:
    """CSV or TSV with a header."""
    csv.field_size_limit(sys.maxsize)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[Row] = []
    columns: list[str] = []
    try:
        columns = next(lines, [])
        for cells in lines:
            if len(cells) > len(columns):
                raise ShardError(f"{name}: line {lines.line_num} has {len(cells)} cells, the header has {len(columns)}")
            if cells:
                rows.append(clean(zip(columns, cells, strict=False)))
    except csv.Error as error:
        raise ShardError(f"{name}: line {lines.line_num}: {error}") from error
    refuse_twins(name, columns)
    return Table(columns, rows)


def read_lines(name: str, text: str) -> Table:
    """One JSON object a line; the columns are all names that occur."""
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ShardError(f"{name}: line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ShardError(f'{name}: line {number} is not an object like {{"image": …, "label": …}}')
        rows.append(clean(row.items()))
    return Table(list(dict.fromkeys(column for row in rows for column in row)), rows)


def read_parquet(name: str, file: BinaryIO) -> Table:
    """Parquet, if pyarrow is there."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ShardError(f"{name}: reading Parquet needs pyarrow: pip install pyarrow") from error
    try:
        content = parquet.read_table(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ShardError(f"{name}: not a readable Parquet file ({error})") from error
    return Table(content.column_names, [clean(row.items()) for row in content.to_pylist()])


def clean(cells: Iterable[tuple[str, Any]]) -> Row:
    """Without empty cells (empty text, null, NaN); what JSON cannot hold becomes text."""
    return dict(_clean(cells))


def _clean(cells: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for column, value in cells:
        if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
            continue
        yield column, value if isinstance(value, (str, int, float, bool, list, dict)) else str(value)


def refuse_twins(name: str, columns: list[str]) -> None:
    """Two columns of one name: the second would hide the first."""
    twins = sorted({column for column in columns if columns.count(column) > 1})
    if twins:
        raise ShardError(f"{name}: the header has {', '.join(map(repr, twins))} more than once")
