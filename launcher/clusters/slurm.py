"""What SLURM has for a run: its partitions, or the allocation that this shell stands in."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.clusters.cluster import NoAnswer, Node, ask
from launcher.clusters.durations import minutes

# the variables by which a user tells sbatch the same as our options do; sbatch would take them before the script's lines
_DEFAULTS = {
    "partition": "SBATCH_PARTITION",
    "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
    "reservation": "SBATCH_RESERVATION",
}


@dataclass(frozen=True)
class Partition:
    """A partition, and each of its nodes."""

    name: str
    nodes: tuple[Node, ...]
    is_default: bool = False
    max_nodes: int | None = None
    """Of one job; None: no limit."""
    max_time_min: int | None = None
    """Of one job; None: no limit."""

    @property
    def least(self) -> Node:
        """What every node has."""
        return least(self.nodes)


@dataclass(frozen=True)
class Allocation:
    """The nodes of the job that this shell stands in."""

    job_id: str
    num_nodes: int
    node: Node
    """What the job has of every node."""


def least(nodes: Sequence[Node]) -> Node:
    """What every one of the nodes has; of none: no GPU, one core."""
    gpus = min((node.gpus for node in nodes), default=0)
    return Node(gpus, min((node.cpus for node in nodes), default=1))


def partitions() -> list[Partition]:
    """All partitions that there are. Raises NoAnswer."""
    nodes: dict[str, list[Node]] = {}
    for line in ask(["sinfo", "-a", "-h", "-N", "-o", "%P|%c|%G"]).splitlines():
        whose, cpus, gres = line.split("|", 2)
        nodes.setdefault(whose.rstrip("*"), []).append(Node(_gpus(gres), int(cpus)))
    found = []
    for line in ask(["scontrol", "-a", "-o", "show", "partition"]).splitlines():
        said = dict(word.partition("=")[::2] for word in line.split())
        if name := said.get("PartitionName"):
            most, limit = said.get("MaxNodes", ""), said.get("MaxTime", "")
            found.append(
                Partition(
                    name=name,
                    nodes=tuple(nodes.get(name, ())),
                    is_default=said.get("Default") == "YES",
                    max_nodes=int(most) if most.isdecimal() else None,
                    max_time_min=None if limit in ("", "UNLIMITED", "NONE") else math.ceil(minutes(limit)),
                )
            )
    return found


def asked_for(found: Sequence[Partition], names: str | None) -> list[Partition]:
    """Those of the names (`a` or `a,b`; None: the default one). Raises ValueError with what there is."""
    there_are = ", ".join(sorted(partition.name for partition in found)) or "none"
    if names is None:
        chosen = [partition for partition in found if partition.is_default]
        if not chosen:
            raise ValueError(f"is needed: SLURM has no default partition; there are: {there_are}")
        return chosen
    by_name = {partition.name: partition for partition in found}
    if unknown := [name for name in names.split(",") if name not in by_name]:
        raise ValueError(f"{', '.join(map(repr, unknown))} is no partition of this SLURM; there are: {there_are}")
    return [by_name[name] for name in names.split(",")]


def defaults() -> dict[str, str]:
    """What the user's shell says to sbatch, by the name of our option."""
    return {option: os.environ[name] for option, name in _DEFAULTS.items() if os.environ.get(name)}


def allocation() -> Allocation:
    """The allocation of this shell. Raises NoAnswer where there is none, or it is over."""
    job_id = os.environ.get("SLURM_JOB_ID")
    if not job_id:
        raise NoAnswer("this shell is in no allocation (SLURM_JOB_ID is not set); begin one with salloc")
    said = ask(["scontrol", "-d", "-o", "show", "job", job_id])
    state = re.search(r"\bJobState=(\S+)", said)
    if state is None or state[1] != "RUNNING":
        raise NoAnswer(f"SLURM job {job_id} of this shell is {state[1] if state else 'unknown'}; begin one with salloc")
    # one part for each group of equal nodes; what accounting counts (TRES=) leaves GPUs out on many clusters
    parts = re.findall(r"\bNodes=\S+ CPU_IDs=(\S+) Mem=\S+ GRES=(\S*)", said)
    nodes = [Node(_gpus(gres), _how_many(cpus)) for cpus, gres in parts]
    count = re.search(r"\bNumNodes=(\d+)", said)
    return Allocation(job_id, int(count[1]) if count else 1, least(nodes))


def _gpus(gres: str) -> int:
    """GPUs in SLURM's words for generic resources: `gpu:a100:8(S:0-1),nvme:1`."""
    return sum(int(count) for count in re.findall(r"\bgpu(?::[^:,(]+)?:(\d+)", gres))


def _how_many(ranges: str) -> int:
    """`0-3,8` are 5."""
    ends = [part.split("-") for part in ranges.split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def cluster_name() -> str | None:
    """SLURM's own name of the cluster; None where it does not say."""
    try:
        found = re.search(r"^ClusterName\s*=\s*(\S+)", ask(["scontrol", "show", "config"]), flags=re.MULTILINE)
    except NoAnswer:
        return None
    return found[1] if found else None
