"""One HTML page that needs nothing but itself: mailed, opened offline, read on a phone, in light or dark.

A page is a title, a leading sentence and sections. The pieces (charts as inline SVG, thumbnails as data URIs,
tables) are `Markup`; every other text is escaped where it is put into a template, so a label `<script>` is
shown, not run. A content security policy on top forbids the page to load or run anything.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""name -> (x, y)"""

THUMBNAIL_PX = 96
WIDTH_INCH = 5.0
"""Charts scale with the page; a narrow drawing keeps its text legible on a phone."""
# Matplotlib draws in these colours; in the SVG they become CSS variables, to follow light and dark.
INK, FAINT = "#010101", "#020202"
INKS = ("#030303", "#040404", "#050505", "#060606", "#070707", "#080808")
VARIABLE = {
    INK: "var(--ink)",
    FAINT: "var(--line)",
    **{ink: f"var(--series-{i})" for i, ink in enumerate(INKS)},
}


@dataclass(frozen=True)
class Section:
    title: str
    body: Markup
    intro: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: `strong` marks the best one, `starts` the first of a group of columns."""

    text: str
    strong: bool = False
    starts: bool = False


def page(title: str, *, lead: str, sections: Sequence[Section], foot: str = "") -> str:
    """The whole HTML file. The caller writes it (`rundir.write_text`)."""
    anchors = [f"s{number}" for number in range(len(sections))]
    pairs = list(zip(anchors, sections, strict=True))
    return str(render(_PAGE, title=title, lead=lead, sections=pairs, foot=foot, style=Markup(_STYLE)))


def render(template: str, **values: Any) -> Markup:
    """A jinja2 template: every value that is not `Markup` is escaped, a missing one is an error."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return Markup(environment.from_string(template).render(**values))


def table(
    head: Sequence[Sequence[tuple[str, int]]], rows: Sequence[tuple[str, Sequence[Cell]]], *, caption: str
) -> Markup:
    """Head rows of (text, columns it spans), the first over the row names; rows of (name, cells)."""
    return render(_TABLE, head=head, rows=rows, caption=caption)


def facts(values: Mapping[str, Any]) -> Markup:
    """Names and values, in the given order; a nested mapping becomes `outer.inner`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return render(_FACTS, facts=flat)


def command(text: str) -> Markup:
    return render("<pre><code>{{ text }}</code></pre>", text=text)


def thumbnail(picture: bytes, *, side_px: int = THUMBNAIL_PX) -> str:
    """An image file's bytes -> a data URI of at most `side_px` by `side_px`; transparency becomes white."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(picture)) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGBA")
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A"))
    stored = io.BytesIO()
    flat.save(stored, "WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(stored.getvalue()).decode("ascii")


def curve(
    series: Series,
    *,
    ylabel: str,
    xlabel: str = "step",
    is_log: bool = False,
    marks: Mapping[str, float] = MappingProxyType({}),
) -> Markup:
    """Lines over a common x; NaN leaves a gap. `ylabel` is also what a screen reader says.

    `is_log` is of the x axis; `marks` are upright lines: name -> x.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, NullFormatter

    figure = Figure(figsize=(WIDTH_INCH, 2.8), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, (x, y)) in enumerate(series.items()):
        few = "o" if len(x) < 20 else ""
        axes.plot(x, y, color=INKS[number % len(INKS)], label=_plain(name), linewidth=1.8, marker=few, markersize=4)
    for number, (name, at) in enumerate(marks.items(), start=len(series)):
        axes.axvline(at, color=INKS[number % len(INKS)], label=_plain(name), linewidth=1.4, linestyle="--")
    if is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))  # text: powers of ten would be drawn as mathematics
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(_plain(xlabel))
    axes.set_ylabel(_plain(ylabel))
    axes.grid(color=FAINT, linewidth=0.7)
    _legend(axes, len(series) + len(marks))
    return _svg(figure, axes, label=f"{ylabel} over {xlabel}: {', '.join([*series, *marks])}")


def bars(values: Mapping[str, Mapping[str, float]], *, xlabel: str) -> Markup:
    """Grouped bars, lying (names have room on a phone): group -> series -> value; absent ones leave a gap."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for group in values.values() for name in group))
    thick = 0.8 / max(len(names), 1)
    figure = Figure(figsize=(WIDTH_INCH, 0.9 + len(values) * (0.14 + 0.13 * len(names))), layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(names):
        # the last series is what the page is about and has the strongest colour, the first ones the palest
        color = INKS[0] if number == len(names) - 1 else INKS[(5, 4, 1, 2, 3)[number % 5]]
        at = [
            (row + (number - (len(names) - 1) / 2) * thick, group[name])
            for row, group in enumerate(values.values())
            if name in group
        ]
        axes.barh([y for y, _ in at], [v for _, v in at], height=thick * 0.92, color=color, label=_plain(name))
        if number == len(names) - 1:
            for y, value in at:
                axes.annotate(
                    f"{value:.2f}",
                    (value, y),
                    (3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color=INK,
                )
    axes.set_yticks(range(len(values)), [_plain(group) for group in values])
    axes.set_ylim(len(values) - 0.45, -0.55)
    axes.set_xlim(0, 1.08 * max((v for group in values.values() for v in group.values()), default=1) or 1)
    axes.set_xlabel(_plain(xlabel))
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    axes.tick_params(axis="y", length=0)
    _legend(axes, len(names))
    return _svg(figure, axes, label=f"{xlabel} by group: {', '.join(names)}")


def _legend(axes: Axes, num_names: int) -> None:
    if num_names > 1:
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": min(num_names, 3)}
        axes.legend(**place, frameon=False, labelcolor=INK, borderaxespad=0.2)


def _svg(figure: Figure, axes: Axes, *, label: str) -> Markup:
    import matplotlib

    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(INK)
    stored = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Text stays text: searchable, small, in the page's font. The salt makes equal charts equal bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "page"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has the glyph
        figure.savefig(stored, format="svg", transparent=True, metadata=nothing)
    svg = stored.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same ids again in each chart
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 var(--font)", svg)
    for color, variable in VARIABLE.items():
        svg = svg.replace(color, variable)
    return render(_CHART, svg=Markup(svg), label=label)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would read $...$ as mathematics


_CHART = '<figure class="chart" role="img" aria-label="{{ label }}">{{ svg }}</figure>'

_TABLE = """<p class="note">{{ caption }}</p><div class="wide" tabindex="0"><table><thead>
{% for line in head %}
<tr>{% for text, span in line %}<th scope="col" colspan="{{ span }}">{{ text }}</th>{% endfor %}</tr>
{% endfor %}</thead><tbody>
{% for name, cells in rows %}<tr><th scope="row">{{ name }}</th>
{% for cell in cells %}
<td{% if cell.starts %} class="starts"{% endif %}>{% if cell.strong %}<strong>{{ cell.text }}</strong>
{% else %}{{ cell.text }}{% endif %}</td>
{% endfor %}</tr>{% endfor %}</tbody></table></div>
"""

_FACTS = """<dl>{% for name, value in facts.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title><style>{{ style }}</style></head>
<body><main><header><h1>{{ title }}</h1><p class="lead">{{ lead }}</p>
{% if sections | length > 2 %}<nav>
{% for anchor, section in sections %}<a href="#{{ anchor }}">{{ section.title }}</a>{% endfor %}</nav>
{% endif %}</header>
{% for anchor, section in sections %}<section id="{{ anchor }}"><h2>{{ section.title }}</h2>
{% if section.intro %}<p class="intro">{{ section.intro }}</p>{% endif %}
{{ section.body }}</section>
{% endfor %}{% if foot %}<footer>{{ foot }}</footer>{% endif %}</main></body></html>
"""

_STYLE = """
:root { color-scheme: light dark;
  --font: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  --paper: #fff; --card: #f5f6f8; --ink: #1c2230; --soft: #5c6577; --line: #dde1e8; --link: #1d55c4;
  --right: #17833f; --wrong: #c8322b; --series-0: #2458c9; --series-1: #d08a1d; --series-2: #3a9c8f;
  --series-3: #9a6bc9; --series-4: #8fb2ec; --series-5: #bcc2cc; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #12151c; --card: #1b2029; --ink: #e7eaf0; --soft: #9aa4b6; --line: #303744; --link: #8db4ff;
  --right: #45c877; --wrong: #ff7068; --series-0: #7faaff; --series-1: #e5ad55; --series-2: #5cc3b5;
  --series-3: #b794e0; --series-4: #4f6da3; --series-5: #555e70; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--font); }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 3rem; }
h1 { font-size: 1.8rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .6rem; }
h1, dd { overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .5rem; } h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
section { margin-top: 2.75rem; scroll-margin-top: 1rem; }
.lead { font-size: 1.12rem; max-width: 46rem; margin: 0; }
.intro { color: var(--soft); max-width: 46rem; margin: 0 0 1rem; }
.note { color: var(--soft); max-width: 46rem; margin: 0 0 .5rem; font-size: .88rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin-top: 1.1rem; font-size: .9rem; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
.chart { margin: 0; max-width: 38rem; } .chart svg { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; background:  /* a shadow on the right as long as there is more to scroll to */
  linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to left, #8888, transparent) right / .7rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: .32rem .75rem; text-align: right; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--line); }
td { color: var(--soft); font-variant-numeric: tabular-nums; } td strong { color: var(--ink); }
thead th { font-weight: 500; color: var(--soft); vertical-align: bottom; }
thead th[colspan]:not([colspan="1"]) { text-align: center; color: var(--ink); font-weight: 600; }
thead th[colspan]:not([colspan="1"]), .starts { border-left: 1px solid var(--line); }
tr > th:first-child { text-align: left; padding-left: 0; }
tr > th:first-child { position: sticky; left: 0; background: var(--paper); }
tbody th { font-weight: 500; } tbody tr:first-child > * { border-bottom: 2px solid var(--line); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; margin: 0; }
dl { font-size: .92rem; } dt { color: var(--soft); } dd { margin: 0; }
pre { background: var(--card); border-radius: 8px; padding: .9rem 1rem; margin: 0; font-size: .85rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; padding: .4rem 0; } details[open] > summary { margin-bottom: .4rem; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
@media (max-width: 40rem) { main { padding: 1.5rem 1rem 2rem; } h1 { font-size: 1.45rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; }
  th, td { padding: .3rem .4rem; font-size: .8rem; } thead th { white-space: normal; } }
@media print { nav { display: none; } }
"""
