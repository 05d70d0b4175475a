"""What single cells of a table mean: an image, labels, a box."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from shards.files import shown, without_secrets, without_user
from shards.inputs.rows import load_json
from shards.inputs.store import Found, Store, inside
from shards.place import File, Inline
from shards.record import Box, Unreadable

REMOTE = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hf")
"""What a URL in a cell may start with: a table from elsewhere must not choose files of this machine."""
SIGNED = re.compile(r"(signature|credential|token|\bsig)=", re.IGNORECASE)
"""A query that signs the request changes as a whole each time."""
FORMATS = ("xyxy", "xywh")
BETWEEN = re.compile(r"[\s,;]+")


def read_image(cell: Any, beside: Any, number: int, store: Store) -> tuple[str, Found]:
    """(source, where it lies) of the image column's cell, or of the bytes in it or beside it."""
    path, data = split_cell(cell)
    other, more = split_cell(beside)
    data = more if data is None else data
    if data is None:
        return find_image(path or other, store)
    if isinstance(cell, str):
        source = inside(cell)
    else:
        name = (path or other or "").replace("\\", "/").rpartition("/")[2]
        source = f"row-{number}/{name}" if name else f"row-{number}"
    return source, Found(Inline(data), len(data), 0.0)


def split_cell(cell: Any) -> tuple[str | None, bytes | None]:
    """(path, bytes) of text, of bytes or of `{bytes, path}`."""
    if isinstance(cell, dict):
        path, data = cell.get("path"), cell.get("bytes")
        return str(path) if path else None, data if isinstance(data, bytes) else None
    if isinstance(cell, bytes):
        return None, cell
    return None if cell is None else str(cell), None


def find_image(path: str | None, store: Store) -> tuple[str, Found]:
    """(source, where it lies) of a path or URL."""
    if not path:
        raise Unreadable("neither a path nor bytes")
    if "://" not in path:
        source = inside(path)
        return source, store.find(source)
    if path.partition("://")[0].lower() not in REMOTE or "::" in path:
        raise Unreadable(f"{shown(path)}: a URL in a table starts with {', '.join(REMOTE)}")
    return url_source(path), Found(File(path), 0, 0.0)


def url_source(url: str) -> str:
    """`host/path?query` without secrets: what signs a request changes, and is nobody else's business."""
    scheme, _, rest = url.partition("://")
    try:
        parts = urlsplit(f"{scheme}://{without_user(rest)}")
    except ValueError as error:
        raise Unreadable(f"{shown(url)}: {error}") from error
    query = "" if SIGNED.search(parts.query) else without_secrets(parts.query)
    return f"{parts.netloc}{parts.path}{'?' if query else ''}{query}"


def read_labels(cell: Any, separator: str) -> list[str]:
    """The labels of a list, of text that holds a JSON list, or of text between separators; sorted, each once."""
    listed = cell
    if isinstance(cell, str):
        listed = parse_list(cell)
        listed = [part.strip() for part in cell.split(separator)] if listed is None else listed
    elif not isinstance(cell, list):
        listed = [cell]
    if any(isinstance(part, (list, dict, bytes)) for part in listed):
        raise Unreadable(f"labels {shorten(cell)} are not a list of words")
    return sorted({str(part) for part in listed if part is not None} - {""})


def read_box(cells: list[Any], form: str) -> Box | None:
    """left, top, right, bottom from four cells or one that holds them; None where all are empty."""
    if all(cell is None for cell in cells):
        return None
    given = cells[0] if len(cells) == 1 else cells
    if isinstance(given, str):
        listed = parse_list(given)
        given = BETWEEN.split(given.strip(" ()[]")) if listed is None else listed
    try:
        left, top, right, bottom = (number(cell) for cell in given)
    except (ValueError, TypeError) as error:
        raise Unreadable(f"the box {shorten(given)} is not four numbers") from error
    if form == "xywh":
        right, bottom = left + right, top + bottom
    if not (right > left and bottom > top):
        raise Unreadable(f"the box {shorten(given)} has no area; is --box-format {form} right?")
    return left, top, right, bottom


def number(cell: Any) -> float:
    """A finite number; ValueError or TypeError for anything else."""
    value = float("nan" if isinstance(cell, bool) else cell)
    if not math.isfinite(value):
        raise ValueError(f"{cell!r} is not finite")
    return value


def parse_list(text: str) -> list[Any] | None:
    """The JSON list that a cell holds as text."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        listed: list[Any] = load_json(text)
    except ValueError:
        return None
    return listed


def shorten(value: Iterable[Any]) -> str:
    """For messages."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
