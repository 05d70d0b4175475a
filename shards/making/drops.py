"""A list of samples to leave out: a CSV with a column `key`, as `shards audit` writes it."""

from __future__ import annotations

import csv
from pathlib import Path

from shards.errors import ShardError
from shards.key import key_hash


def read_drops(path: Path) -> frozenset[int]:
    """The hashes of the keys in it."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            if "key" not in (table.fieldnames or ()):
                raise ShardError(
                    f"--drop {path}: no column `key`; there are: {', '.join(table.fieldnames or ()) or 'none'}"
                )
            return frozenset(key_hash(row["key"]) for row in table if row["key"])
    except OSError as error:
        raise ShardError(f"--drop {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ShardError(f"--drop {path}: not readable as CSV ({error})") from error
