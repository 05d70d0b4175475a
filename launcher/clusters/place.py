"""Where a command's runs go: the cluster that was named, that this host belongs to, or that answers. Asked once."""

from __future__ import annotations

import argparse
import socket
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from launcher.clusters import cluster as clusters
from launcher.clusters import slurm
from launcher.clusters.cluster import Cluster, NoAnswer
from launcher.plan import There
from retrieval_train.config import ConfigError


@dataclass(frozen=True)
class Place:
    """Where the command's runs go: asked once, however many they are."""

    cluster: Cluster
    there: There
    by_hand: bool


def find_place(options: argparse.Namespace) -> Place:
    """The cluster that the options name, or that fits, and what it has. Raises ConfigError."""
    by_hand: bool = options.print_command
    named = clusters.load(options.cluster) if options.cluster else None
    no_slurm = None if by_hand or (named and named.scheduler != "slurm") else _why_no_slurm()
    name = options.cluster or ("local" if by_hand else detected(has_slurm=no_slurm is None))
    name = name or ("local" if no_slurm else "slurm")
    cluster = named or clusters.load(name)
    if cluster.scheduler == "local" or by_hand:
        there = There(cluster=name, node=clusters.this_machine(), no_slurm=no_slurm)
    elif cluster.scheduler == "allocation":
        there = _in_allocation(name)
    else:
        there = _in_slurm(name, cluster, options, no_slurm)
    return Place(cluster, there, by_hand)


def _why_no_slurm() -> str | None:
    try:
        return clusters.why_no_slurm()
    except NoAnswer as error:
        problem = (
            f"SLURM's controller does not answer: {error}; submit later, or run on this machine with --cluster local"
        )
        raise ConfigError("command line", [("--cluster", problem)]) from error


def detected(*, has_slurm: bool) -> str | None:
    """The cluster whose file has a `match` for this host or this SLURM. Raises ConfigError where several have one."""
    patterns = {name: clusters.load(name).match for name in clusters.names()}
    if not any(patterns.values()):
        return None
    known = [socket.gethostname()]
    if has_slurm and (of_slurm := slurm.cluster_name()):
        known.append(of_slurm)
    fitting = [name for name, mine in patterns.items() if any(fnmatchcase(one, p) for one in known for p in mine)]
    if len(fitting) > 1:
        problem = f"{' and '.join(fitting)} both have a `match` for {' or '.join(known)}; say which"
        raise ConfigError("command line", [("--cluster", problem)])
    return fitting[0] if fitting else None


def _in_slurm(name: str, cluster: Cluster, options: argparse.Namespace, no_slurm: str | None) -> There:
    if no_slurm:
        problem = f"there is no SLURM here ({no_slurm}); --cluster local runs on this machine"
        raise ConfigError("command line", [(f"--cluster {name}", problem)])
    defaults = slurm.defaults()
    asked = options.partition or cluster.partition or defaults.get("partition")
    try:
        found = slurm.asked_for(slurm.partitions(), asked)
    except NoAnswer as error:
        problem = f"SLURM does not say what its nodes have: {error}"
        raise ConfigError("command line", [(f"--cluster {name}", problem)]) from error
    except ValueError as error:
        raise ConfigError("command line", [(f"--partition {asked or ''}".strip(), str(error))]) from error
    node = slurm.least([partition.least for partition in found])
    return There(cluster=name, node=node, partitions=tuple(found), defaults=defaults, cwd=Path.cwd())


def _in_allocation(name: str) -> There:
    try:
        mine = slurm.allocation()
    except NoAnswer as error:
        raise ConfigError("command line", [(f"--cluster {name}", str(error))]) from error
    return There(cluster=name, node=mine.node, num_nodes=mine.num_nodes, cwd=Path.cwd())
