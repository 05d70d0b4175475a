"""A sweep as a table: for all points that differ in their seed or fold alone, the mean of a metric and how sure it is;
and how much each parameter mattered."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs import failure as failures
from jobs import job
from jobs.job import JobConfig
from jobs.training import halving
from launcher.looks.watch import shown
from launcher.sweeps import points
from launcher.sweeps.importance import Importance, importance
from launcher.sweeps.points import Sweep
from launcher.sweeps.sweep import Point
from launcher.sweeps.sweep_file import NUMBERS
from retrieval_train.config import ConfigError
from retrieval_train.evaluation.metrics import MERGED
from retrieval_train.rundir import RunDir, read_json

METHOD = "mean ± half of the 95% confidence interval of the mean (Student t over n seeds and folds; n = 1: none)"
BEST = " (best)"


@dataclass(frozen=True)
class Estimate:
    """The mean of n values and half the width of its confidence interval; None where the values cannot tell."""

    n: int
    mean: float | None
    half: float | None


def estimate(values: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Mean ± t(n - 1) s / sqrt(n), s with n - 1 below: what seeds of one config scatter, and nothing else."""
    n = len(values)
    if n == 0:
        return Estimate(0, None, None)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(1, mean, None)
    from scipy.special import stdtrit

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Estimate(n, mean, float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n))


@dataclass(frozen=True)
class Result:
    """One point as it was found."""

    name: str
    row: str
    """What tells its row from the others: all that varies but seed and fold."""
    run: str
    state: str
    report: str | None
    """The file with its numbers; None where there is none yet."""
    is_same_config: bool
    """False: the newest run of that name, whose config or code is not today's."""
    metrics: Mapping[str, float]
    values: Mapping[str, Any] = field(default_factory=dict)
    """Of the keys that vary."""
    stopped_at: float | None = None
    """Where it was stopped for being behind the others: a share of its length."""


@dataclass(frozen=True)
class Row:
    """All seeds and folds of one point."""

    name: str
    estimates: Mapping[str, Estimate]
    missing: tuple[str, ...]
    """Points without numbers, and their state."""
    stopped: tuple[str, ...] = ()
    """Points that were stopped early, and where."""


def rows(results: Sequence[Result], metrics: Sequence[str], *, sort: str | None = None) -> list[Row]:
    """The best mean of `sort` first, by default the first metric; rows without numbers last."""
    if sort is not None and sort not in metrics:
        raise ConfigError("command line", [("--sort", f"'{sort}' is no column; there are: {', '.join(metrics)}")])
    found = []
    for name in dict.fromkeys(result.row for result in results):
        mine = [result for result in results if result.row == name]
        estimates = {m: estimate([result.metrics[m] for result in mine if m in result.metrics]) for m in metrics}
        missing = tuple(f"{result.name} ({result.state})" for result in mine if not result.metrics)
        stopped = tuple(f"{result.name} ({_stopped(result)})" for result in mine if result.stopped_at is not None)
        found.append(Row(name, estimates, missing, stopped))
    first = [row.estimates[sort or metrics[0]].mean for row in found]
    order = sorted(range(len(found)), key=lambda place: (first[place] is None, -(first[place] or 0.0)))
    return [found[place] for place in order]


def _stopped(result: Result) -> str:
    return f"stopped at {100 * (result.stopped_at or 0):.3g}%"


def what_mattered(made: Sweep, results: Sequence[Result], metric: str) -> list[Importance]:
    """Of every key that varies, by the points that have numbers."""
    known = [(result.values, result.metrics[metric]) for result in results if metric in result.metrics]
    return importance(known, made.drawn)


# --- what is there


def look(made: Sweep, metrics: Sequence[str], *, scope: str) -> list[Result]:
    """Every point and its numbers, as far as they are there. Raises ConfigError for metrics that no report has."""
    if made.search is not None:
        made = replace(made, points=[made.trial(trial.number, trial.values) for trial in made.study.trials()])
        if not made.points:
            raise ConfigError(made.where, [("search", "no trial has begun, or the base has changed since; submit it")])
    return [_result(made, point, config, metrics, scope) for point, config in points.checked(made)]


def _result(made: Sweep, point: Point, config: JobConfig, metrics: Sequence[str], scope: str) -> Result:
    run, is_same = _newest(config)
    state: str = run.state or "missing"
    report: Path | None = run.report
    if made.then is not None:
        report = None
        if (run.export / "model.json").is_file() and state == "done":
            evaluation, is_same_too = _evaluation(made, point, run)
            state = f"evaluation {evaluation.state or 'missing'}"
            report, is_same = evaluation.report, is_same and is_same_too
    if report is not None and report.is_file():
        found = _numbers(report, metrics, scope)
    else:
        found, report = _judged(config, run, metrics, scope) if state == "done" else {}, run.metrics
    if state == "failed":
        state = _failure(run)
    where = str(report) if report is not None and found else None
    rungs = getattr(config, "halving", None)
    stopped_at = halving.stopped_at(rungs, run.path.name) if rungs is not None else None
    values = {key: value for key, value in point.values.items() if key not in NUMBERS}
    name, row = point.name, point.setting or "base"
    return Result(name, row, shown(run.path), state, where, is_same, found, values, stopped_at)


def _failure(run: RunDir) -> str:
    """With its kind, where it is known."""
    told = failures.read(run)
    return f"failed: {told.failure.kind.replace('_', ' ')}" if told else "failed"


def _newest(config: JobConfig) -> tuple[RunDir, bool]:
    """The run of that config or, where it is not there, the newest of its name; whether it is the former."""
    run = RunDir(Path.cwd() / job.run_folder(config).path)
    link = config.runs_root / config.run.name
    if run.state is None and link.is_symlink() and link.exists():
        return RunDir(link.resolve()), False
    return run, True


def _evaluation(made: Sweep, point: Point, run: RunDir) -> tuple[RunDir, bool]:
    """The evaluation of exactly this export."""
    config = made.evaluation(point, run)
    found, is_same = _newest(config)
    if is_same or not found.report.is_file():
        return found, is_same
    judged = read_json(found.report).get("model", {}).get("sha256")
    if judged == read_json(run.export / "model.json").get("sha256"):
        return found, False
    return RunDir(Path.cwd() / job.run_folder(config).path), True


def _judged(config: JobConfig, run: RunDir, metrics: Sequence[str], scope: str) -> dict[str, float]:
    """Of the last evaluation during a training, where the run made any; {} where it did not."""
    judge = getattr(config, "evaluate", None)
    if judge is None:
        return {}
    prefix = f"{judge.split}/" if scope == MERGED else f"{judge.split}/{scope}/"
    lines = (json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines() if f'"{prefix}' in line)
    last = {key[len(prefix) :]: value for line in lines for key, value in line.items() if key.startswith(prefix)}
    if not last:
        raise ConfigError(str(run.metrics), [("--scope", f"'{scope}' was not judged; merged and the domains are")])
    chosen = _chosen(dict(sorted(last.items())), metrics, run.metrics, "was not judged")
    return {metric: float(value) for metric, value in chosen.items()}


def _numbers(report: Path, metrics: Sequence[str], scope: str) -> dict[str, float]:
    scopes = read_json(report).get("metrics")
    if not isinstance(scopes, dict) or scope not in scopes:
        known = ", ".join(scopes) if isinstance(scopes, dict) else "none"
        raise ConfigError(str(report), [("--scope", f"'{scope}' is not in the report; there are: {known}")])
    return _chosen(scopes[scope], metrics, report, "is not in the report")


def _chosen(values: Mapping[str, float], metrics: Sequence[str], file: Path, told: str) -> dict[str, float]:
    if odd := [metric for metric in metrics if metric not in values]:
        known = ", ".join(name for name in values if "/" not in name)
        raise ConfigError(str(file), [("--metric", f"'{name}' {told}; there are: {known}") for name in odd])
    return {metric: values[metric] for metric in metrics}


# --- in words


def as_json(
    made: Sweep, results: Sequence[Result], metrics: Sequence[str], *, scope: str, sort: str | None = None
) -> str:
    about: dict[str, Any] = {"schema": 1, "sweep": made.where, "scope": scope, "metrics": list(metrics)}
    about |= {"method": METHOD, "rows": [asdict(row) for row in rows(results, metrics, sort=sort)]}
    about |= {"importance": [asdict(one) for one in what_mattered(made, results, sort or metrics[0])]}
    return json.dumps(about | {"points": [asdict(result) for result in results]}, indent=2)


def cells(results: Sequence[Result], metrics: Sequence[str], *, sort: str | None = None) -> list[list[str]]:
    """The table, its heading first; the last columns are there where something is missing or was stopped."""
    found = rows(results, metrics, sort=sort)
    more = {"missing": [row.missing for row in found], "stopped": [row.stopped for row in found]}
    shown_too = {name: column for name, column in more.items() if any(column)}
    is_contest = sum(row.estimates[sort or metrics[0]].mean is not None for row in found) > 1
    body = []
    for place, row in enumerate(found):
        n = max(each.n for each in row.estimates.values())
        numbers = [_in_words(row.estimates[metric]) for metric in metrics]
        name = row.name + (BEST if is_contest and place == 0 else "")
        body.append([name, str(n), *numbers, *(", ".join(column[place]) for column in shown_too.values())])
    return [["point", "n", *metrics, *shown_too], *body]


def _in_words(found: Estimate) -> str:
    if found.mean is None:
        return "--"
    return f"{found.mean:.3f}" + ("" if found.half is None else f" ± {found.half:.3f}")


def importance_cells(found: Sequence[Importance]) -> list[list[str]]:
    """A table, its heading first."""
    body = [[one.key, one.measure, f"{one.value:.2f}", f"{one.by_chance:.2f}", str(one.n)] for one in found]
    return [["parameter", "measure", "value", "by chance", "n"], *body]


def footnotes(results: Sequence[Result]) -> list[str]:
    """What a reader of the numbers has to know."""
    found = []
    if other := [result.name for result in results if result.metrics and not result.is_same_config]:
        found.append(
            f"of runs whose config, data or code's defaults are not today's, found by their name: {', '.join(other)}"
        )
    if stopped := sum(result.stopped_at is not None for result in results):
        found.append(
            f"{stopped} of {len(results)} points were stopped early: their numbers are those of a part of the way"
        )
    return found


def as_markdown(
    made: Sweep, results: Sequence[Result], metrics: Sequence[str], *, scope: str, sort: str | None = None
) -> str:
    lines = [f"{made.where}, {scope}: {METHOD}.", "", *_lines(cells(results, metrics, sort=sort))]
    lines += [f"\n{note}" for note in footnotes(results)]
    if found := what_mattered(made, results, sort or metrics[0]):
        lines += ["", f"What mattered for {sort or metrics[0]}:", "", *_lines(importance_cells(found))]
    return "\n".join(lines)


def _lines(table: Sequence[Sequence[str]]) -> list[str]:
    heading, *body = table
    marked = [heading, ["---"] * len(heading), *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in marked]


def show(
    made: Sweep, results: Sequence[Result], metrics: Sequence[str], *, scope: str, sort: str | None = None
) -> None:
    """The tables on the terminal."""
    table = cells(results, metrics, sort=sort)
    print(f"{made.where}, {scope}: {METHOD}\n")
    _print(table)
    for note in footnotes(results):
        print(f"\n{note}")
    if found := what_mattered(made, results, sort or metrics[0]):
        print(f"\nwhat mattered for {sort or metrics[0]} (docs/sweeps.md)\n")
        _print(importance_cells(found))


def _print(rows_of_text: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    heading, *body = rows_of_text
    table = Table(box=None, pad_edge=False)
    for name in heading:
        table.add_column(name, overflow="fold", no_wrap=name not in ("missing", "stopped"))
    for row in body:
        table.add_row(*map(escape, row), style="bold" if row[0].endswith(BEST) else None)
    console = Console()
    console.print(table, width=None if console.is_terminal else 160)
