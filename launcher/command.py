"""What a command line of `submit` does once its options are read: one run, or all of a sweep's or pipeline's file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jobs import job
from jobs.training import origin
from launcher import dry_run, following, submission
from launcher import options as options_of
from launcher.clusters.place import find_place
from launcher.pipelines import pipeline
from launcher.plan import Plan, torchrun_lines
from launcher.sweeps import points
from retrieval_train import config as configs
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir


def submit(options: argparse.Namespace, *, said: str) -> int:
    """One command line from config to exit code. Raises ValueError for what its user has to correct."""
    file, overrides = _what(options)
    if options.sweep is None and (found := pipeline.find(file, overrides)) is not None:
        from launcher.pipelines import pipeline_run

        if not options.dry_run:
            dry_run.say_unused(options, "a pipeline")
        return pipeline_run.submit(options, found, command=said)
    sweep = points.find(file, overrides, is_named=options.sweep is not None)
    if sweep is not None:
        from launcher.sweeps import sweep_run

        if not options.dry_run:
            dry_run.say_unused(options, "a sweep")
        return sweep_run.submit(options, sweep, command=said)
    if options.parallel is not None:
        raise ConfigError("command line", [("--parallel", "is for the points of a sweep, and this is one run")])
    config = job.check(configs.read(Path(file), overrides=overrides), where=file)
    if changes := origin.told(config):
        print(changes, file=sys.stderr)
    one = submission.ready(options, find_place(options), config)
    if options.dry_run:
        return dry_run.print_plan(options, one)
    if one.plan.scheduler == "slurm":
        dry_run.estimate(options, one)
    else:
        dry_run.say_unused(options, "a run on this machine")
    started = submission.start(options, one, command=said)
    if started.ticket is not None:
        return following.follow(options, one.run, started.ticket, is_ours=started.is_ours).code
    return _print_command(one.plan, one.run) if started.is_ours else following.say_done(one.run)


def _what(options: argparse.Namespace) -> tuple[str, list[str]]:
    """The one file of the command line, and the `key=value`s that change it."""
    overrides = options_of.overrides(options)
    files = [item.partition("=")[2] for item in overrides if item.startswith("config=")]
    rest = [item for item in overrides if not item.startswith("config=")]
    given = [f"config={file}" for file in files]
    if options.sweep is not None:
        files, given = [*files, options.sweep], [*given, f"--sweep {options.sweep}"]
    if len(files) != 1 or not files[0]:
        told = " ".join(given) or "is required and missing"
        raise ConfigError("command line", [("config", f"{told}; give one file, as config=configs/train/demo.yaml")])
    return files[0], rest


def _print_command(plan: Plan, run: RunDir) -> int:
    torchrun = Path(sys.executable).with_name("torchrun")
    if plan.nodes > 1:
        print("# one line on each node, with MASTER_ADDR set to the name of the first", file=sys.stderr)
    for line in torchrun_lines(plan, code=run.code, torchrun=str(torchrun) if torchrun.exists() else "torchrun"):
        print(line)
    return 0
