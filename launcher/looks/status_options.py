"""The command line of status.py: its verbs, each with examples."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_RUNS = """
examples:
  status.py                                       all runs; those of a sweep or pipeline stand together
  status.py --state running,queued --watch        again every 5 s, until Ctrl-C
  status.py --name 'margin*' --json | jq '.[].loss'
"""
_LOGS = """
examples:
  status.py logs demo -n 50 -f                    the last 50 lines of rank 0, and on until the run ends
  status.py logs demo --all --since 10m           all ranks by time: [rank@node]
  status.py logs demo --batch                     what started the ranks, and why it queued them again
"""
_CANCEL = """
examples:
  status.py cancel demo
  status.py cancel margin                         every active run of the sweep or pipeline margin
"""
_REQUEUE = """
A run that is active on SLURM is told to save and goes back into the queue; one that failed, was preempted or not
started is submitted again with its own code and plan.

examples:
  status.py requeue demo
  status.py requeue margin                        what failed or was preempted of the sweep margin
"""
_CLEAN = """
Without --yes nothing is removed. A run that is active is never touched.

  checkpoints  of done runs: all but the last, the best, and those that checkpoint.keep_every keeps
  runs         that failed or never started, older than --days
  code         copies of the code that no run executes
  leftovers    of processes that were killed while they wrote, older than a day
  logs         of done runs older than --days; only where it is asked for by name

examples:
  status.py clean                                 a list: checkpoints, runs, code, leftovers
  status.py clean checkpoints --yes
  status.py clean runs logs --days 90
"""
_NODES = """
examples:
  status.py nodes
  status.py nodes --forget n17                    it was mended
"""
_SHOW = """
examples:
  status.py show demo
"""
_SEEN = """
examples:
  status.py seen demo glyphs/a-01                 the steps that trained on an image
  status.py seen demo --step 120                  the images that a step trained on
"""
_SWEEP = """
examples:
  status.py sweep configs/sweep/margin.yaml --metric R@1
  status.py sweep configs/sweep/margin.yaml --runs-root /data/runs --markdown
"""
_PIPELINE = """
examples:
  status.py pipeline configs/pipeline/demo.yaml
  status.py pipeline configs/pipeline/demo.yaml first.seed=1      the same values as in submit
"""


def parse(argv: Sequence[str], *, about: str | None) -> argparse.Namespace:
    """`verb`, `runs_root` and what the verb takes; no verb means `runs`."""
    given = list(argv)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given.insert(0, "runs")
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python launcher/status.py", description=about, formatter_class=as_written)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_tables(verbs)
    _add_one_run(verbs)
    _add_changes(verbs)
    _add_sweep(verbs)
    return parser.parse_args(given)


def _verb(verbs: Any, name: str, help_: str, examples: str) -> argparse.ArgumentParser:
    as_written = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=help_, description=help_, epilog=examples, formatter_class=as_written
    )
    root = None if name in ("sweep", "pipeline") else Path("runs")
    parser.add_argument("--runs-root", type=Path, default=root, metavar="FOLDER", help="of the runs; default: runs")
    return parser


def _add_tables(verbs: Any) -> None:
    runs = _verb(verbs, "runs", "a table of all runs (what no verb means, too)", _RUNS)
    runs.add_argument("--state", action="append", default=[], metavar="A,B", help="only runs in these states")
    runs.add_argument("--name", metavar="GLOB", help="only runs, or sweeps and pipelines, with such a name")
    how = runs.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="every run with its numbers")
    how.add_argument("--watch", type=_above_0, nargs="?", const=5.0, metavar="S", help="again every S seconds; 5")
    nodes = _verb(verbs, "nodes", "nodes that failed, and why", _NODES)
    nodes.add_argument("--forget", metavar="NODE", help="give it to runs again")


def _add_one_run(verbs: Any) -> None:
    show = _verb(verbs, "show", "one run in full: config, starts, links, checkpoints, log", _SHOW)
    show.add_argument("run", metavar="RUN")
    logs = _verb(verbs, "logs", "what the ranks wrote", _LOGS)
    logs.add_argument("run", metavar="RUN")
    which = logs.add_mutually_exclusive_group()
    which.add_argument("--rank", type=_whole, default=0, metavar="N", help="one rank's log as it is; default: 0")
    which.add_argument("--all", action="store_true", help="all ranks, merged by time")
    which.add_argument("--batch", action="store_true", help="what stands above the ranks: supervisor or controller")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the run ends, over its requeues")
    logs.add_argument("-n", "--lines", type=_whole, metavar="N", help="begin with the last N lines")
    logs.add_argument("--since", metavar="TIME", help="10m, 2h, 08:00 or 2026-11-23T08:00")
    seen = _verb(verbs, "seen", "which steps trained on an image, or on which images a step", _SEEN)
    seen.add_argument("run", metavar="RUN")
    asked = seen.add_mutually_exclusive_group(required=True)
    asked.add_argument("key", metavar="KEY", nargs="?", help="key of a sample: <domain>/<name>")
    asked.add_argument("--step", type=int, help="as metrics.jsonl counts: from 1")


def _add_changes(verbs: Any) -> None:
    cancel = _verb(verbs, "cancel", "end runs; they may save first", _CANCEL)
    requeue = _verb(verbs, "requeue", "queue runs again", _REQUEUE)
    for verb in (cancel, requeue):
        verb.add_argument("runs", metavar="RUN", nargs="+", help="a run, or the name of a sweep or pipeline")
    clean = _verb(verbs, "clean", "list what may go; with --yes, remove it", _CLEAN)
    clean.add_argument("kinds", metavar="KIND", nargs="*", help="default: checkpoints runs code leftovers")
    clean.add_argument("--days", type=_above_0, default=30.0, metavar="N", help="age of runs and logs; default: 30")
    clean.add_argument("--yes", action="store_true", help="remove it")


def _add_sweep(verbs: Any) -> None:
    table = _verb(verbs, "sweep", "a table of a sweep's points", _SWEEP)
    table.add_argument("sweep", metavar="FILE", help="as in submit: a sweep's file, or a config with key=a,b")
    table.add_argument("overrides", nargs="*", metavar="key=value", help="as in submit")
    table.add_argument("--metric", action="append", metavar="NAME", help="of report.json; default: mMP@5 and R@1")
    table.add_argument("--sort", metavar="NAME", help="the metric whose best comes first; default: the first one")
    table.add_argument("--scope", default="merged", help="merged, or a domain")
    how = table.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="with every run and its numbers")
    how.add_argument("--markdown", action="store_true")
    stages = _verb(verbs, "pipeline", "how the stages of a pipeline stand", _PIPELINE)
    stages.add_argument("pipeline", metavar="FILE", help="as in submit")
    stages.add_argument("overrides", nargs="*", metavar="key=value", help="as in submit")
    how.add_argument("--page", type=Path, metavar="FILE", help="as HTML, with charts, into this file")


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not 0, 1, 2 ...")
    return int(text)


def _above_0(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
