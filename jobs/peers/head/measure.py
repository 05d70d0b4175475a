"""Runs the races of heads that a config asks for, and writes what they gave."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.job import Progress
from jobs.peers.head import outcome as outcomes
from jobs.peers.head import tables
from jobs.peers.head.race import Entrant, Turns, measure_memory, take_turns
from jobs.peers.head.task import Task
from jobs.peers.outcome import describe_machine
from jobs.peers.race import Entry
from retrieval_train.rundir import RunDir, read_json, write_json, write_text

if TYPE_CHECKING:
    from jobs.peers.head.config import HeadRaceConfig, MemoryConfig
    from retrieval_train.world import World

log = logging.getLogger(__name__)


def entrants_of(config: HeadRaceConfig, pythons: Mapping[str, Path]) -> list[Entrant]:
    """Who takes part, in the order of their turns."""
    suite, partial_fc = "head.suite", "head.partial_fc"
    other = Entry(
        "head.metric_learning",
        outcomes.METRIC_LEARNING,
        "pytorch-metric-learning",
        python=pythons["metric_learning"].absolute() if "metric_learning" in pythons else None,
    )
    rate = config.sample_rate
    beside: dict[str, list[Entrant]] = {
        "partial_fc": [Entrant(Entry(partial_fc, outcomes.PARTIAL_FC))],
        "metric_learning": [Entrant(other, most_ranks=1)],
        "bf16": [Entrant(Entry(suite, outcomes.SUITE_BF16), products="bf16")],
        "sampled": [
            Entrant(Entry(suite, outcomes.SUITE_SAMPLED), sample_rate=rate),
            Entrant(Entry(partial_fc, outcomes.PARTIAL_FC_SAMPLED), sample_rate=rate),
        ],
    }
    return [
        Entrant(Entry("head.bare", outcomes.BARE, is_needed=True)),
        Entrant(Entry(suite, outcomes.SUITE, is_needed=True)),
        *(entrant for name in dict.fromkeys(config.beside) for entrant in beside[name]),
    ]


def measure(
    config: HeadRaceConfig, *, pythons: Mapping[str, Path], rounds: int, seed: int, run: RunDir, world: World
) -> dict[str, float]:
    """Seconds of a step of ours, by race; `report.json` and `report.html` hold the rest."""
    races: list[outcomes.Race] = []
    absent: dict[str, str] = {}
    for classes in config.classes:
        for optimizer in config.optimizers:
            for ranks in config.ranks:
                task = Task(classes, dim=config.dim, batch=config.batch, optimizer=optimizer, seed=seed)
                turns, failed = _race(config, task, pythons, ranks=ranks, rounds=rounds, run=run, world=world)
                race = outcomes.Race(classes, config.dim, config.batch, optimizer, ranks, turns)
                races.append(race)
                absent |= {f"{name} ({race.title})": why for name, why in failed.items()}
    held = _held(config, config.memory, seed=seed, run=run, world=world) if config.memory else []
    about: dict[str, Any] = {"dimensions": config.dim, "rows": config.batch, "rounds": rounds, "steps": config.steps}
    about |= {"sample rate": config.sample_rate, "machine": describe_machine()}
    plan = read_json(run.plan) if run.plan.is_file() else {}
    command = str(plan.get("command", f"python -m jobs {run.path}"))
    found = outcomes.Outcome(races=races, absent=absent, held=held, about=about, command=command)
    write_json(run.report, found.as_json())
    tables.write_page(found, run.page)
    text = tables.as_text(found)
    write_text(run.report.with_suffix(".txt"), text)
    log.info("%s", text)
    return {race.title: race.turns[outcomes.SUITE].median_s for race in races}


def _race(
    config: HeadRaceConfig,
    task: Task,
    pythons: Mapping[str, Path],
    *,
    ranks: int,
    rounds: int,
    run: RunDir,
    world: World,
) -> tuple[dict[str, Turns], dict[str, str]]:
    entrants = [entrant for entrant in entrants_of(config, pythons) if ranks <= entrant.most_ranks]
    title = outcomes.Race(task.classes, task.dim, task.batch, task.optimizer, ranks, {}).title
    progress = Progress(run, world, title, total=rounds * len(entrants), unit="turns")
    return take_turns(
        entrants,
        task,
        run.logs,
        ranks=ranks,
        cores=config.cores,
        rounds=rounds,
        steps=config.steps,
        shown=progress.show,
    )


def _held(config: HeadRaceConfig, wanted: MemoryConfig, *, seed: int, run: RunDir, world: World) -> list[outcomes.Held]:
    """What a rank of ours holds: measured where it fits."""
    ours = Entrant(Entry("head.suite", outcomes.SUITE, is_needed=True))
    cells = [(o, c, r) for o in config.optimizers for c in wanted.classes for r in wanted.ranks]
    progress = Progress(run, world, "memory per rank", total=len(cells), unit="cells")
    found = []
    for number, (optimizer, classes, ranks) in enumerate(cells):
        megabytes = outcomes.by_arithmetic(classes, ranks, dim=config.dim, rows=config.batch, optimizer=optimizer)
        is_measured = ranks <= wanted.measured_ranks and ranks * megabytes <= 1e3 * wanted.measured_gb
        if is_measured:
            task = Task(classes, dim=config.dim, batch=config.batch, optimizer=optimizer, seed=seed)
            megabytes = measure_memory(ours, task, run.logs, ranks=ranks, cores=config.cores)
        found.append(outcomes.Held(classes, ranks, optimizer, megabytes, is_measured))
        progress.show(number + 1)
    return found
