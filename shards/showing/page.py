"""One HTML file that needs nothing but itself: tables, thumbnails and charts of a shard set, for a browser or a mail.

A page is filled from top to bottom and written once. Labels and file names are other people's text: the template
(page.html) escapes everything that it is given, and the page forbids itself to load or run anything.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.errors import ShardError
from shards.images.imaging import Look, prepare
from shards.record import Unreadable
from shards.showing import chart

THUMBNAIL = Look(max_side=160, format="jpeg")
TEMPLATE = Path(__file__).with_suffix(".html")


class Tile(NamedTuple):
    """An image to be shown small, with what stands below it."""

    image: bytes
    """An encoded image, as it lies in a tar."""
    caption: str
    note: str = ""


class Piece(NamedTuple):
    """A part of a page as the template takes it."""

    kind: str
    content: Any


class Section(NamedTuple):
    """A heading and what follows it."""

    title: str
    pieces: list[Piece]


class Page:
    """The page being filled. Thumbnails are made when they are added, so the images need not be kept."""

    def __init__(self, title: str, lead: str) -> None:
        self._title = title
        self._lead = lead
        self._sections = [Section("", [])]

    def heading(self, text: str) -> None:
        """Starts a section."""
        self._sections.append(Section(text, []))

    def text(self, text: str) -> None:
        """A paragraph."""
        self._add("text", text)

    def facts(self, facts: Mapping[str, object]) -> None:
        """Names and values, one a line."""
        self._add("facts", [(name, format_cell(value)) for name, value in facts.items()])

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Columns that hold nothing but numbers (and None, left blank) are right-aligned."""
        listed = [tuple(row) for row in rows]
        assert all(len(row) == len(columns) for row in listed), "each row has a cell for each column"
        is_number = [all(is_numeric(row[at]) for row in listed) for at in range(len(columns))]
        cells = [[format_cell(cell) for cell in row] for row in listed]
        self._add("table", {"columns": columns, "rows": cells, "is_number": is_number})

    def sheet(self, tiles: Sequence[Tile]) -> None:
        """A grid of images."""
        self._add("sheet", [shrink_tile(tile) for tile in tiles])

    def pairs(self, pairs: Sequence[tuple[Tile, Tile, str]]) -> None:
        """Two images beside each other, with a text below."""
        self._add("pairs", [(shrink_tile(left), shrink_tile(right), text) for left, right, text in pairs])

    def matches(self, rows: Sequence[tuple[Tile, Sequence[Tile]]]) -> None:
        """One row each: an image, and after a rule those that belong to it."""
        self._add("matches", [(shrink_tile(first), [shrink_tile(tile) for tile in rest]) for first, rest in rows])

    def bars(self, title: str, names: Sequence[str], values: Sequence[float]) -> None:
        """Lying bars, the value beside each; values are not negative."""
        longest = max((float(value) for value in values), default=0) or 1.0
        shares = [max(100 * float(value) / longest, 0.3) if value else 0.0 for value in values]  # 1 in 1,000 is seen
        rows = list(zip(names, shares, (format_cell(value) for value in values), strict=True))
        self._add("bars", {"title": title, "rows": rows})

    def histogram(self, title: str, values: np.ndarray, unit: str, *, log: bool = False) -> None:
        """How often each value occurs; `unit` is written at the axis.

        Values that have no place on the axis (not finite, or not above 0 on a log one) are counted below the chart.
        """
        numbers = np.asarray(values, np.float64).ravel()
        has_place = np.isfinite(numbers) & ((numbers > 0) | (not log))
        shown, num_left = numbers[has_place], int((~has_place).sum())
        drawing = chart.draw_histogram(shown, log=log) if len(shown) else None
        summary = f"{summarize(shown)} {unit}" if len(shown) else "nothing to show"
        summary += f"; {num_left:,} without a place on this axis" if num_left else ""
        self._add("histogram", {"title": title, "unit": unit, "drawing": drawing, "summary": summary})

    def write(self, path: Path) -> None:
        """Writes the file aside and renames it, so that a browser never sees half a page."""
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(self._render(), encoding="utf-8", errors="replace")  # file names need not be UTF-8
            aside.replace(path)
        except OSError as error:
            raise ShardError(f"{path}: {error.strerror}; the page cannot be written there") from error
        finally:
            if aside.exists():
                aside.unlink()

    def _add(self, kind: str, content: object) -> None:
        self._sections[-1].pieces.append(Piece(kind, content))

    def _render(self) -> str:
        from jinja2 import Environment, StrictUndefined

        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        sections = [
            {"title": title, "runs": [(kind, [piece.content for piece in run]) for kind, run in neighbours(pieces)]}
            for title, pieces in self._sections
            if title or pieces
        ]
        return template.render(title=self._title, lead=self._lead, sections=sections, chart=chart)


def neighbours(pieces: Iterable[Piece]) -> Iterable[tuple[str, Iterable[Piece]]]:
    """Runs of pieces of one kind: charts that follow each other share a row where the window is wide enough."""
    return groupby(pieces, key=lambda piece: piece.kind)


def shrink_tile(tile: Tile) -> dict[str, str]:
    """The tile with its image as a data URI; an empty one, and the reason, where the image is broken."""
    shown = {"caption": tile.caption, "note": tile.note, "src": "", "problem": ""}
    try:
        thumbnail, _ = prepare(tile.image, THUMBNAIL)
    except Unreadable as error:
        return {**shown, "problem": str(error)}
    return {**shown, "src": f"data:image/jpeg;base64,{base64.b64encode(thumbnail).decode()}"}


def is_numeric(value: object) -> bool:
    """Whether a table right-aligns it."""
    return value is None or (isinstance(value, Real) and not isinstance(value, bool))


def format_cell(value: object) -> str:
    """Whole numbers with thousands separated, others to four digits, None as nothing, the rest as it is."""
    if value is None:
        return ""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return f"{int(value):,}"
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        return f"{number:,.0f}" if 1000 <= abs(number) < 1e15 else f"{number:.4g}"
    return str(value)


def summarize(values: np.ndarray) -> str:
    """`smallest 2, median 11, largest 1,200`, or `all 6`."""
    low, middle, high = np.percentile(values, [0, 50, 100])
    if low == high:
        return f"all {format_cell(low)}"
    return f"smallest {format_cell(low)}, median {format_cell(middle)}, largest {format_cell(high)}"
