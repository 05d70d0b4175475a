"""A plan is a run not yet submitted: what, where, how many ranks. Pure: nothing is asked, written or started here."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launcher.cluster import Cluster, Node
from retrieval_train.config import ConfigError

# what the launcher itself says to sbatch, and which option of ours says it
_OURS = {
    "nodes": "--nodes",
    "ntasks-per-node": "--tasks-per-node",
    "gpus-per-node": "--gpus-per-node",
    "cpus-per-task": "--cpus-per-task",
    "mem": "--mem",
    "time": "--time",
    "partition": "--partition",
    "account": "--account",
    "qos": "--qos",
    "job-name": "run.name in the config",
    "output": "nothing: logs lie in the run folder",
    "error": "nothing: logs lie in the run folder",
    "chdir": "nothing: relative paths count from where you submit",
    "signal": "signal_delay_s in the cluster's file",
    "array": "nothing: one submit is one run",
}


@dataclass(frozen=True)
class Request:
    """What the command line asks for; None leaves it to the cluster's file."""

    nodes: int = 1
    gpus_per_node: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    time_min: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    sbatch: tuple[str, ...] = ()


@dataclass(frozen=True)
class There:
    """What was found at the place where the run goes."""

    cluster: str
    """Name or file of the cluster."""
    node: Node
    """This machine, or what each node of the partition has."""
    no_slurm: str | None = None
    """Why there is no SLURM; None where there is one."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides how the run is started; all of it goes into plan.json."""

    job: str
    run_dir: Path
    cluster: str
    scheduler: Literal["local", "slurm"]
    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int | None
    mem_gb: float | None
    time_min: int | None
    signal_delay_s: int
    partition: str | None
    account: str | None
    qos: str | None
    setup: tuple[str, ...] = ()
    sbatch: Mapping[str, str | int | bool] = field(default_factory=dict)

    @property
    def num_ranks(self) -> int:
        return self.nodes * self.tasks_per_node

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"run_dir": str(self.run_dir), "sbatch": dict(self.sbatch)}


def make(
    request: Request, cluster: Cluster, there: There, *, job: str, device: str, run_dir: Path, by_hand: bool = False
) -> Plan:
    """The plan. Raises ConfigError with everything that does not fit; `by_hand` plans for machines we do not see."""
    options, unreadable = _sbatch_options(request, cluster)
    problems = [
        *unreadable,
        *_unusable_folder(run_dir),
        *([] if by_hand else _not_to_be_had(request, cluster, there)),
        *([] if cluster.scheduler == "slurm" else _only_for_slurm(request)),
    ]
    gpus, tasks = _gpus_and_tasks(request, cluster, there, device, problems)
    if problems:
        raise ConfigError("command line", problems)
    time_min = request.time_min or cluster.time_min
    delay_s = cluster.signal_delay_s
    return Plan(
        job=job,
        run_dir=run_dir,
        cluster=there.cluster,
        scheduler=cluster.scheduler,
        nodes=request.nodes,
        tasks_per_node=tasks,
        gpus_per_node=gpus,
        cpus_per_task=request.cpus_per_task or cluster.cpus_per_task or _share_of_cpus(cluster, there, gpus),
        mem_gb=request.mem_gb or cluster.mem_gb,
        time_min=time_min,
        # a warning that takes most of a short time limit would leave no time to work
        signal_delay_s=min(delay_s, time_min * 60 // 5) if time_min else delay_s,
        partition=request.partition or cluster.partition,
        account=request.account or cluster.account,
        qos=request.qos or cluster.qos,
        setup=cluster.setup,
        sbatch=options,
    )


Problems = list[tuple[str, str]]


def _sbatch_options(request: Request, cluster: Cluster) -> tuple[dict[str, str | int | bool], Problems]:
    """The options of the cluster's file under those of the command line."""
    options: dict[str, str | int | bool] = {}
    problems = []
    given = [(key, value) for key, value in cluster.sbatch.items() if value is not False]
    for item in request.sbatch:
        key, equals, text = item.partition("=")
        given.append((key, text if equals else True))
    for key, value in given:
        name = key.strip().lstrip("-").replace("_", "-")
        if not name.replace("-", "").isalnum():
            problems.append((f"--sbatch {key}", "is no name of an option; write key=value, as in constraint=a100"))
        elif name in _OURS:
            problems.append((f"--sbatch {name}", f"the launcher sets it; use {_OURS[name]}"))
        elif not str(value).isprintable():
            problems.append((f"--sbatch {name}", f"{value!r} has a line break or the like, which sbatch cannot read"))
        else:
            options[name] = value
    return options, problems


def _unusable_folder(run_dir: Path) -> Problems:
    """SLURM reads % and \\ in file names as patterns, PYTHONPATH is divided by colons, sbatch by line breaks."""
    odd = sorted({letter for letter in str(run_dir) if letter in "%:\\" or not letter.isprintable()})
    if not odd:
        return []
    return [
        (
            "runs_root",
            f"{str(run_dir.parent)!r} has {' '.join(map(repr, odd))}, which schedulers read as something else",
        )
    ]


def _not_to_be_had(request: Request, cluster: Cluster, there: There) -> Problems:
    if cluster.scheduler == "slurm":
        return []
    problems = []
    here = "run on this machine with --nodes 1 --tasks-per-node N, or see with --print-command what to start by hand"
    if request.nodes > 1:
        why = f"there is none here ({there.no_slurm})" if there.no_slurm else f"cluster {there.cluster} is this machine"
        problems.append((f"--nodes {request.nodes}", f"needs a SLURM; {why}; {here}"))
    wanted = request.gpus_per_node if request.gpus_per_node is not None else cluster.gpus_per_node or 0
    if wanted > there.node.gpus:
        instead = f"--gpus-per-node {there.node.gpus}" if there.node.gpus else "--tasks-per-node N on its CPU"
        problems.append((f"--gpus-per-node {wanted}", f"this machine shows {_gpus(there.node.gpus)}; {instead}"))
    return problems


def _only_for_slurm(request: Request) -> Problems:
    given = {
        "--partition": request.partition,
        "--account": request.account,
        "--qos": request.qos,
        "--mem": request.mem_gb,
        "--sbatch": " ".join(request.sbatch) or None,
    }
    return [(f"{name} {value}", "is for SLURM, and this run is local") for name, value in given.items() if value]


def _gpus_and_tasks(
    request: Request, cluster: Cluster, there: There, device: str, problems: Problems
) -> tuple[int, int]:
    """One task per GPU; without GPUs as many tasks as asked for, or one."""
    gpus, tasks = request.gpus_per_node, request.tasks_per_node
    if gpus is not None and tasks is not None and gpus not in (0, tasks):
        problems.append((f"--tasks-per-node {tasks}", f"there is one task per GPU; --gpus-per-node {gpus} says it all"))
    if device == "cpu" and gpus:
        problems.append((f"--gpus-per-node {gpus}", f"run.device is cpu; --tasks-per-node {gpus} takes no GPU"))
    if gpus is None:
        there_are = cluster.gpus_per_node if cluster.gpus_per_node is not None else there.node.gpus
        there_are = 0 if device == "cpu" else there_are
        gpus = there_are if tasks is None else min(tasks, there_are)
        if tasks is not None and 0 < gpus < tasks:
            instead = f"--gpus-per-node {gpus}, or run.device=cpu to use none"
            problems.append((f"--tasks-per-node {tasks}", f"one GPU per task, and a node has {_gpus(gpus)}; {instead}"))
    if device == "cuda" and not gpus:
        problems.append(("run.device", "cuda needs a GPU, and the plan has none; run.device=auto takes what is there"))
    return gpus, gpus or tasks or 1


def _share_of_cpus(cluster: Cluster, there: There, gpus: int) -> int | None:
    """A rank on a GPU takes that GPU's share of the cores: SLURM's own default is one core, which starves it of images."""
    if cluster.scheduler == "local" or not 0 < gpus <= there.node.gpus:
        return None
    return max(1, there.node.cpus // there.node.gpus)


def _gpus(count: int) -> str:
    return {0: "no GPU", 1: "1 GPU"}.get(count, f"{count} GPUs")


# --- in words


def describe(plan: Plan, *, state: str | None, command: str, sbatch: str | None) -> str:
    """What `--dry-run` prints."""
    where = "this machine" if plan.scheduler == "local" else "SLURM"
    limits = {
        "cores per task": plan.cpus_per_task,
        "GB per node": plan.mem_gb,
        "min": plan.time_min,
        "partition": plan.partition,
    }
    ranks = f"{plan.num_ranks} = {plan.nodes} node(s) x {plan.tasks_per_node}, {_gpus(plan.gpus_per_node)} per node"
    lines = [
        f"job      {plan.job}",
        f"where    {plan.cluster} ({where})" + "".join(f", {value} {name}" for name, value in limits.items() if value),
        f"ranks    {ranks}",
        f"folder   {plan.run_dir} ({f'is there, {state}' if state else 'new'})",
        f"command  {command}",
    ]
    return "\n".join(lines + (["", sbatch.rstrip()] if sbatch else []))


def torchrun_lines(plan: Plan, *, code: Path, torchrun: str) -> list[str]:
    """A shell line for each node, to start the run by hand; the user sets $MASTER_ADDR to the first node's name."""
    run = shlex.quote(str(plan.run_dir))
    begin = f"cd {shlex.quote(str(code))} && {shlex.quote(torchrun)}"
    each = f"--nproc-per-node={plan.tasks_per_node} -m jobs {run}"
    if plan.nodes == 1:
        return [f"{begin} --standalone {each}"]
    meet = '--master-addr="$MASTER_ADDR" --master-port=29500'
    return [f"{begin} --nnodes={plan.nodes} --node-rank={rank} {meet} {each}" for rank in range(plan.nodes)]
