"""What a run would be and what it needs, before it costs anything."""

from __future__ import annotations

import argparse
import sys

from jobs.job import JobConfig
from launcher.plan import Plan, describe
from launcher.starts import executors
from launcher.submission import Ready
from retrieval_train.config import ConfigError


def print_plan(options: argparse.Namespace, one: Ready) -> int:
    """What `--dry-run` shows of a run."""
    plan, run = one.plan, one.run
    sbatch = executors.sbatch_text(plan, run) if plan.scheduler == "slurm" else None
    print(describe(plan, state=run.state, command=executors.rank_command(plan, run), sbatch=sbatch), flush=True)
    if run.state != "done" and (words := needs_of(options, one.config, plan, refuse=False)):
        print(f"\n{words}")
    return 0


def estimate(options: argparse.Namespace, one: Ready) -> None:
    """What the run needs, told before its submit. Raises ConfigError where it cannot fit."""
    if one.run.state != "done" and (words := needs_of(options, one.config, one.plan, refuse=True)):
        print(words, file=sys.stderr)


def needs_of(options: argparse.Namespace, config: JobConfig, plan: Plan, *, refuse: bool) -> str:
    """The estimate in words, or why there is none: a model may do on its node what cannot be estimated here.

    Raises ConfigError for a GPU that is not known and, if it is to be refused, for a run that cannot fit.
    """
    if options.no_estimate:
        return _unused(options, "--no-estimate leaves the estimate out")
    from launcher.needs import estimate as needs

    try:
        found = needs.of(config, plan, gpu=options.gpu, images_per_s=options.images_per_s)
    except ConfigError:
        raise
    except Exception as error:
        return f"no estimate: {type(error).__name__}: {' '.join(str(error).split())}"
    words = needs.in_words(found)
    if refuse and found.problem is not None:
        print(words, file=sys.stderr)
        key, problem = found.problem
        raise ConfigError("estimate", [(key, f"{problem}; --no-estimate submits it all the same")])
    if options.gpu and not plan.gpus_per_node:
        words += f"\n--gpu {options.gpu} is not used: the plan has no GPU"
    return words


def say_unused(options: argparse.Namespace, what: str) -> None:
    """At a submit that estimates nothing."""
    if words := _unused(options, f"{what} is estimated by --dry-run only"):
        print(words, file=sys.stderr)


def _unused(options: argparse.Namespace, why: str) -> str:
    named = {"--gpu": options.gpu, "--images-per-s": options.images_per_s}
    given = [f"{name} {value}" for name, value in named.items() if value is not None]
    return f"not used: {', '.join(given)}: {why}" if given else ""
