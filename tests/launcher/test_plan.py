"""Plans are pure: from what is asked for and what is there to what will run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.clusters import cluster as clusters
from launcher.clusters.cluster import Cluster, Node
from launcher.clusters.slurm import Partition
from launcher.plan import Plan, Request, There, make, torchrun_lines
from launcher.starts.attempts import Requeue
from launcher.starts.executors import Placement, sbatch_text
from launcher.starts.launch import rank_variables
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir

LOCAL, SLURM = Cluster(scheduler="local"), Cluster(scheduler="slurm")


def plan(
    cluster: Cluster = LOCAL,
    *,
    gpus: int = 0,
    device: str = "auto",
    run_dir: str = "/r/it",
    found: dict[str, Any] | None = None,
    **asked: Any,
) -> Plan:
    by_hand = asked.pop("by_hand", False)
    there: dict[str, Any] = {"cluster": "mine", "node": Node(gpus, 16), "cwd": Path("/here")} | (found or {})
    return make(
        Request(**asked), cluster, There(**there), job="noop", device=device, run_dir=Path(run_dir), by_hand=by_hand
    )


@pytest.mark.parametrize(
    ("gpus", "device", "asked", "tasks_and_gpus"),
    [
        (0, "auto", {}, (1, 0)),
        (0, "auto", {"tasks_per_node": 3}, (3, 0)),
        (4, "auto", {}, (4, 4)),
        (4, "cpu", {}, (1, 0)),
        (4, "cpu", {"tasks_per_node": 2}, (2, 0)),
        (4, "auto", {"gpus_per_node": 2}, (2, 2)),
        (4, "auto", {"tasks_per_node": 2}, (2, 2)),
        (4, "auto", {"gpus_per_node": 0, "tasks_per_node": 3}, (3, 0)),
    ],
)
def test_there_is_one_task_per_gpu_or_as_many_as_asked_for(
    gpus: int, device: str, asked: dict[str, Any], tasks_and_gpus: tuple[int, int]
) -> None:
    made = plan(gpus=gpus, device=device, **asked)
    assert (made.tasks_per_node, made.gpus_per_node) == tasks_and_gpus


@pytest.mark.parametrize(
    ("gpus", "asked", "words"),
    [
        (1, {"tasks_per_node": 2}, "one GPU per task, and a node has 1 GPU; --gpus-per-node 1, or run.device=cpu"),
        (4, {"gpus_per_node": 4, "tasks_per_node": 2}, "there is one task per GPU; --gpus-per-node 4 says it all"),
        (2, {"gpus_per_node": 4}, "this machine shows 2 GPUs; --gpus-per-node 2"),
    ],
)
def test_tasks_that_do_not_fit_the_gpus_are_refused(gpus: int, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(gpus=gpus, **asked)


def test_the_command_line_comes_before_the_clusters_file() -> None:
    mine = Cluster(scheduler="slurm", partition="a", time_min=60, sbatch={"constraint": "a100", "exclusive": True})
    made = plan(mine, partition="b", sbatch=("constraint=h100", "--nice=3"))
    assert (made.partition, made.time_min) == ("b", 60)
    assert made.sbatch == {"constraint": "h100", "exclusive": True, "nice": "3"}


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("nodes=3", "--sbatch nodes  the launcher sets it; use --nodes"),
        ("--job-name=x", "--sbatch job-name  the launcher sets it; use run.name in the config"),
        ("comment=a\nb", "--sbatch comment  'a\\nb' has a line break"),
        ("a b=c", "--sbatch a b  is no name of an option"),
        ("-p=main", "--sbatch p  is short for an option; write its long name"),
        ("gres=gpu:4", "--sbatch gres=gpu:4  the launcher asks for GPUs; use --gpus-per-node"),
        ("no-requeue", "--sbatch no-requeue  the launcher sets it; use requeue: {preempted: 0"),
        ("comment=", "--sbatch comment  is empty; leave it out"),
        ("kill_on_invalid_dep=no", "--sbatch kill-on-invalid-dep  the launcher sets it"),
    ],
)
def test_sbatch_options_that_would_be_misread_are_refused(item: str, words: str) -> None:
    with pytest.raises(ConfigError) as told:
        plan(SLURM, sbatch=(item,))
    assert words in str(told.value)


@pytest.mark.parametrize(("time_min", "delay_s"), [(None, 120), (60, 120), (5, 60), (1, 12)])
def test_the_warning_leaves_most_of_the_time_to_work(time_min: int | None, delay_s: int) -> None:
    assert plan(SLURM, time_min=time_min).signal_delay_s == delay_s


def test_nothing_that_a_user_gives_reaches_the_shell_unquoted() -> None:
    nasty = "it's $(touch x) `y`"
    made = plan(SLURM, run_dir=f"/r/{nasty}/it", partition=nasty, sbatch=(f"comment={nasty}",), device="cpu")
    text = sbatch_text(made, RunDir(made.run_dir))
    for line in text.splitlines():
        if line.startswith("#SBATCH") and nasty[:4] in line:
            assert len(shlex.split(line.removeprefix("#SBATCH "))) == 1, line
    shell = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert f"export PYTHONPATH={shlex.quote(f'/r/{nasty}/it/code')}${{PYTHONPATH:+:$PYTHONPATH}}" in shell
    assert shlex.split(shell[-1])[-1] == f"/r/{nasty}/it/logs/scheduler"


def test_by_hand_there_is_one_torchrun_line_for_each_node() -> None:
    made = plan(nodes=2, tasks_per_node=3, by_hand=True, run_dir="/r/my run")
    lines = torchrun_lines(made, code=Path("/r/my run/code"), torchrun="torchrun")
    assert [shlex.split(line) for line in lines] == [
        f"cd|/r/my run/code|&&|torchrun|--nnodes=2|--node-rank={rank}|--master-addr=$MASTER_ADDR"
        "|--master-port=${MASTER_PORT:-29500}|--nproc-per-node=3|-m|jobs|/r/my run".split("|")
        for rank in range(2)
    ]


def placement(**values: Any) -> Placement:
    place: dict[str, Any] = {"scheduler": "slurm", "number": 4711, "restarts": 0, "first_host": "n1", "port": None}
    place |= {"rank": 5, "size": 8, "local_rank": 1, "local_size": 4, "cpus_per_task": None}
    return Placement(**(place | values))


def test_ranks_of_one_start_agree_on_a_port_and_the_next_start_has_another() -> None:
    first, second, restarted = placement(rank=0), placement(rank=7), placement(restarts=1)
    ports = [int(rank_variables(place, cores=8)["MASTER_PORT"]) for place in (first, second, restarted)]
    assert ports[0] == ports[1] != ports[2]
    assert all(1024 < port < 32768 for port in ports)


def test_ranks_share_the_cores_of_their_node() -> None:
    assert rank_variables(placement(), cores=16)["OMP_NUM_THREADS"] == "4"
    assert rank_variables(placement(), cores=2)["OMP_NUM_THREADS"] == "1"
    assert rank_variables(placement(cpus_per_task=6), cores=16)["OMP_NUM_THREADS"] == "6"


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        (None, ("0", "1", "2")),
        ("", ()),
        ("2,0", ("2", "0")),
        ("1,7,0", ("1",)),
        ("-1", ()),
        ("GPU-8a,1", ("GPU-8a", "1")),
    ],
)
def test_gpus_are_those_that_cuda_would_show(
    chosen: str | None, seen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "_gpus_of_the_machine", lambda: ["0", "1", "2"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert clusters.visible_gpus() == seen


def test_a_rank_on_a_gpu_takes_its_share_of_the_cores_unless_told_otherwise() -> None:
    assert plan(SLURM, gpus=4).cpus_per_task == 4
    assert plan(SLURM, gpus=4, gpus_per_node=2).cpus_per_task == 4
    assert plan(SLURM, gpus=4, cpus_per_task=7).cpus_per_task == 7
    assert plan(SLURM, gpus=4, device="cpu").cpus_per_task is None
    assert plan(LOCAL, gpus=4).cpus_per_task is None
    assert plan(Cluster(scheduler="slurm", cpus_per_node=12), gpus=4).cpus_per_task == 3
    assert plan(SLURM, gpus=4, cpus_per_gpu=3).cpus_per_task == plan(SLURM, gpus=4, cpus_per_task=3).cpus_per_task == 3


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"constraint": "a", "sbatch": ("constraint=b",)}, "--constraint a  --sbatch constraint=b says otherwise"),
        ({"exclude": "n1\nn2"}, "--exclude  'n1\\nn2' has a line break"),
        ({"partition": "a\nb"}, "--partition  'a\\nb' has a line break"),
        ({"account": " "}, "--account  is empty; leave it out"),
        ({"mem_gb": 4, "sbatch": ("mem-per-gpu=4G",)}, "--sbatch mem-per-gpu  and --mem say both how much memory"),
        ({"cpus_per_gpu": 3, "cpus_per_task": 2}, "--cpus-per-gpu 3  there is one task per GPU, and --cpus-per-task 2"),
        ({"cpus_per_gpu": 3, "gpus_per_node": 0}, "--cpus-per-gpu 3  the plan has no GPU; --cpus-per-task 3"),
    ],
)
def test_options_that_contradict_each_other_or_hold_nothing_readable_are_refused(
    asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as told:
        plan(SLURM, gpus=2, **asked)
    assert words in str(told.value)


def test_the_command_line_comes_before_the_file_and_the_file_before_the_users_shell() -> None:
    mine = Cluster(scheduler="slurm", account="file", sbatch={"constraint": "file"})
    shell = {"defaults": {"account": "shell", "qos": "shell", "constraint": "shell", "reservation": "shell"}}
    made = plan(mine, found=shell, constraint="said", sbatch=("constraint=said", "comment=it"))
    assert (made.account, made.qos) == ("file", "shell")
    assert made.sbatch == {"constraint": "said", "reservation": "shell", "comment": "it"}


def partition(name: str, *nodes: tuple[int, int], **limits: Any) -> Partition:
    return Partition(name, tuple(Node(*node) for node in nodes), **limits)


SMALL = partition("small", (2, 8), (2, 8), (8, 96), max_nodes=2, max_time_min=60)
LARGE = partition("large", *[(4, 64)] * 4)


@pytest.mark.parametrize(
    ("partitions", "asked", "words"),
    [
        ([SMALL], {"gpus_per_node": 9}, "--gpus-per-node 9  a node of partition small has 8 GPUs; at most --gpus-per"),
        ([SMALL], {"nodes": 2, "gpus_per_node": 8}, "--nodes 2  only 1 of the 3 nodes of partition small have 8 GPUs"),
        ([SMALL], {"nodes": 3}, "--nodes 3  a job on partition small has 2 nodes; at most --nodes 2"),
        ([LARGE], {"nodes": 5}, "--nodes 5  partition large has 4 nodes; at most --nodes 4"),
        ([LARGE], {"cpus_per_task": 33}, "--cpus-per-task 33  2 x 33 cores, and a node of partition large has 64"),
        ([LARGE], {"gpus_per_node": 0, "tasks_per_node": 65}, "--tasks-per-node 65  65 x 1 cores, and a node of part"),
        ([SMALL], {"time_min": 61}, "--time 61  partition small allows 60 min; a run that needs longer saves before"),
        ([SMALL, LARGE], {"time_min": 61, "nodes": 5}, "--nodes 5  partition small has 3 nodes"),
        ([partition("empty")], {}, "--partition empty  has no node"),
    ],
)
def test_more_than_a_partition_has_is_refused(
    partitions: Sequence[Partition], asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as told:
        plan(SLURM, gpus=2, found={"partitions": tuple(partitions)}, **asked)
    assert words in str(told.value)


def test_what_one_of_several_partitions_allows_is_allowed() -> None:
    both = {"partitions": (SMALL, LARGE)}
    assert plan(SLURM, gpus=2, found=both, nodes=4, time_min=61).nodes == 4
    assert plan(SLURM, gpus=2, found=both, gpus_per_node=8).gpus_per_node == 8
    # a quality of service may lift a partition's limits, though not what its nodes have
    assert plan(SLURM, gpus=2, found={"partitions": (SMALL,)}, qos="long", time_min=61, nodes=3).time_min == 61


@pytest.mark.parametrize(
    ("limit", "asked", "words"),
    [
        ({"max_nodes": 2}, {"nodes": 3}, "--nodes 3  cluster mine has 2 nodes; at most --nodes 2"),
        ({"gpus_per_node": 2}, {"gpus_per_node": 4}, "--gpus-per-node 4  a node of cluster mine has 2 GPUs; at most"),
        ({"max_time_min": 60}, {"time_min": 90}, "--time 90  cluster mine allows 60 min"),
        (
            {"cpus_per_node": 8},
            {"cpus_per_task": 5},
            "--cpus-per-task 5  4 x 5 cores, and a node of cluster mine has 8",
        ),
    ],
)
def test_more_than_the_clusters_file_allows_is_refused(
    limit: dict[str, Any], asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as told:
        plan(Cluster(scheduler="slurm", **limit), gpus=4, **asked)
    assert words in str(told.value)


def test_an_allocation_is_taken_whole_unless_less_is_asked_for() -> None:
    salloc = Cluster(scheduler="allocation")
    found = {"num_nodes": 4, "node": Node(2, 6)}
    whole, part = plan(salloc, found=found), plan(salloc, found=found, nodes=3, gpus_per_node=1)
    assert (whole.nodes, whole.gpus_per_node, whole.cpus_per_task) == (4, 2, 3)
    assert (part.nodes, part.gpus_per_node, part.cpus_per_task) == (3, 1, 3)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"nodes": 5}, "--nodes 5  the allocation has 4 nodes; at most --nodes 4"),
        ({"gpus_per_node": 3}, "--gpus-per-node 3  a node of the allocation has 2 GPUs"),
        ({"cpus_per_task": 4}, "--cpus-per-task 4  2 x 4 cores, and a node of the allocation has 6"),
        ({"time_min": 9}, "--time 9  is for sbatch; in an allocation it was said to salloc"),
        ({"nodelist": "n1"}, "--nodelist n1  is for sbatch"),
    ]
    for asked, words in refused:
        with pytest.raises(ConfigError) as told:
            plan(salloc, found=found, **asked)
        assert words in str(told.value)


def test_a_plan_that_was_written_is_read_back_the_same() -> None:
    mine = Cluster(
        scheduler="slurm",
        requeue=Requeue(node=3),
        modules=("cuda/12.4",),
        container={"image": "i.sif"},  # type: ignore[arg-type]
        sbatch={"exclusive": True},
    )
    made = plan(mine, nodes=2, gpus=4)
    assert Plan.from_dict(json.loads(json.dumps(made.as_dict()))) == made
    since = ("requeue", "rank_python", "srun", "gpu")
    older = {key: value for key, value in made.as_dict().items() if key not in since}
    read = Plan.from_dict(older | {"python": "3.11.7", "of a newer version": 1})
    assert (read.requeue, read.python) == (Requeue(), ())
