from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from retrieval_train.evaluation.baselines import chance
from retrieval_train.evaluation.gallery import Gallery, choose, examples
from retrieval_train.evaluation.metrics import Truth, count, evaluate
from retrieval_train.evaluation.report import Report, headline, tables, write_page
from retrieval_train.evaluation.search import Hits

NASTY = "<b onclick='x'>&"


def small_truth() -> Truth:
    """Two domains, three queries of each, four images of each of four classes, two distractors."""
    index_label_N = np.array([0, 1, 2, 3] * 4 + [-1, -1])
    query_label_Q = np.array([0, 0, 1, 2, 3, 3])
    return Truth(
        query_label_Q=query_label_Q,
        query_domain_Q=query_label_Q // 2,
        index_label_N=index_label_N,
        index_domain_N=np.maximum(index_label_N, 0) // 2,
        domains=("zoo", "art"),
    )


def small_hits(truth: Truth) -> Hits:
    """Queries 0, 2 and 4 get everything right, the others everything wrong as long as there is."""
    id_QK = np.empty((6, 10), np.int64)
    for q, label in enumerate(truth.query_label_Q):
        is_right_N = truth.index_label_N == label
        id_QK[q] = np.argsort(is_right_N if q % 2 else ~is_right_N, kind="stable")[:10]
    return Hits(np.tile(np.linspace(1, 0.1, 10, dtype=np.float32), (6, 1)), id_QK)


def small_report(**changed: object) -> Report:
    truth = small_truth()
    values: dict[str, object] = {
        "metrics": evaluate(small_hits(truth), truth),
        "baselines": {"other_model": {"merged": {"mMP@5": 0.75}}, "chance": chance(truth)},
        "counts": count(truth),
        "command": f"python launcher/submit.py {NASTY}",
        "model": {"name": NASTY, "sha256": "0123"},
        "index": {"name": "flat", "vectors": 18},
        "date": "2026-01-02T03:04:05Z",
    }
    return Report.model_validate(values | changed)


def small_gallery() -> Gallery:
    def picture(key: str) -> bytes:
        stored = io.BytesIO()
        Image.new("RGB", (30, 20), (200, 30, 30)).save(stored, "JPEG")
        return stored.getvalue()

    truth = small_truth()
    queries = [f"{'zoo' if q < 3 else 'art'}/query{q}{NASTY}" for q in range(6)]
    labels = [f"zoo/cat{NASTY}", "zoo/dog", "art/oil", "art/ink"]
    return Gallery(
        hits=small_hits(truth),
        truth=truth,
        query_keys=queries,
        index_keys=[f"any/image{i}" for i in range(18)],
        labels=labels,
        picture=picture,
    )


def test_report_json_has_the_keys_of_the_contract(tmp_path: Path) -> None:
    report = small_report()
    report.write(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert list(written) == ["schema", "metrics", "baselines", "counts", "command", "model", "index", "date"]
    assert written["schema"] == 1 and written["date"] == "2026-01-02T03:04:05Z"
    assert written["metrics"]["merged"]["R@1"] == 0.5
    assert Report.read(tmp_path / "report.json") == report
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_report_that_could_not_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError("disk full")

    small_report().write(tmp_path / "report.json")
    before = (tmp_path / "report.json").read_text()
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        small_report(command="another").write(tmp_path / "report.json")
    assert (tmp_path / "report.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_report_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(ValidationError, match=r"metrics\.merged\.R@1\s+Input should be a finite number"):
        small_report(metrics={"merged": {"R@1": float("nan")}})
    with pytest.raises(ValidationError, match="extra_key"):
        small_report(extra_key=1)


def starred(cell: object) -> str:
    return f"*{cell}*" if isinstance(cell, Text) and cell.style == "bold" else str(cell)


def lines_of(report: Report) -> list[list[str]]:
    """The rows of both tables, one after the other; what is bold stands between asterisks."""
    lines = []
    for shown in tables(report):
        columns = [list(map(starred, column.cells)) for column in shown.columns]
        lines += [list(row) for row in zip(*columns, strict=True)]
    return lines


def test_the_table_has_merged_first_domains_sorted_and_the_best_in_bold() -> None:
    names = [[str(column.header) for column in shown.columns] for shown in tables(small_report())]
    assert names == [[metric, "chance", "other model", "trained"] for metric in ("mMP@5", "R@1")]
    assert lines_of(small_report()) == [
        ["merged", "0.222", "*0.750*", "0.500"],
        ["art", "0.222", "--", "*0.333*"],
        ["zoo", "0.222", "--", "*0.667*"],
        ["merged", "0.222", "--", "*0.500*"],
        ["art", "0.222", "--", "*0.333*"],
        ["zoo", "0.222", "--", "*0.667*"],
    ]


def test_the_table_prints() -> None:
    printed = io.StringIO()
    Console(width=80, file=printed).print(*tables(small_report()))
    assert "merged" in printed.getvalue() and "…" not in printed.getvalue()


def test_compared_models_stand_between_untrained_and_trained_in_the_given_order() -> None:
    names = ("zero", "raw_pixels", "alpha", "untrained", "chance")
    report = small_report(baselines={name: {"merged": {"R@1": 0.1}} for name in names})
    assert list(report.columns) == ["chance", "raw_pixels", "untrained", "zero", "alpha", "trained"]


def test_a_domain_without_a_judged_query_keeps_its_row() -> None:
    lonely = dataclasses.replace(small_truth(), domains=("zoo", "art", "new"))
    report = small_report(counts=count(lonely))
    assert [row[0] for row in lines_of(report)] == ["merged", "art", "new", "zoo"] * 2
    assert lines_of(report)[2][1:] == ["--"] * 3


def test_the_headline_says_what_is_compared() -> None:
    text = headline(small_report())
    first = "For 50.0% of 6 queries the first of 18 images is right (R@1), and mMP@5 is 0.500"
    assert text == f"{first} (it is 0.222 by chance)."


def test_successes_and_failures_are_shown_and_the_order_of_queries_does_not_matter() -> None:
    keys = [f"key{i}" for i in range(40)]
    right_Q = np.array([float(i % 4 == 0) for i in range(40)])
    right_Q[3] = np.nan
    rows = choose(keys, right_Q, ~np.isnan(right_Q), num=6)
    assert right_Q[rows].tolist() == [1, 1, 1, 0, 0, 0]
    turned = choose(keys[::-1], right_Q[::-1], ~np.isnan(right_Q[::-1]), num=6)
    assert [keys[row] for row in rows] == [keys[::-1][row] for row in turned]


@pytest.mark.parametrize(
    ("num_right", "num_wrong", "expected"), [(9, 0, 4), (1, 9, 1), (0, 9, 0), (9, 1, 3), (1, 1, 1)]
)
def test_where_one_kind_is_short_the_other_fills_up(num_right: int, num_wrong: int, expected: int) -> None:
    right_Q = np.array([1.0] * num_right + [0.0] * num_wrong)
    rows = choose([str(i) for i in range(len(right_Q))], right_Q, np.ones(len(right_Q), bool), num=4)
    assert len(rows) == min(4, num_right + num_wrong) == len(set(rows))
    assert right_Q[rows].sum() == expected


def test_an_example_tells_right_hits_from_wrong_ones() -> None:
    shown = examples(small_gallery())
    assert list(shown) == ["art", "zoo"]
    first, *_, last = shown["zoo"]
    assert [hit.is_right for hit in first.hits] == [True] * 4 + [False]
    assert first.verdict == "4 of 5 right · 4 to be found · mMP@5 1.00"
    assert not any(hit.is_right for hit in last.hits)


def test_the_page_shows_everything_and_escapes_it(tmp_path: Path) -> None:
    curves = {"loss": {"train": ([0, 1], [2, 1])}}
    write_page(small_report(), tmp_path / "report.html", gallery=small_gallery(), curves=curves)
    html = (tmp_path / "report.html").read_text()
    assert NASTY not in html and "&lt;b onclick=" in html
    assert html.count("data:image/webp") == 6 * 6
    for text in (
        "For 50.0% of 6 queries",
        "2 of 3 first hits right",
        "distractor",
        "sha256",
        "submit.py",
        "2026-01-02 03:04",
    ):
        assert text in html
    assert html.count('class="card right"') == html.count('alt="right: ') == html.count("✓</span>") > 0
    assert html.count('class="card wrong"') == html.count('alt="wrong: ') == html.count("✗</span>") > 0


def test_the_page_needs_no_gallery_and_no_baselines(tmp_path: Path) -> None:
    write_page(small_report(baselines={}), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "What it finds" not in html and "mMP@5 is 0.500." in html
