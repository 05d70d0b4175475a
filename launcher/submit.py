"""Submit a job: check its config, plan where it runs, make its run folder, hand it to SLURM or to this machine.

examples:
  python launcher/submit.py config=configs/train/demo.yaml                      this machine, or SLURM where it answers
  python launcher/submit.py --nodes 4 config=configs/train/demo.yaml head.margin=0.3
  python launcher/submit.py --tasks-per-node 2 config=configs/train/demo.yaml run.device=cpu
  python launcher/submit.py --dry-run config=configs/train/demo.yaml            only say what would run
  python launcher/submit.py --time 60 --sbatch constraint=a100 config=configs/train/demo.yaml
  python launcher/submit.py --continue-from runs/demo --force-config config=configs/train/demo.yaml \\
      run.name=longer length.epochs=30
  python launcher/submit.py config=configs/train/demo.yaml head.margin=0.2,0.3 seed=0,1,2       a sweep: 2 x 3 runs
  python launcher/submit.py --sweep configs/sweep/margin.yaml seed=0                 the sweep of a file; --dry-run lists it

The same command again goes on with the same run: it follows one that is active, resumes one that stopped or failed, and
leaves one that is done alone. Exit codes: 0 done (or handed over), 1 the job failed or stopped, 2 a mistake to correct,
130 Ctrl-C (the run goes on).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: imports begin at the repo, not in launcher/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import shlex

from jobs import job
from jobs.training import origin
from launcher import executors, points, submission
from launcher import options as options_of
from launcher.plan import Plan, describe, torchrun_lines
from retrieval_train import config as configs
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = options_of.parse(argv, about=__doc__)
    try:
        return submit(options, command=shlex.join(["python", "launcher/submit.py", *argv]))
    except (ValueError, OSError) as error:  # what people give us, and disks that are full or not theirs
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; `python launcher/status.py runs` shows what was started", file=sys.stderr)
        return 130


def submit(options: argparse.Namespace, *, command: str) -> int:
    """One command line from config to exit code. Raises ValueError for what its user has to correct."""
    file, overrides = _what(options)
    sweep = points.find(file, overrides, is_named=options.sweep is not None)
    if sweep is not None:
        from launcher import sweep_run

        return sweep_run.submit(options, sweep, command=command)
    config = job.check(configs.read(Path(file), overrides=overrides), where=file)
    if changes := origin.told(config):
        print(changes, file=sys.stderr)
    one = submission.ready(options, submission.find_place(options), config)
    if options.dry_run:
        return _print_plan(one.plan, one.run)
    ticket, is_ours = submission.start(options, one, command=command)
    if ticket is not None:
        return submission.follow(options, one.run, ticket, is_ours=is_ours).code
    return _print_command(one.plan, one.run) if is_ours else submission.say_done(one.run)


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


def _print_plan(plan: Plan, run: RunDir) -> int:
    sbatch = executors.sbatch_text(plan, run) if plan.scheduler == "slurm" else None
    print(describe(plan, state=run.state, command=executors.rank_command(run), sbatch=sbatch))
    return 0


def _print_command(plan: Plan, run: RunDir) -> int:
    torchrun = Path(sys.executable).with_name("torchrun")
    if plan.nodes > 1:
        print("# one line on each node, with MASTER_ADDR set to the name of the first", file=sys.stderr)
    for line in torchrun_lines(plan, code=run.code, torchrun=str(torchrun) if torchrun.exists() else "torchrun"):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
