"""The options of `submit`: everything with dashes. What has none is the config's."""

from __future__ import annotations

import argparse
import json
import math
import re
from typing import TYPE_CHECKING, NoReturn

from launcher.clusters.durations import minutes

if TYPE_CHECKING:
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
    _where(parser.add_argument_group("where it runs"))
    _slurm(parser.add_argument_group("for SLURM"))
    _how(parser.add_argument_group("how it goes on"))
    _needs(parser.add_argument_group("what it needs: told by --dry-run, and before a run goes to SLURM"))
    return parser.parse_intermixed_args(argv)


def _where(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--cluster", help="local, slurm or another of configs/cluster/, or a file; default: what fits or answers")
    add("--nodes", type=_count, metavar="N", help="default 1, or all of the allocation")
    add("--gpus-per-node", type=_count_or_0, metavar="N", help="one rank per GPU; default: all there are")
    add("--tasks-per-node", type=_count, metavar="N", help="ranks of each node, without GPUs; default 1")
    add("--cpus-per-gpu", type=_count, metavar="N", help="cores of each rank, data workers included")
    add("--cpus-per-task", type=_count, metavar="N", help="the same, also without GPUs")
    add("--time", type=_minutes, metavar="MIN|H:MM:SS|D-HH:MM", help="limit of one start; before it the run saves")
    add("--parallel", type=_count, metavar="N", help="points of a sweep that run at once; default: the cluster's file")


def _slurm(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--mem", type=_gigabytes, metavar="GB", help="memory of each node; 64, or 500M and 1T as sbatch has it")
    add("--partition", metavar="NAME[,NAME]")
    add("--account", metavar="NAME")
    add("--qos", metavar="NAME")
    add("--constraint", metavar="LIST", help="features of the nodes")
    add("--exclude", metavar="NODES")
    add("--nodelist", metavar="NODES")
    add("--reservation", metavar="NAME")
    add("--comment", metavar="TEXT")
    add("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="any other option of sbatch")


def _how(how: argparse._ArgumentGroup) -> None:
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


def _needs(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--gpu", metavar="NAME", help="h100-80, a100-40, or GB of memory; default: the cluster's `gpu`")
    add("--images-per-s", type=_positive, metavar="N", help="of all ranks together; default: as the newest run had")
    add("--no-estimate", action="store_true", help="do not build the model to see whether it fits")


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
    from launcher.plan import Request

    return Request(
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        tasks_per_node=options.tasks_per_node,
        cpus_per_task=options.cpus_per_task,
        cpus_per_gpu=options.cpus_per_gpu,
        mem_gb=options.mem,
        time_min=options.time,
        partition=options.partition,
        account=options.account,
        qos=options.qos,
        constraint=options.constraint,
        exclude=options.exclude,
        nodelist=options.nodelist,
        reservation=options.reservation,
        comment=options.comment,
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


def _minutes(text: str) -> int:
    """Whole minutes, up."""
    try:
        number = math.ceil(minutes(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no time above 0")
    return number


def _gigabytes(text: str) -> float:
    """A number of GB, unless it has a unit as sbatch writes it."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text, flags=re.ASCII | re.IGNORECASE)
    number = float(found[1]) * 1024.0 ** ("KMGT".index(found[2].upper() or "G") - 2) if found else 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, of GB")
    return number


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
