"""The page: what it shows, that it runs nothing and needs nothing, and that its charts count right."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import ShardError
from shards.showing import chart
from shards.showing.chart import draw_histogram
from shards.showing.page import Page, Tile
from tests.shards.conftest import picture

HOSTILE = "</style></title><script>alert(1)</script><img src=x onerror=alert(2)> \" onload='x' & \u202e \udcff"
RUNS_OR_LOADS = {"script", "link", "iframe", "object", "embed", "base", "form", "a"}


class Reader(HTMLParser):
    """What a browser would make of a page: its tags with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def sources(self) -> list[str]:
        """Of its images."""
        return [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]


def written(page: Page, tmp_path: Path) -> Reader:
    """The page, from its file."""
    page.write(tmp_path / "page.html")
    return Reader((tmp_path / "page.html").read_text())


def fill(text: str) -> Page:
    """A page with every kind of piece, and this text wherever one goes."""
    page = Page(text, text)
    page.facts({text: text})
    page.heading(text)
    page.text(text)
    page.table([text, "n"], [[text, 1]])
    page.heading(text)
    tile, broken = Tile(picture(1), text, text), Tile(b"", text, text)
    page.sheet([tile, broken])
    page.pairs([(tile, broken, text)])
    page.matches([(tile, [broken])])
    page.heading(text)
    page.bars(text, [text], [1])
    page.histogram(text, np.array([1.0, 2.0]), text)
    return page


def test_other_peoples_text_is_shown_and_never_run(tmp_path: Path) -> None:
    page, plain = written(fill(HOSTILE), tmp_path), written(fill("plain"), tmp_path)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    for (_, names), (_, plain_names) in zip(page.tags, plain.tags, strict=True):
        assert names.keys() - {"class"} == plain_names.keys() - {"class"}  # short cells have a class
    shown = HOSTILE.replace("\udcff", "?")
    assert sum(shown in text for text in page.texts) == sum("plain" in text for text in plain.texts) >= 20


def test_a_page_needs_nothing_but_its_file(tmp_path: Path) -> None:
    page = written(fill("plain"), tmp_path)
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"https?:|//|@import|url\(", re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", text))
    assert {tag for tag, _ in page.tags} & RUNS_OR_LOADS == {"a"}
    assert all((names["href"] or "").startswith("#") for tag, names in page.tags if tag == "a")
    policy = next(names["content"] for _, names in page.tags if names.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_thumbnail_is_small_and_transparency_is_white(tmp_path: Path) -> None:
    clear = io.BytesIO()
    Image.new("RGBA", (300, 600), (255, 0, 0, 0)).save(clear, "PNG")
    page = Page("title", "lead")
    page.sheet([Tile(clear.getvalue(), "clear"), Tile(picture(1, size=(20, 30)), "small")])
    images = []
    for source in written(page, tmp_path).sources():
        kind, data = source.split(",")
        assert kind == "data:image/jpeg;base64"
        images.append(Image.open(io.BytesIO(base64.b64decode(data))))
    assert [image.size for image in images] == [(80, 160), (20, 30)]
    assert images[0].getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("data", [b"", b"no image", picture(1)[:400]])
def test_a_broken_image_is_a_tile_that_says_so(data: bytes, tmp_path: Path) -> None:
    page = Page("title", "lead")
    page.sheet([Tile(data, "its caption")])
    reader = written(page, tmp_path)
    assert not reader.sources()
    assert any("image unreadable" in text for text in reader.texts) and "its caption" in reader.texts


def test_numbers_are_separated_and_aligned(tmp_path: Path) -> None:
    page = Page("title", "lead")
    page.table(["name", "images", "share"], [["a", 1234567, 0.12345], ["b", np.int64(7), 12345.6], ["c", None, 1e-9]])
    reader = written(page, tmp_path)
    assert {"1,234,567", "0.1235", "7", "12,346", "1e-09"} <= set(reader.texts)
    assert {names.get("class") for tag, names in reader.tags if tag == "th"} == {None, "number"}
    aligned = [names.get("class") for tag, names in reader.tags if tag == "td"]
    assert aligned == ["short", "number", "number"] * 3


CASES = [
    (np.random.default_rng(0).lognormal(2, 1.5, 3000).round() + 1, True),
    (np.random.default_rng(1).lognormal(2, 1.5, 3000), True),
    (np.random.default_rng(2).normal(0, 5, 3000), False),
    (np.random.default_rng(3).integers(-40, 1500, 3000).astype(float), False),
    (np.array([5.0]), True),
    (np.array([0.0, 0.0]), False),
    (np.array([7.25]), False),
    (np.array([1.0, 1e9]), True),
    (np.array([1e-6, 3e-6]), False),
    (np.array([2.0, 3.0, 3.0, 12.0]), True),
]


@pytest.mark.parametrize(("values", "log"), CASES)
def test_a_histogram_counts_every_value_once(values: np.ndarray, log: bool) -> None:
    drawing = draw_histogram(values, log=log)
    counts = [int(bar.text.rpartition(": ")[2].replace(",", "")) for bar in drawing.bars]
    assert sum(counts) == len(values)
    assert max(bar.height for bar in drawing.bars) <= chart.BOTTOM - chart.TOP
    for left, right in zip(drawing.bars, drawing.bars[1:], strict=False):
        assert left.x + left.width <= right.x
    for bar in drawing.bars:
        assert bar.x >= chart.LEFT and bar.x + bar.width <= chart.RIGHT and bar.height >= 1.5
    ticks = [tick.at for tick in drawing.x_ticks]
    assert ticks == sorted(ticks) and all(chart.LEFT <= at <= chart.RIGHT for at in ticks)
    assert all(chart.TOP <= tick.at <= chart.BOTTOM for tick in drawing.y_ticks)


def test_bins_of_whole_numbers_say_which_numbers_they_hold() -> None:
    values = np.random.default_rng(5).lognormal(2, 1.5, 2000).round() + 1
    numbers = Counter(values.astype(int).tolist())
    for bar in draw_histogram(values, log=True).bars:
        name, count = bar.text.replace(",", "").split(": ")
        low, high = (int(end) for end in (name.split(" to ") * 2)[:2])
        assert sum(numbers[number] for number in range(low, high + 1)) == int(count)


def test_values_without_a_place_on_the_axis_are_counted(tmp_path: Path) -> None:
    page = Page("title", "lead")
    page.histogram("sizes", np.array([np.nan, np.inf, -1, 0, 3, 3]), "px", log=True)
    page.histogram("none", np.array([]), "px")
    texts = written(page, tmp_path).texts
    assert "all 3 px; 4 without a place on this axis" in texts and "nothing to show" in texts


def test_a_page_replaces_an_older_one_and_says_where_it_cannot_be_written(tmp_path: Path) -> None:
    place = tmp_path / "new" / "page.html"
    for title in ("one", "two"):
        Page(title, "lead").write(place)
    assert "two" in place.read_text() and len(list(place.parent.iterdir())) == 1
    (tmp_path / "folder").mkdir()
    for wrong in (tmp_path / "folder", place / "page.html"):
        with pytest.raises(ShardError, match=re.escape(str(wrong))):
            Page("title", "lead").write(wrong)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "new"]
