"""What a sweep's table says beside means: what mattered, what was stopped, and the page."""

from __future__ import annotations

import itertools
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from launcher.sweeps import sweep_page, sweep_table
from launcher.sweeps.importance import importance
from launcher.sweeps.points import Sweep
from launcher.sweeps.sweep_table import Result
from retrieval_train.config import ConfigError

MADE = Sweep("s.yaml", [], Path("it.yaml"), name="mine", drawn=frozenset({"lr"}))


def result(name: str, values: dict[str, Any], metric: float | None, **more: Any) -> Result:
    setting = " ".join(f"{key}={value}" for key, value in values.items() if key != "seed")
    metrics = {} if metric is None else {"m": metric, "other": -metric}
    state = "failed: out of memory" if metric is None else "done"
    return Result(name, setting, f"runs/{name}", state, None, True, metrics, values, **more)


def grid() -> list[tuple[dict[str, Any], float]]:
    """margin decides, seed is noise."""
    draw = random.Random(0)
    return [
        ({"margin": margin, "seed": seed, "one": 1}, margin + 0.1 * draw.random())
        for margin, seed in itertools.product([0.1, 0.5, 0.9], range(4))
    ]


# --- what mattered


def test_eta_squared_is_the_share_of_the_sums_of_squares_between_groups_and_scipys_f() -> None:
    points = grid()
    margin, seed = importance(points, drawn=())
    assert (margin.key, margin.measure, seed.key) == ("margin", "eta²", "seed"), "`one` tells nothing"
    groups = [[metric for values, metric in points if values["margin"] == level] for level in (0.1, 0.5, 0.9)]
    f, between, within = stats.f_oneway(*groups).statistic, 2, 9
    assert margin.value == pytest.approx(f * between / (f * between + within)) and margin.value > 0.9
    assert [margin.by_chance, seed.by_chance] == pytest.approx([2 / 11, 3 / 11])
    noise = np.random.default_rng(0).standard_normal((400, 12))
    by_chance = [importance([(values, x) for (values, _), x in zip(points, row, strict=True)], ()) for row in noise]
    mean = np.mean([one.value for found in by_chance for one in found if one.key == "seed"])
    assert mean == pytest.approx(3 / 11, abs=0.03), "that is what chance gives"


def test_drawn_numbers_are_told_by_spearmans_rank_correlation() -> None:
    draw = random.Random(1)
    rates = [float(f"{10 ** draw.uniform(-5, -2):.1g}") for _ in range(30)]
    metrics = [-(rate**0.1) + 0.05 * draw.random() for rate in rates]
    (found,) = importance([({"lr": rate}, metric) for rate, metric in zip(rates, metrics, strict=True)], {"lr"})
    assert len(set(rates)) < 30, "the case must have ties"
    assert (found.measure, found.n) == ("|rho|", 30)
    assert found.value == pytest.approx(-stats.spearmanr(rates, metrics).statistic)
    noise = np.random.default_rng(0).standard_normal((400, 30))
    by_chance = [importance([({"lr": r}, x) for r, x in zip(rates, row, strict=True)], {"lr"}) for row in noise]
    assert np.mean([found[0].value for found in by_chance]) == pytest.approx(found.by_chance, abs=0.015)


@pytest.mark.parametrize(
    "points",
    [
        [],
        [({"a": 1}, 0.1), ({"a": 2}, 0.2)],
        [({"a": place % 2}, 0.5) for place in range(6)],
        [({"a": place}, place / 9) for place in range(6)],
        [({"a": 1}, place / 9) for place in range(6)],
        [({"a": place % 2}, float("nan")) for place in range(6)],
    ],
    ids=["none", "two", "equal metrics", "no two share a value", "one value", "no numbers"],
)
def test_nothing_is_said_of_what_cannot_be_told(points: list[Any]) -> None:
    assert importance(points, ()) == []


# --- the tables


def found() -> list[Result]:
    results = [result(f"p{at}", values, metric) for at, (values, metric) in enumerate(grid())]
    results[0] = result("p0", grid()[0][0], 0.01, stopped_at=1 / 3)
    return [*results, result("<odd>", {"margin": 0.7, "seed": 0, "one": 1}, None)]


def test_the_best_is_marked_stopped_and_failed_points_are_named_and_a_column_sorts() -> None:
    heading, best, *_, odd = sweep_table.cells(found(), ["m", "other"])
    assert heading == ["point", "n", "m", "other", "missing", "stopped"]
    assert best[0] == "margin=0.9 one=1 (best)"
    assert odd[0] == "margin=0.7 one=1" and odd[-2:] == ["<odd> (failed: out of memory)", ""]
    worst = sweep_table.cells(found(), ["m", "other"], sort="other")[1]
    assert worst[0] == "margin=0.1 one=1 (best)" and worst[-1] == "p0 (stopped at 33.3%)"
    with pytest.raises(ConfigError, match=r"--sort +'loss' is no column; there are: m, other"):
        sweep_table.rows(found(), ["m", "other"], sort="loss")
    assert sweep_table.footnotes(found()) == [
        "1 of 13 points were stopped early: their numbers are those of a part of the way"
    ]


def test_the_terminal_markdown_and_json_say_what_mattered(capsys: pytest.CaptureFixture[str]) -> None:
    sweep_table.show(MADE, found(), ["m"], scope="merged")
    assert re.search(
        r"what mattered for m .*\n\nparameter .*\nmargin +eta² +0.9\d +0.18 +12\n", capsys.readouterr().out
    )
    assert "| margin | eta² | 0.9" in sweep_table.as_markdown(MADE, found(), ["m"], scope="merged")
    about = json.loads(sweep_table.as_json(MADE, found(), ["m"], scope="merged"))
    assert [one["key"] for one in about["importance"]] == ["margin", "seed"]
    assert about["points"][0]["stopped_at"] == pytest.approx(1 / 3)


class _Seen(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_has_a_chart_of_each_key_loads_nothing_and_runs_nothing() -> None:
    results = [*found(), result("<script>", {"margin": 0.1, "seed": 9, "one": "<b>$x$"}, 0.3)]
    text = sweep_page.as_html(MADE, results, ["m"], scope="merged")
    tags = _Seen(text).tags
    assert not {"script", "b", "link", "img"} & {tag for tag, _ in tags}
    assert not re.search(r'(src|href)="(?!#)', text)
    charts = [attributes["aria-label"] for tag, attributes in tags if tag == "figure"]
    assert charts == ["m over margin", "m over seed", "m over one"]
    dots = [attributes for tag, attributes in tags if tag == "circle"]
    assert len(dots) == 3 * 13 and sum(dot["fill"] == "none" for dot in dots) == 3, "rings are what was stopped"
    places = [(float(dot["cx"] or 0), float(dot["cy"] or 0)) for dot in dots]
    assert all(0 < x < 480 and 0 < y < 240 for x, y in places)
    best = max(range(12), key=lambda at: grid()[at][1])
    assert places[best][1] == min(y for _, y in places[:13]), "above means better"


def test_numbers_far_apart_lie_on_a_logarithmic_axis() -> None:
    rates = [1e-5, 1e-4, 1e-3]
    text = sweep_page.as_html(MADE, [result(f"p{r}", {"lr": r}, r) for r in rates], ["m"], scope="merged")
    across = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', text)]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)
    assert ">1e-05<" in text and ">0.0001<" in text
