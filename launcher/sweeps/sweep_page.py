"""A sweep as one HTML page that needs nothing but itself: the table, what mattered, and the metric over each parameter."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from launcher.sweeps import sweep_table
from launcher.sweeps.points import Sweep
from launcher.sweeps.sweep import in_a_name
from launcher.sweeps.sweep_table import Result
from retrieval_train import page

_LOG_FROM = 10.0
"""Numbers above 0 that lie so many times apart are drawn on a logarithmic axis."""
_MOST_NAMES = 12
"""Of an axis without numbers; more would not be readable."""


def as_html(
    made: Sweep, results: Sequence[Result], metrics: Sequence[str], *, scope: str, sort: str | None = None
) -> str:
    """The page's text."""
    metric = sort or metrics[0]
    sections = [
        page.Section("Points", _table(sweep_table.cells(results, metrics, sort=sort), caption=sweep_table.METHOD)),
        page.Section(f"{metric} by parameter", Markup("").join(_charts(results, metric)), intro=_CHARTS),
    ]
    if found := sweep_table.what_mattered(made, results, metric):
        table = _table(sweep_table.importance_cells(found), caption=_MATTERED)
        sections.insert(1, page.Section(f"What mattered for {metric}", table))
    there = sum(bool(result.metrics) for result in results)
    lead = f"{there} of {len(results)} points have numbers ({scope})."
    return page.page(f"Sweep {made.name}", lead=lead, sections=sections, foot=" ".join(sweep_table.footnotes(results)))


_CHARTS = "One dot a run, over each key that varies; a ring is a run that was stopped early."
_MATTERED = (
    "eta²: the share of the metric's variance that the groups' means explain; |rho|: Spearman's rank correlation. "
    "Of one parameter at a time, and never quite 0: 'by chance' is what one that does nothing has on average."
)


def _table(cells: Sequence[Sequence[str]], *, caption: str) -> Markup:
    heading, *body = cells
    rows = [(row[0], [page.Cell(cell, strong=row[0].endswith(sweep_table.BEST)) for cell in row[1:]]) for row in body]
    return page.table([[(name, 1) for name in heading]], rows, caption=caption)


def _charts(results: Sequence[Result], metric: str) -> list[Markup]:
    found = [result for result in results if math.isfinite(result.metrics.get(metric, math.nan))]
    keys = list(dict.fromkeys(key for result in found for key in result.values))
    return [_chart(key, [result for result in found if key in result.values], metric) for key in keys]


# --- one chart: an SVG in the page's colours


@dataclass(frozen=True)
class _Axis:
    """Where values lie, from 0 to 1."""

    at: Mapping[str, float]
    """By the value as JSON."""
    ticks: Sequence[tuple[float, str]]


def _axis(values: Sequence[Any]) -> _Axis:
    """Numbers by their size, anything else side by side."""
    names = {json.dumps(value, sort_keys=True): value for value in values}
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        is_log = min(values) > 0 and max(values) / min(values) >= _LOG_FROM
        size = math.log if is_log else float
        low, high = size(min(values)), size(max(values))
        at = {name: (size(value) - low) / (high - low) if high > low else 0.5 for name, value in names.items()}
        middle = math.exp((low + high) / 2) if is_log else (low + high) / 2
        ends = [(0.0, f"{min(values):.3g}"), (0.5, f"{middle:.3g}"), (1.0, f"{max(values):.3g}")]
        return _Axis(at, ends if high > low else [(0.5, f"{values[0]:.3g}")])
    at = {name: (place + 0.5) / len(names) for place, name in enumerate(names)}
    ticks = [(at[name], in_a_name(value)[:16]) for name, value in names.items()]
    return _Axis(at, ticks if len(ticks) <= _MOST_NAMES else [])


def _chart(key: str, results: Sequence[Result], metric: str) -> Markup:
    across = _axis([result.values[key] for result in results])
    up = _axis([result.metrics[metric] for result in results])
    dots = [
        {
            "x": _X + _WIDTH * across.at[json.dumps(result.values[key], sort_keys=True)],
            "y": _Y + _HEIGHT * (1 - up.at[json.dumps(result.metrics[metric])]),
            "told": f"{result.name}: {metric} {result.metrics[metric]:.4f}",
            "is_stopped": result.stopped_at is not None,
        }
        for result in results
    ]
    return page.render(
        _SVG,
        key=key,
        metric=metric,
        dots=dots,
        xs=[(_X + _WIDTH * at, text) for at, text in across.ticks],
        ys=[(_Y + _HEIGHT * (1 - at), text) for at, text in up.ticks],
        left=_X - 10,
        right=_X + _WIDTH + 10,
        bottom=_Y + _HEIGHT + 12,
    )


_X, _Y, _WIDTH, _HEIGHT = 66, 14, 390, 170
_SVG = """<figure class="chart" role="img" aria-label="{{ metric }} over {{ key }}">
<svg viewBox="0 0 500 240" xmlns="http://www.w3.org/2000/svg" font-size="12" fill="var(--ink)">
{% for y, text in ys %}<line x1="{{ left }}" x2="{{ right }}" y1="{{ y }}" y2="{{ y }}" stroke="var(--line)"/>
<text x="{{ left - 4 }}" y="{{ y + 4 }}" text-anchor="end">{{ text }}</text>{% endfor %}
{% for x, text in xs %}<text x="{{ x }}" y="{{ bottom + 10 }}" text-anchor="middle">{{ text }}</text>{% endfor %}
<text x="{{ (left + right) / 2 }}" y="{{ bottom + 30 }}" text-anchor="middle">{{ key }}</text>
{% for dot in dots %}
<circle cx="{{ dot.x | round(1) }}" cy="{{ dot.y | round(1) }}" r="4" stroke="var(--series-0)" stroke-width="1.5"
 fill="{{ 'none' if dot.is_stopped else 'var(--series-0)' }}"><title>{{ dot.told }}</title></circle>
{% endfor %}</svg></figure>"""
