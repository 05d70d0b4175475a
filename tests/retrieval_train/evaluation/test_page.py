"""A page is read back with an HTML parser: what it would load, and what a reader would see."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from jinja2 import UndefinedError
from markupsafe import Markup
from PIL import Image

from retrieval_train.page import Cell, Section, bars, command, curve, facts, page, render, table, thumbnail

NASTY = """<script>alert("1")</script> & 'quoted' $x_1$ {{ 7 * 7 }}"""


class Reader(HTMLParser):
    """Collects the tags, what they point to, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.targets: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.targets += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def picture(size: tuple[int, int] = (300, 200), *, mode: str = "RGB", form: str = "PNG") -> bytes:
    stored = io.BytesIO()
    Image.new(mode, size).save(stored, form)
    return stored.getvalue()


def everything() -> str:
    chart = curve({"loss": ([0, 1, 2], [3, float("nan"), 1]), NASTY: ([0, 1], [1, 1])}, ylabel=NASTY)
    chart += bars({NASTY: {"before": 0.2, "after": 0.4}, "flags": {"after": 0.1}}, xlabel="mMP@5")
    numbers = table([[("", 1), (NASTY, 2)]], [(NASTY, [Cell(NASTY), Cell("0.5", strong=True)])], caption=NASTY)
    told = facts({"outer": {NASTY: NASTY}, "px": 224}) + command(NASTY)
    small = Markup('<img src="{}" alt="{}">').format(thumbnail(picture()), NASTY)
    return page(
        NASTY,
        lead=NASTY,
        sections=[Section(NASTY, b, NASTY) for b in (chart, numbers, told, small)],
        foot=NASTY,
    )


def test_a_page_loads_nothing_and_runs_nothing() -> None:
    html = everything()
    seen = Reader(html)
    assert all(target.startswith(("data:image/", "#")) for target in seen.targets)
    assert not seen.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert "@import" not in html and "http://" not in html.replace("http://www.w3.org/", "")
    assert "default-src 'none'" in html


def test_every_text_is_shown_as_it_was_given() -> None:
    assert Reader(everything()).text.count(NASTY) >= 15


def test_the_same_content_is_the_same_file() -> None:
    assert everything() == everything()


def test_charts_take_their_colours_from_the_page() -> None:
    svg = bars({"a": {"before": 0.2, "after": 0.4}}, xlabel="mMP@5")
    for variable in ("--ink", "--line", "--series-0", "--series-5"):
        assert f"var({variable})" in svg
    assert "#000000" not in svg and "#0303" not in svg


def test_the_last_series_of_a_chart_has_the_strongest_colour_however_many_there_are() -> None:
    for num in (1, 3, 6):
        svg = bars({"a": {f"s{i}": 0.1 for i in range(num)}}, xlabel="x")
        assert svg.rindex("var(--series-0)") > max((svg.rfind(f"var(--series-{i})") for i in range(1, 6)), default=0)


def test_a_chart_of_nothing_is_empty_not_an_error() -> None:
    assert "<svg" in bars({}, xlabel="x") and "<svg" in curve({"loss": ([], [])}, ylabel="loss")


@pytest.mark.parametrize(("size", "expected"), [((300, 200), (96, 64)), ((10, 500), (2, 96)), ((20, 20), (20, 20))])
def test_a_thumbnail_fits_into_96_pixels_and_is_never_enlarged(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    stored = base64.b64decode(thumbnail(picture(size)).split(",")[1])
    assert Image.open(io.BytesIO(stored)).size == expected


def test_transparency_becomes_white() -> None:
    stored = base64.b64decode(thumbnail(picture((8, 8), mode="RGBA")).split(",")[1])
    assert np.asarray(Image.open(io.BytesIO(stored)).convert("RGB")).min() > 250


def test_a_value_that_a_template_misses_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'lost' is undefined"):
        render("{{ lost }}")


def test_importing_the_evaluation_imports_nothing_heavy() -> None:
    """A login node checks configs; faiss, matplotlib and the rest come when they are used."""
    names = (
        "page",
        *(f"evaluation.{name}" for name in ("index", "search", "metrics", "baselines", "gallery", "report")),
    )
    heavy = {"faiss", "torch", "matplotlib", "jinja2", "PIL", "rich"}
    code = f"import sys, {', '.join('retrieval_train.' + name for name in names)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & set(loaded)
