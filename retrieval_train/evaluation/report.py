"""One evaluation as numbers (report.json), as a table for the terminal, and as a page (report.html)."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from markupsafe import Markup
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from retrieval_train import page
from retrieval_train.evaluation.gallery import Gallery, gallery_section
from retrieval_train.evaluation.metrics import MERGED, METRICS
from retrieval_train.rundir import write_text

if TYPE_CHECKING:
    from rich.table import Table

TABLED = ("mMP@5", "R@1")
TRAINED = "trained"
FIRST = ("chance", "raw_pixels", "untrained", "zero_shot")
"""The baselines of every evaluation in the order of their columns; others follow in the order given."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
ByScope = dict[str, dict[str, Finite]]
Fact = str | int | float | bool | None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


class Report(BaseModel):
    """CONTRACT's `report.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True, protected_namespaces=())

    version: Literal[1] = Field(default=1, alias="schema")
    metrics: ByScope
    """scope -> metric -> value, of the model that is evaluated."""
    baselines: dict[str, ByScope]
    """name -> scope -> metric -> value: `chance`, `raw_pixels`, `untrained` or, where training started from
    pretrained weights, `zero_shot`; any other that is compared."""
    counts: dict[str, dict[str, int]]
    """What `metrics.count` says."""
    command: str
    """What to type to get this report again."""
    model: dict[str, Fact]
    """Name, sha256 and the like."""
    index: dict[str, Fact]
    """Its config, number of vectors and dimensions."""
    date: AwareDatetime = Field(default_factory=_now)

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    def write(self, path: Path) -> None:
        write_text(path, self.to_json())

    @staticmethod
    def read(path: Path) -> Report:
        return Report.model_validate_json(path.read_bytes())

    @property
    def scopes(self) -> list[str]:
        """The rows: merged, then the domains by name, judged or not."""
        return [MERGED, *sorted((set(self.metrics) | set(self.counts)) - {MERGED})]

    @property
    def columns(self) -> dict[str, ByScope]:
        """What is compared, the evaluated model last."""
        others = [name for name in self.baselines if name not in FIRST]
        names = [*(name for name in FIRST if name in self.baselines), *others]
        return {**{name: self.baselines[name] for name in names}, TRAINED: self.metrics}


def tables(report: Report) -> list[Table]:
    """For the terminal, one a metric so that 80 columns do: the best of each row is bold, `--` is absent."""
    from rich.table import Table
    from rich.text import Text

    made = []
    width = len(report.columns)
    for number, metric in enumerate(TABLED):
        shown = Table(title=f"{metric} in one index of all domains", min_width=60)
        shown.add_column(metric)
        for name in report.columns:
            shown.add_column(_words(name), justify="right")
        for scope, cells in _rows(report):
            mine = cells[number * width : (number + 1) * width]
            texts = [Text(cell.text, style="bold" if cell.strong else "") for cell in mine]
            shown.add_row(Text(scope), *texts, end_section=scope == MERGED)
        made.append(shown)
    return made


def write_page(
    report: Report,
    path: Path,
    *,
    gallery: Gallery | None = None,
    curves: Mapping[str, page.Series] | None = None,
) -> None:
    """`report.html`: one file, no outside requests. `curves`: what is on the y axis -> lines over steps."""
    sections = [_numbers(report), _chart(report)]
    if curves:
        drawn = Markup("").join(page.curve(series, ylabel=ylabel) for ylabel, series in curves.items())
        sections.append(page.Section("Training", drawn))
    if gallery is not None:
        sections.append(gallery_section(gallery))
    sections += [_counts(report), page.Section("How to get it again", _origin(report))]
    title = f"Retrieval report: {report.model.get('name') or 'model'}"
    write_text(
        path,
        page.page(title, lead=headline(report), sections=sections, foot=f"Made {report.date:%Y-%m-%d %H:%M %Z}."),
    )


def headline(report: Report) -> str:
    """The report in one sentence."""
    best, counts = report.metrics[MERGED], report.counts[MERGED]
    text = (
        f"For {best['R@1']:.1%} of {counts['judged']:,} queries the first of {counts['index']:,} images is "
        f"right (R@1), and mMP@5 is {best['mMP@5']:.3f}"
    )
    compared = [
        f"{report.baselines[name][MERGED]['mMP@5']:.3f} {words}"
        for name, words in (
            ("untrained", "before training"),
            ("zero_shot", "with the pretrained features"),
            ("raw_pixels", "with raw pixels"),
            ("chance", "by chance"),
        )
        if name in report.baselines
    ]
    return f"{text} (it is {', '.join(compared)})." if compared else f"{text}."


def _rows(report: Report) -> list[tuple[str, list[page.Cell]]]:
    rows = []
    for scope in report.scopes:
        cells = []
        for metric in TABLED:
            values = [column.get(scope, {}).get(metric) for column in report.columns.values()]
            best = max((value for value in values if value is not None), default=None)
            for number, value in enumerate(values):
                text = "--" if value is None else f"{value:.3f}"
                is_best = value is not None and value == best
                cells.append(page.Cell(text, strong=is_best, starts=number == 0))
        rows.append((scope, cells))
    return rows


def _numbers(report: Report) -> page.Section:
    names = [_words(name) for name in report.columns]
    head = [
        [("", 1), *((metric, len(names)) for metric in TABLED)],
        [("", 1), *((name, 1) for _ in TABLED for name in names)],
    ]
    body = page.table(
        head, _rows(report), caption="The best of a row in bold. All queries search one index of all domains."
    )
    others = [name for name in METRICS if name not in TABLED]
    values = ", ".join(
        f"{name} {report.metrics[MERGED][name]:.3f}" for name in others if name in report.metrics[MERGED]
    )
    defined = page.facts({name: metric.meaning for name, metric in METRICS.items()})
    more = page.render(_DEFINITIONS, values=values, defined=defined)
    return page.Section("Numbers", body + more)


def _chart(report: Report) -> page.Section:
    drawn = [name for name in report.columns if name != "chance"]
    values = {
        scope: {
            _words(name): found
            for name in drawn
            if (found := report.columns[name].get(scope, {}).get("mMP@5")) is not None
        }
        for scope in report.scopes
    }
    return page.Section("By domain", page.bars(values, xlabel="mMP@5"))


def _counts(report: Report) -> page.Section:
    names = list(report.counts[MERGED])
    rows = [
        (scope, [page.Cell(f"{report.counts[scope][name]:,}") for name in names])
        for scope in report.scopes
        if scope in report.counts
    ]
    caption = "Judged: queries with an image of their class in the index; the others are in no mean."
    return page.Section(
        "What was searched", page.table([[("", 1), *((name, 1) for name in names)]], rows, caption=caption)
    )


def _origin(report: Report) -> Markup:
    known: dict[str, Any] = {"model": report.model, "index": report.index}
    return page.command(report.command) + page.render("<h3>Model and index</h3>") + page.facts(known)


def _words(name: str) -> str:
    return name.replace("_", " ")


_DEFINITIONS = """
<details class="more"><summary>How the metrics are defined, and the others: {{ values }}</summary>
{{ defined }}
<p class="note">Each is a mean over judged queries. Equal scores are ordered by key. Chance is the exact
expectation of a random order; raw pixels are the image squeezed to 16 by 16, without its mean.</p></details>
"""
