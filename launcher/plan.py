"""A plan is a run not yet submitted: what, where, how many ranks. Pure: nothing is asked, written or started here."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launcher.clusters import limits, sbatch_options
from launcher.clusters.cluster import Cluster, Node
from launcher.clusters.limits import gpus_in_words
from launcher.clusters.sbatch_options import Problems
from launcher.clusters.slurm import Partition
from launcher.starts.attempts import Requeue
from retrieval_train.config import ConfigError

Scheduler = Literal["local", "slurm", "allocation"]


@dataclass(frozen=True)
class Request:
    """What the command line asks for; None leaves it to the cluster's file."""

    nodes: int | None = None
    """None: 1, or all of the allocation."""
    gpus_per_node: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    cpus_per_gpu: int | None = None
    mem_gb: float | None = None
    time_min: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    reservation: str | None = None
    comment: str | None = None
    sbatch: tuple[str, ...] = ()


@dataclass(frozen=True)
class There:
    """What was found at the place where the run goes."""

    cluster: str
    """Name or file of the cluster."""
    node: Node
    """This machine, or what each node of the partition or of the allocation has."""
    no_slurm: str | None = None
    """Why there is no SLURM; None where there is one."""
    partitions: tuple[Partition, ...] = ()
    """Those of SLURM that the run may go to; none where they are not known."""
    num_nodes: int | None = None
    """Of the allocation."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    """What the user's shell says to sbatch (SBATCH_ACCOUNT), by the name of our option."""
    cwd: Path | None = None
    """Where the user stands: containers see it."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides how the run is started; all of it goes into plan.json."""

    job: str
    run_dir: Path
    cluster: str
    scheduler: Scheduler
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
    gpu: str | None = None
    """What a GPU is, by the cluster's file."""
    setup: tuple[str, ...] = ()
    """Shell lines of the first node before all else: modules, environments, variables."""
    python: tuple[str, ...] = ()
    """The beginning of a rank's command line; empty: the Python that submits."""
    srun: tuple[str, ...] = ()
    """More arguments of srun: for pyxis, its container."""
    requeue: Requeue = field(default_factory=Requeue)
    sbatch: Mapping[str, str | int | bool] = field(default_factory=dict)
    """Other options of sbatch: --constraint, --exclude, --nodelist, --reservation, --comment, --sbatch."""

    @property
    def num_ranks(self) -> int:
        return self.nodes * self.tasks_per_node

    def as_dict(self) -> dict[str, Any]:
        """JSON-able. `python` of plan.json is the version that submitted."""
        ours = {"run_dir": str(self.run_dir), "sbatch": dict(self.sbatch), "requeue": self.requeue.model_dump()}
        values = dataclasses.asdict(self) | ours
        return values | {"rank_python": values.pop("python")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """What `as_dict` gave, after JSON. Fields that are not there have their defaults."""
        values = {**values, "python": values.get("rank_python", ())}
        known = {one.name: values[one.name] for one in dataclasses.fields(cls) if one.name in values}
        known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        known |= {"run_dir": Path(known["run_dir"]), "requeue": Requeue(**known.get("requeue", {}))}
        return cls(**known)


def make(
    request: Request, cluster: Cluster, there: There, *, job: str, device: str, run_dir: Path, by_hand: bool = False
) -> Plan:
    """The plan. Raises ConfigError with everything that does not fit; `by_hand` plans for machines we do not see."""
    options, problems = sbatch_options.collect(request, cluster, there)
    problems += _unusable_folder(run_dir)
    problems += _unreadable_names(request)
    problems += [] if by_hand else _not_to_be_had(request, cluster, there)
    problems += [] if cluster.scheduler == "slurm" else _only_for_slurm(request, cluster)
    gpus, tasks = _gpus_and_tasks(request, cluster, there, device, problems)
    cores = _cores(request, cluster, there, gpus, problems)
    if problems:
        raise ConfigError("command line", problems)
    time_min = request.time_min or cluster.time_min
    delay_s = cluster.signal_delay_s
    # what a container has to see: one folder is enough where runs lie below the place of the submit
    folders = tuple(f for f in (there.cwd, run_dir.parent) if f and (f == there.cwd or there.cwd not in f.parents))
    plan = Plan(
        job=job,
        run_dir=run_dir,
        cluster=there.cluster,
        scheduler=cluster.scheduler,
        nodes=request.nodes or there.num_nodes or 1,
        tasks_per_node=tasks,
        gpus_per_node=gpus,
        cpus_per_task=cores,
        mem_gb=request.mem_gb or cluster.mem_gb,
        time_min=time_min,
        # a warning that takes most of a short time limit would leave no time to work
        signal_delay_s=min(delay_s, time_min * 60 // 5) if time_min else delay_s,
        partition=request.partition or cluster.partition or there.defaults.get("partition"),
        account=request.account or cluster.account or there.defaults.get("account"),
        qos=request.qos or cluster.qos or there.defaults.get("qos"),
        gpu=cluster.gpu,
        setup=cluster.shell_lines(),
        python=cluster.python_words(folders, with_gpus=gpus > 0),
        srun=cluster.srun_words(folders),
        requeue=cluster.requeue,
        sbatch=options,
    )
    if past := [] if by_hand else limits.problems_of(plan, cluster, there):
        raise ConfigError("command line", past)
    return plan


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


def _unreadable_names(request: Request) -> Problems:
    given = {name: getattr(request, name) for name in ("partition", "account", "qos")}
    return [
        problem
        for name, value in given.items()
        if value is not None
        for problem in sbatch_options.unreadable(f"--{name}", value)
    ]


def _not_to_be_had(request: Request, cluster: Cluster, there: There) -> Problems:
    if cluster.scheduler != "local":
        return []
    problems = []
    here = "run on this machine with --nodes 1 --tasks-per-node N, or see with --print-command what to start by hand"
    if (request.nodes or 1) > 1:
        why = f"there is none here ({there.no_slurm})" if there.no_slurm else f"cluster {there.cluster} is this machine"
        problems.append((f"--nodes {request.nodes}", f"needs a SLURM; {why}; {here}"))
    wanted = request.gpus_per_node if request.gpus_per_node is not None else cluster.gpus_per_node or 0
    if wanted > there.node.gpus:
        instead = f"--gpus-per-node {there.node.gpus}" if there.node.gpus else "--tasks-per-node N on its CPU"
        problems.append(
            (f"--gpus-per-node {wanted}", f"this machine shows {gpus_in_words(there.node.gpus)}; {instead}")
        )
    return problems


def _only_for_slurm(request: Request, cluster: Cluster) -> Problems:
    given = {
        "--partition": request.partition,
        "--account": request.account,
        "--qos": request.qos,
        "--mem": request.mem_gb,
        **{f"--{name}": getattr(request, name) for name in sbatch_options.NAMED},
        "--sbatch": " ".join(request.sbatch) or None,
    }
    why = "is for SLURM, and this run is local"
    if cluster.scheduler == "allocation":
        given["--time"] = request.time_min
        why = "is for sbatch; in an allocation it was said to salloc"
    return [(f"{name} {value}", why) for name, value in given.items() if value is not None]


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
            problems.append(
                (f"--tasks-per-node {tasks}", f"one GPU per task, and a node has {gpus_in_words(gpus)}; {instead}")
            )
    if device == "cuda" and not gpus:
        problems.append(("run.device", "cuda needs a GPU, and the plan has none; run.device=auto takes what is there"))
    return gpus, gpus or tasks or 1


def _cores(request: Request, cluster: Cluster, there: There, gpus: int, problems: Problems) -> int | None:
    """Cores of each task; those of a GPU are the same, for there is one task per GPU."""
    by_gpu, by_task = request.cpus_per_gpu, request.cpus_per_task
    if by_gpu is not None and not gpus:
        problems.append((f"--cpus-per-gpu {by_gpu}", f"the plan has no GPU; --cpus-per-task {by_gpu}"))
    if by_gpu is not None and by_task not in (None, by_gpu):
        problem = f"there is one task per GPU, and --cpus-per-task {by_task} says otherwise; give one of them"
        problems.append((f"--cpus-per-gpu {by_gpu}", problem))
    return by_task or by_gpu or cluster.cpus_per_task or _share_of_cpus(cluster, there, gpus)


def _share_of_cpus(cluster: Cluster, there: There, gpus: int) -> int | None:
    """A rank on a GPU takes that GPU's share of the cores: SLURM's own default is one core, which starves it of images."""
    if cluster.scheduler == "local" or not gpus:
        return None
    nodes = [node for partition in there.partitions for node in partition.nodes] or [there.node]
    most = cluster.cpus_per_node or max(node.cpus for node in nodes)
    shares = [min(node.cpus, most) // node.gpus for node in nodes if node.gpus >= gpus]
    return max(1, min(shares)) if shares else None


# --- in words


def describe(plan: Plan, *, state: str | None, command: str, sbatch: str | None) -> str:
    """What `--dry-run` prints."""
    where = {"local": "this machine", "slurm": "SLURM", "allocation": "the allocation of this shell"}[plan.scheduler]
    said = {
        "cores per task": plan.cpus_per_task,
        "GB per node": plan.mem_gb,
        "min": plan.time_min,
        "partition": plan.partition,
    }
    ranks = (
        f"{plan.num_ranks} = {plan.nodes} node(s) x {plan.tasks_per_node}, {gpus_in_words(plan.gpus_per_node)} per node"
    )
    lines = [
        f"job      {plan.job}",
        f"where    {plan.cluster} ({where})" + "".join(f", {value} {name}" for name, value in said.items() if value),
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
    meet = '--master-addr="$MASTER_ADDR" --master-port="${MASTER_PORT:-29500}"'
    return [f"{begin} --nnodes={plan.nodes} --node-rank={rank} {meet} {each}" for rank in range(plan.nodes)]
