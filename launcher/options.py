"""The options of `submit`: everything with dashes. What has none is the config's."""

from __future__ import annotations

import argparse
import json
from typing import NoReturn

from launcher.plan import Request


def parse(argv: list[str], *, about: str | None) -> argparse.Namespace:
    """The command line; exits with 2 and one line when it cannot be read."""
    parser = _Parser(
        prog="python launcher/submit.py",
        usage="%(prog)s [options] {config=FILE | --sweep FILE} [key=value | key=a,b ...]",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config=FILE, and values that differ from it")
    parser.add_argument(
        "--sweep", metavar="FILE", help="a sweep's file instead of config=FILE: many runs; docs/sweeps.md"
    )
    where = parser.add_argument_group("where it runs")
    where.add_argument(
        "--cluster", help="local, slurm or another of configs/cluster/, or a file; default: what answers"
    )
    where.add_argument("--nodes", type=_count, default=1, metavar="N")
    where.add_argument(
        "--gpus-per-node", type=_count_or_0, metavar="N", help="one rank per GPU; default: all there are"
    )
    where.add_argument("--tasks-per-node", type=_count, metavar="N", help="ranks of each node, without GPUs; default 1")
    where.add_argument("--cpus-per-task", type=_count, metavar="N", help="cores of each rank, data workers included")
    where.add_argument(
        "--time", type=_count, metavar="MIN", help="limit of one start; a little before it the run saves"
    )
    slurm = parser.add_argument_group("for SLURM")
    slurm.add_argument("--mem", type=_positive, metavar="GB", help="memory of each node")
    slurm.add_argument("--partition")
    slurm.add_argument("--account")
    slurm.add_argument("--qos")
    slurm.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="any other option of sbatch")
    how = parser.add_argument_group("how it goes on")
    wait = how.add_mutually_exclusive_group()
    wait.add_argument("--wait", action="store_true", default=None, help="follow the run to its end; default when local")
    wait.add_argument("--detach", dest="wait", action="store_false", help="return at once; default with SLURM")
    how.add_argument("--refresh-code", action="store_true", help="today's code for a run that already has its own")
    how.add_argument(
        "--again", action="store_true", help="from the start; the old run folder is kept under another name"
    )
    how.add_argument(
        "--continue-from",
        metavar="PATH_OR_URL",
        help="begin with all that another run's checkpoint (or newest one) holds",
    )
    how.add_argument(
        "--force-config", action="store_true", help="... although its config differs; what does is printed"
    )
    how.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")
    how.add_argument("--print-command", action="store_true", help="make the run folder, print what to start by hand")
    return parser.parse_intermixed_args(argv)


def overrides(options: argparse.Namespace) -> list[str]:
    """The `key=value`s of the command line, and the options that are short for one."""
    short = []
    if options.continue_from is not None:  # quoted: a path may hold what YAML reads as something else
        short.append(f"origin.checkpoint={json.dumps(options.continue_from)}")
    if options.force_config:
        short.append("origin.force_config=true")
    return [*options.overrides, *short]


def request(options: argparse.Namespace) -> Request:
    """The part of the options that says where to run."""
    return Request(
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        tasks_per_node=options.tasks_per_node,
        cpus_per_task=options.cpus_per_task,
        mem_gb=options.mem,
        time_min=options.time,
        partition=options.partition,
        account=options.account,
        qos=options.qos,
        sbatch=tuple(options.sbatch),
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments"):
            message += " (--help lists the options; values of the config are key=value, without dashes)"
        self.exit(2, f"{self.prog}: {message}\n")


def _count(text: str) -> int:
    number = _count_or_0(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return number


def _count_or_0(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
