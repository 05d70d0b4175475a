"""What a run would be and what it needs, before it costs anything."""

from __future__ import annotations

import argparse
import sys

from launcher import executors
from launcher.plan import describe
from launcher.submission import Ready
from retrieval_train.config import ConfigError


def print_plan(options: argparse.Namespace, one: Ready) -> int:
    """What `--dry-run` shows of a run."""
    plan, run = one.plan, one.run
    sbatch = executors.sbatch_text(plan, run) if plan.scheduler == "slurm" else None
    print(describe(plan, state=run.state, command=executors.rank_command(plan, run), sbatch=sbatch), flush=True)
    if words := estimate(options, one, refuse=False):
        print(f"\n{words}")
    return 0


def estimate(options: argparse.Namespace, one: Ready, *, refuse: bool) -> str:
    """What the run needs, in words. Raises ConfigError where it cannot fit, if it is to be refused for that."""
    if options.no_estimate or one.run.state == "done":
        return ""
    from launcher import estimate as needs

    found = needs.of(one.config, one.plan, gpu=options.gpu, images_per_s=options.images_per_s)
    if refuse:
        print(needs.in_words(found), file=sys.stderr)
        if found.problem is not None:
            key, words = found.problem
            raise ConfigError("estimate", [(key, f"{words}; --no-estimate submits it all the same")])
    return needs.in_words(found)
