"""Plans are pure: from what is asked for and what is there to what will run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from launcher import cluster as clusters
from launcher.cluster import Cluster, Node
from launcher.executors import Placement, sbatch_text
from launcher.launch import rank_variables
from launcher.plan import Plan, Request, There, make, torchrun_lines
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir

LOCAL, SLURM = Cluster(scheduler="local"), Cluster(scheduler="slurm")


def plan(
    cluster: Cluster = LOCAL, *, gpus: int = 0, device: str = "auto", run_dir: str = "/r/it", **asked: Any
) -> Plan:
    by_hand = asked.pop("by_hand", False)
    there = There(cluster=cluster.scheduler, node=Node(gpus, 16))
    return make(Request(**asked), cluster, there, job="noop", device=device, run_dir=Path(run_dir), by_hand=by_hand)


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
    srun = next(shlex.split(line) for line in shell if line.startswith("srun"))
    assert srun[-1] == f"/r/{nasty}/it/logs/scheduler"


def test_by_hand_there_is_one_torchrun_line_for_each_node() -> None:
    made = plan(nodes=2, tasks_per_node=3, by_hand=True, run_dir="/r/my run")
    lines = torchrun_lines(made, code=Path("/r/my run/code"), torchrun="torchrun")
    assert [shlex.split(line) for line in lines] == [
        f"cd|/r/my run/code|&&|torchrun|--nnodes=2|--node-rank={rank}|--master-addr=$MASTER_ADDR|--master-port=29500"
        "|--nproc-per-node=3|-m|jobs|/r/my run".split("|")
        for rank in range(2)
    ]


def placement(**values: Any) -> Placement:
    place: dict[str, Any] = {"scheduler": "slurm", "job_id": "4711", "restarts": 0, "first_host": "n1", "port": None}
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


def test_a_partition_has_what_all_its_nodes_have(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("main*|64|gpu:a100:8(S:0-1)", "main*|32|gpu:a100:4,gpu:v100:2", "big|96|gpu:8", "plain|8|(null)")
    monkeypatch.setattr(clusters, "ask", lambda command: "\n".join(lines) + "\n")
    asked = (None, "big", "plain", "big,main", "none")
    have = [(6, 32), (8, 96), (0, 8), (6, 32), (0, 1)]
    assert [clusters.partition_node(partition) for partition in asked] == [Node(*node) for node in have]


def test_a_rank_on_a_gpu_takes_its_share_of_the_cores_unless_told_otherwise() -> None:
    assert plan(SLURM, gpus=4).cpus_per_task == 4
    assert plan(SLURM, gpus=4, gpus_per_node=2).cpus_per_task == 4
    assert plan(SLURM, gpus=4, cpus_per_task=7).cpus_per_task == 7
    assert plan(SLURM, gpus=4, device="cpu").cpus_per_task is None
    assert plan(LOCAL, gpus=4).cpus_per_task is None
