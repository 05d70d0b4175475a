"""A sweep as a table: for all points that differ in their seed alone, the mean of a metric and how sure it is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs import job
from jobs.job import JobConfig
from launcher import points, sweep
from launcher.points import Sweep
from launcher.sweep import Point
from launcher.watch import shown
from retrieval_train.config import ConfigError
from retrieval_train.evaluation.metrics import MERGED
from retrieval_train.rundir import RunDir, read_json

SEED = "seed"
METHOD = "mean ± half of the 95% confidence interval of the mean (Student t over n seeds; n = 1: none)"


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
    """What tells its row from the others: all that varies but the seed."""
    run: str
    state: str
    report: str | None
    """The file with its numbers; None where there is none yet."""
    is_same_config: bool
    """False: the newest run of that name, whose config or code is not today's."""
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """All seeds of one point."""

    name: str
    estimates: Mapping[str, Estimate]
    missing: tuple[str, ...]
    """Points without numbers, and their state."""


def rows(results: Sequence[Result], metrics: Sequence[str]) -> list[Row]:
    """The best mean of the first metric first; rows without numbers last."""
    found = []
    for name in dict.fromkeys(result.row for result in results):
        mine = [result for result in results if result.row == name]
        estimates = {m: estimate([result.metrics[m] for result in mine if m in result.metrics]) for m in metrics}
        missing = tuple(f"{result.name} ({result.state})" for result in mine if not result.metrics)
        found.append(Row(name, estimates, missing))
    first = [row.estimates[metrics[0]].mean for row in found]
    order = sorted(range(len(found)), key=lambda place: (first[place] is None, -(first[place] or 0.0)))
    return [found[place] for place in order]


# --- what is there


def look(made: Sweep, metrics: Sequence[str], *, scope: str) -> list[Result]:
    """Every point and its numbers, as far as they are there. Raises ConfigError for metrics that no report has."""
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
    row = " ".join(
        sweep.in_a_name(value) if key == sweep.POINT else f"{key}={sweep.in_a_name(value)}"
        for key, value in point.values.items()
        if key != SEED
    )
    where = str(report) if report is not None and found else None
    return Result(point.name, row or "base", shown(run.path), state, where, is_same, found)


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
    if odd := [metric for metric in metrics if metric not in last]:
        known = ", ".join(sorted(name for name in last if "/" not in name))
        raise ConfigError(
            str(run.metrics), [("--metric", f"'{name}' was not judged; there are: {known}") for name in odd]
        )
    return {metric: float(last[metric]) for metric in metrics}


def _numbers(report: Path, metrics: Sequence[str], scope: str) -> dict[str, float]:
    scopes = read_json(report).get("metrics")
    if not isinstance(scopes, dict) or scope not in scopes:
        known = ", ".join(scopes) if isinstance(scopes, dict) else "none"
        raise ConfigError(str(report), [("--scope", f"'{scope}' is not in the report; there are: {known}")])
    values: dict[str, float] = scopes[scope]
    if odd := [metric for metric in metrics if metric not in values]:
        known = ", ".join(values)
        raise ConfigError(
            str(report), [("--metric", f"'{name}' is not in the report; there are: {known}") for name in odd]
        )
    return {metric: values[metric] for metric in metrics}


# --- in words


def as_json(made: Sweep, results: Sequence[Result], metrics: Sequence[str], *, scope: str) -> str:
    about: dict[str, Any] = {"schema": 1, "sweep": made.where, "scope": scope, "metrics": list(metrics)}
    about |= {"method": METHOD, "rows": [asdict(row) for row in rows(results, metrics)]}
    return json.dumps(about | {"points": [asdict(result) for result in results]}, indent=2)


def cells(results: Sequence[Result], metrics: Sequence[str]) -> list[list[str]]:
    """The table, its heading first; the last column is there where something is missing."""
    found = rows(results, metrics)
    lacks = any(row.missing for row in found)
    body = []
    for row in found:
        n = max(each.n for each in row.estimates.values())
        numbers = [_in_words(row.estimates[metric]) for metric in metrics]
        body.append([row.name, str(n), *numbers, *([", ".join(row.missing)] if lacks else [])])
    return [["point", "n", *metrics, *(["missing"] if lacks else [])], *body]


def _in_words(found: Estimate) -> str:
    if found.mean is None:
        return "--"
    return f"{found.mean:.3f}" + ("" if found.half is None else f" ± {found.half:.3f}")


def footnotes(results: Sequence[Result]) -> list[str]:
    """What a reader of the numbers has to know."""
    other = [result.name for result in results if result.metrics and not result.is_same_config]
    if not other:
        return []
    return [f"of runs whose config, data or code's defaults are not today's, found by their name: {', '.join(other)}"]


def as_markdown(made: Sweep, results: Sequence[Result], metrics: Sequence[str], *, scope: str) -> str:
    heading, *body = cells(results, metrics)
    lines = [f"{made.where}, {scope}: {METHOD}.", "", _line(heading), _line(["---"] * len(heading))]
    return "\n".join([*lines, *map(_line, body), *(f"\n{note}" for note in footnotes(results))])


def _line(row: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def show(made: Sweep, results: Sequence[Result], metrics: Sequence[str], *, scope: str) -> None:
    """The table on the terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    heading, *body = cells(results, metrics)
    table = Table(box=None, pad_edge=False)
    for name in heading:
        table.add_column(name, overflow="fold", no_wrap=name not in ("missing",))
    for row in body:
        table.add_row(*map(escape, row))
    console = Console()
    print(f"{made.where}, {scope}: {METHOD}\n")
    console.print(table, width=None if console.is_terminal else 160)
    for note in footnotes(results):
        print(f"\n{note}")
