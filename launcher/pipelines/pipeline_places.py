"""Where the stages of a pipeline run: the command line's options with each stage's own in them, and what they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher import options as options_of
from launcher import plan as plans
from launcher.clusters.place import Place, find_place
from launcher.pipelines import pipeline_stages
from launcher.pipelines.pipeline import Pipeline, Problems
from launcher.pipelines.pipeline_stages import Stage
from launcher.plan import Plan
from retrieval_train.config import ConfigError


@dataclass(frozen=True)
class Where:
    """The options of one stage, and the place that they mean."""

    options: argparse.Namespace
    place: Place


def of_all(options: argparse.Namespace, found: Pipeline) -> dict[str, Where]:
    """By the stage's name. Raises ConfigError where there is no such place."""
    places: dict[str | None, Place] = {}
    wheres = {}
    for step in found.steps:
        mine = argparse.Namespace(**{**vars(options), **step.resources.given()})
        if mine.partition not in places:
            places[mine.partition] = find_place(mine)
        wheres[step.name] = Where(mine, places[mine.partition])
    return wheres


def refuse_options(options: argparse.Namespace, wheres: Mapping[str, Where]) -> None:
    """Raises ConfigError for what has no meaning here."""
    problems = []
    scheduler = next(iter(wheres.values())).place.cluster.scheduler
    if options.print_command:
        problems.append(("--print-command", "prints one run; give the config of one stage"))
    elif options.parallel is not None:
        problems.append(
            ("--parallel", "is for the points of a sweep; stages run as soon as those that they need are done")
        )
    elif options.wait is False and scheduler != "slurm":
        instead = "leave it open (in tmux, say), or start it as `nohup python launcher/submit.py ... &`"
        problems.append(("--detach", f"this command itself starts one stage after the other; {instead}"))
    if problems:
        raise ConfigError("command line", problems)


def plans_of(found: Pipeline, stages: Sequence[Stage], wheres: Mapping[str, Where]) -> dict[str, Plan]:
    """What each stage takes. Raises ConfigError with everything that does not fit."""
    made: dict[str, Plan] = {}
    problems: Problems = []
    for stage in stages:
        where, name = wheres[stage.step.name], stage.step.name
        run = stage.values.get("run") or {}
        try:
            made[name] = plans.make(
                options_of.request(where.options),
                where.place.cluster,
                where.place.there,
                job=stage.values["job"],
                device=run.get("device", "auto"),
                run_dir=stage.run.path if stage.run else pipeline_stages.runs_root(stage.values) / run["name"],
            )
            config = pipeline_stages.config_so_far(stage)
            if config is not None:
                told = config.problems_with(made[name].num_ranks)
                problems += [(f"{name}.{key}", text) for key, text in told]
        except ConfigError as error:
            problems += [(f"{name}: {key}", text) for key, text in error.problems]
    if problems:
        raise ConfigError(found.where, problems)
    return made
