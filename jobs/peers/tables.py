"""An outcome as tables for the screen and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.peers.demand import SPEEDS, Demand, cores_per_gpu
from jobs.peers.outcome import OPEN_CLIP, QUIET, SUITE, Outcome, Race


@dataclass(frozen=True)
class Table:
    """The first cell of a row is its name."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    """Below the title, on the page."""


def tables_of(outcome: Outcome) -> list[Table]:
    made = [_race_table(race) for race in outcome.races]
    rows = [(goal.what, goal.wanted, goal.found, "yes" if goal.is_met else "no") for goal in outcome.goals]
    made.append(Table("Goals", ("", "wanted", "here", "met"), rows, "Judged by the figures above."))
    if outcome.absent:
        made.append(
            Table("Left out", ("", "why"), list(outcome.absent.items()), "Had no figure in some race or in all.")
        )
    if outcome.demand:
        made.append(_demand_table(outcome.demand))
    return made


def _race_table(race: Race) -> Table:
    columns = ("", "images/s per core", "from", "to", "per CPU s", "first batch s", f"{SUITE} is", "by CPU time")
    rows = []
    for name, rates in sorted(race.rates.items(), key=lambda item: -item[1].images_per_s):
        per_core = [
            f"{value / race.workers:,.0f}" for value in (rates.images_per_s, min(rates.per_s), max(rates.per_s))
        ]
        ratios = (None, None) if name == SUITE else (race.times(name), race.times_by_cpu(name))
        shown = ["" if times is None else f"{times:.2f} x" for times in ratios]
        rows.append((name, *per_core, f"{rates.images_per_cpu_s:,.0f}", f"{rates.first_batch_s:.2f}", *shown))
    return Table(race.title[0].upper() + race.title[1:], columns, rows, _where(race))


def _where(race: Race) -> str:
    where = "On one core." if race.workers == 1 else f"On {race.workers} cores."
    if race.share_had >= QUIET:
        return where
    return f"{where} They had only {race.share_had:.0%} of it: something else ran, so go by the ratios by CPU time."


def _demand_table(demand: Demand) -> Table:
    rows = [(f"{speed:,} images/s", str(cores_per_gpu(speed, demand.core_images_per_s))) for speed in SPEEDS]
    note = f"At {demand.core_images_per_s:,.0f} images/s per core."
    return Table("Cores per GPU", ("the model takes", "cores per GPU"), rows, note)


NOTES = (
    "Each contestant runs in processes of its own, all of them on as many cores as it has workers; they take turns, and "
    "stand still between them. Medians over the rounds; from and to are the slowest and the fastest round. Ratios are "
    "medians of each round's ratio.",
    "Everybody reads the same images and crops 90 to 100% of the area at random. The open_clip recipe, mosaicml-streaming "
    "and ImageFolder decode with Pillow and give normalised float32; the others give uint8, normalised on the device. The "
    "bare loops have no loader: one process, bytes in memory, no batches.",
)


def as_text(outcome: Outcome) -> str:
    """For the terminal."""
    found = print_tables(tables_of(outcome))
    return f"{found}{outcome.demand.in_words()}\n" if outcome.demand else found


def print_tables(tables: Sequence[Table]) -> str:
    """As lines of text."""
    import io

    from rich.console import Console
    from rich.table import Table as RichTable

    stream = io.StringIO()
    console = Console(file=stream, width=120, markup=False, highlight=False, emoji=False)
    for table in tables:
        shown = RichTable(title=f"{table.title}. {table.note}", title_justify="left", min_width=60)
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if number and table.title != "Left out" else "left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    return stream.getvalue()


# --- as a page


def write_page(outcome: Outcome, path: Path) -> None:
    """report.html."""
    from retrieval_train import page
    from retrieval_train.rundir import write_text

    notes = {tables_of(outcome)[0].title: " ".join(NOTES)}
    if outcome.demand:
        notes[_demand_table(outcome.demand).title] = outcome.demand.in_words()
    sections = [page.Section(table.title, as_html(table), notes.get(table.title, "")) for table in tables_of(outcome)]
    sections.insert(len(outcome.races), page.Section("As a multiple of the open_clip recipe", _chart(outcome.races)))
    origin = page.facts(outcome.about) + page.command(outcome.command)
    sections.append(page.Section("How to get it again", origin))
    write_text(path, page.page("Data loaders side by side", lead=headline(outcome), sections=sections))


def as_html(table: Table) -> Any:
    """For a page."""
    from retrieval_train import page

    head = [[(column, 1) for column in table.columns]]
    rows = [(row[0], [page.Cell(cell, strong=row[0] == SUITE) for cell in row[1:]]) for row in table.rows]
    return page.table(head, rows, caption=table.note)


def _chart(races: Sequence[Race]) -> Any:
    """Of one worker each, where the recipe took part."""
    from retrieval_train import page

    least = min((race.workers for race in races), default=1)
    drawn = [race for race in races if race.workers == least and OPEN_CLIP in race.rates]
    names = dict.fromkeys([*(name for race in drawn for name in race.rates if name != SUITE), SUITE])
    values = {
        name: {race.images: race.rates[name].times(race.rates[OPEN_CLIP]) for race in drawn if name in race.rates}
        for name in names
    }
    return page.bars(values, xlabel=f"images/s, as a multiple of the {OPEN_CLIP}")


def headline(outcome: Outcome) -> str:
    """The report in one sentence."""
    found = [
        f"{times:.1f} times the {OPEN_CLIP}'s images a second ({race.title})"
        for race in outcome.races
        if (times := race.times(OPEN_CLIP)) is not None
    ]
    met = sum(goal.is_met for goal in outcome.goals)
    compared = f"{SUITE[0].upper()}{SUITE[1:]} makes {', '.join(found)}; " if found else ""
    return f"{compared}{met} of {len(outcome.goals)} goals are met."
