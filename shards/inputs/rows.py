"""Tables as rows: CSV, TSV, JSON lines and Parquet all become dictionaries, one at a time, without empty cells."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from shards.errors import ShardError
from shards.files import path_of, shown

KINDS = (".csv", ".tsv", ".jsonl", ".parquet")
LOOK_AHEAD = 1000  # lines of JSON that say which columns there are
BATCH, BATCH_OF_BYTES = 2000, 32  # Parquet rows in memory at a time
BUFFER_BYTES = 2**20
MAX_NESTED = 50
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """Column names in order, and the rows, to be taken once."""

    columns: list[str]
    rows: Iterator[Row]
    """Values as the file holds them: text from CSV; numbers, lists and bytes too from the others."""
    binary: frozenset[str] = frozenset()
    """Columns of bytes, or of `{bytes, path}` as Hugging Face data sets have them."""


def open_table(path: str | Path, file: BinaryIO) -> Table:
    """The table in this file, which stays open while rows are taken; `path` says its kind and appears in messages."""
    name, kind = shown(path), path_of(path).suffix.lower()
    if kind not in KINDS:
        raise ShardError(f"{name}: a table ends in {', '.join(KINDS)}")
    if kind == ".parquet":
        table = open_parquet(name, file)
    elif kind == ".jsonl":
        table = open_lines(name, file)
    else:
        table = open_delimited(name, file, "," if kind == ".csv" else "\t")
    first = next(table.rows, None)
    if first is None:
        raise ShardError(f"{name}: no rows in the table")
    return Table(table.columns, chain([first], table.rows), table.binary)


def open_delimited(name: str, file: BinaryIO, delimiter: str) -> Table:
    """CSV or TSV with a header."""
    csv.field_size_limit(sys.maxsize)
    lines = read_cells(name, file, delimiter)
    columns = next(lines, [])
    refuse_twins(name, columns)
    rows = ({column: cell for column, cell in zip(columns, cells, strict=False) if cell} for cells in lines)
    return Table(columns, rows)


def read_cells(name: str, file: BinaryIO, delimiter: str) -> Iterator[list[str]]:
    """The header's cells, then those of every line that has any."""
    lines = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter)
    try:
        header = next(lines, [])
        yield header
        for cells in lines:
            if len(cells) > len(header):
                raise ShardError(f"{name}: line {lines.line_num} has {len(cells)} cells, the header has {len(header)}")
            if cells:
                yield cells
    except csv.Error as error:
        raise ShardError(f"{name}: line {lines.line_num}: {error}") from error
    except UnicodeDecodeError as error:
        at = file.tell() - len(error.object) + error.start  # it speaks of the last piece that was read
        raise ShardError(f"{name}: not UTF-8 at byte {at}; save the table as UTF-8") from error


def open_lines(name: str, file: BinaryIO) -> Table:
    """One JSON object a line; the columns are all names that occur in the first thousand lines."""
    rows = read_lines(name, file)
    first = list(islice(rows, LOOK_AHEAD))
    columns = list(dict.fromkeys(column for row in first for column in row))
    return Table(columns, chain(first, rows))


def read_lines(name: str, file: BinaryIO) -> Iterator[Row]:
    """The objects."""
    at = 0
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ShardError(f"{name}: not UTF-8 at byte {at + error.start}; save the table as UTF-8") from error
        at += len(line)
        if not text.strip():
            continue
        try:
            row = load_json(text)
        except ValueError as error:
            raise ShardError(f"{name}: line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ShardError(f'{name}: line {number} is not an object like {{"image": …, "label": …}}')
        yield clean(row.items())


def load_json(text: str) -> Any:
    """The value; ValueError too where it is nested beyond reason or holds half a character, which no file can store."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if text.count("[") + text.count("{") > MAX_NESTED and is_deep(value):
        raise ValueError("nested too deeply")
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
    return value


def is_deep(value: Any) -> bool:
    """Whether there are more than MAX_NESTED levels of lists and objects: whatever walks through them would fail."""
    level = [value]
    for _ in range(MAX_NESTED + 1):
        level = [part for one in level if isinstance(one, (list, dict)) for part in parts_of(one)]
    return bool(level)


def parts_of(value: list[Any] | dict[str, Any]) -> Iterable[Any]:
    """What a list or an object holds."""
    return value.values() if isinstance(value, dict) else value


def open_parquet(name: str, file: BinaryIO) -> Table:
    """Parquet, a few rows at a time."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ShardError(f"{name}: reading Parquet needs pyarrow: pip install pyarrow") from error
    try:
        content = parquet.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        fields = list(content.schema_arrow)
    except (pyarrow.ArrowException, OSError) as error:
        raise ShardError(f"{name}: not a readable Parquet file ({error})") from error
    columns = [field.name for field in fields]
    refuse_twins(name, columns)
    binary = frozenset(field.name for field in fields if holds_bytes(field.type))
    batches = content.iter_batches(BATCH_OF_BYTES if binary else BATCH, use_threads=False)
    return Table(columns, parquet_rows(name, columns, batches), binary)


def holds_bytes(kind: Any) -> bool:
    """Whether this Arrow type is bytes, or a struct with a field `bytes`."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def parquet_rows(name: str, columns: list[str], batches: Iterable[Any]) -> Iterator[Row]:
    """The rows of all batches."""
    import pyarrow

    try:
        for batch in batches:
            for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield clean(zip(columns, cells, strict=True))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ShardError(f"{name}: not a readable Parquet file ({error})") from error


def clean(cells: Iterable[tuple[str, Any]]) -> Row:
    """Without empty cells: empty text, null, NaN and infinity."""
    return {
        column: value
        for column, value in cells
        if value is not None and value != "" and not (isinstance(value, float) and not math.isfinite(value))
    }


def storable(value: Any) -> Any:
    """As JSON holds it: dates and the like become text; None for bytes and for numbers that JSON does not know."""
    if isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): storable(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable(part) for part in value]
    return None if value is None or isinstance(value, bytes) else str(value)


def refuse_twins(name: str, columns: list[str]) -> None:
    """Two columns of one name: the second would hide the first."""
    twins = sorted({column for column in columns if columns.count(column) > 1})
    if twins:
        raise ShardError(f"{name}: the header has {', '.join(map(repr, twins))} more than once")
