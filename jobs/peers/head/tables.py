"""An outcome of a race of heads, on the screen and as a page."""

from __future__ import annotations

from pathlib import Path

from jobs.peers.head.outcome import BARE, SUITE, Held, Outcome, Race
from jobs.peers.tables import Table, as_html, print_tables

NOTES = (
    "Each contestant runs in processes of its own, all of them on the same cores; they take turns of a few steps, and stand "
    "still between them. Medians over the rounds; from and to are the fastest and the slowest round. Ratios are medians of "
    "each round's ratio.",
    "A step is forward, backward and update of ArcFace (margin 0.5, scale 64) with new labels each time; the bare products "
    "are the three matrix products alone. Memory is the high-water mark of the resident memory in steps two and three, over "
    "what the process had before the centres were made (all), and over what stays between steps: centres and moments (step).",
    "PartialFC is our reading of insightface's second version, in its plainest form, since its code is no package.",
)


def tables_of(outcome: Outcome) -> list[Table]:
    made = [_race_table(race) for race in outcome.races]
    rows = [(goal.what, goal.wanted, goal.found, "yes" if goal.is_met else "no") for goal in outcome.goals]
    made.append(Table("Goals", ("", "wanted", "here", "met"), rows, "Judged by the figures above."))
    if outcome.held:
        made += [
            _memory_table(outcome, optimizer) for optimizer in dict.fromkeys(held.optimizer for held in outcome.held)
        ]
    if outcome.absent:
        made.append(
            Table("Left out", ("", "why"), list(outcome.absent.items()), "Had no figure in some race or in all.")
        )
    return made


def _race_table(race: Race) -> Table:
    columns = ("", "ms a step", "from", "to", "cores", f"over {BARE}", f"over {SUITE}", "MB, all", "MB, step")
    rows = []
    for name, turns in sorted(race.turns.items(), key=lambda item: item[1].median_s):
        times = [f"{1e3 * value:,.0f}" for value in (turns.median_s, min(turns.step_s), max(turns.step_s))]
        over = [
            f"{turns.over(race.turns[other]):.2f} x" if other in race.turns and other != name else ""
            for other in (BARE, SUITE)
        ]
        memory = [f"{turns.memory_mb:,.0f}", f"{turns.step_mb:,.0f}"]
        rows.append((name, *times, f"{turns.cores_had:.1f}", *over, *memory))
    note = f"The products: {race.gflop:,.1f} GFLOP, and at least {race.bytes_moved / 1e6:,.0f} MB read and written."
    return Table(race.title, columns, rows, note)


def _memory_table(outcome: Outcome, optimizer: str) -> Table:
    held = {(one.classes, one.ranks): one for one in outcome.held if one.optimizer == optimizer}
    ranks = list(dict.fromkeys(number for _, number in held))
    columns = ("classes", *(f"{number} rank{'s' if number > 1 else ''}" for number in ranks))
    rows = [
        (f"{classes:,}", *(_cell(held[classes, number]) for number in ranks))
        for classes in dict.fromkeys(number for number, _ in held)
    ]
    note = "MB of the largest rank of ours. With ~ by arithmetic, else measured."
    return Table(f"Memory per rank, {optimizer}", columns, rows, note)


def _cell(held: Held) -> str:
    return f"{'' if held.is_measured else '~ '}{held.megabytes:,.0f}"


def as_text(outcome: Outcome) -> str:
    """For the terminal."""
    return print_tables(tables_of(outcome))


def write_page(outcome: Outcome, path: Path) -> None:
    """report.html."""
    from retrieval_train import page
    from retrieval_train.rundir import write_text

    tables = tables_of(outcome)
    sections = [
        page.Section(table.title, as_html(table), " ".join(NOTES) if table is tables[0] else "") for table in tables
    ]
    origin = page.facts(outcome.about) + page.command(outcome.command)
    sections.append(page.Section("How to get it again", origin))
    met = sum(goal.is_met for goal in outcome.goals)
    lead = f"{met} of {len(outcome.goals)} goals are met."
    write_text(path, page.page("Heads side by side", lead=lead, sections=sections))
