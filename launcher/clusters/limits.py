"""Whether a plan can run where it goes: by the cluster's file and by what SLURM says of its partitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher.clusters.cluster import Cluster, Node
from launcher.clusters.slurm import Partition

if TYPE_CHECKING:
    from launcher.plan import Plan, There

Problems = list[tuple[str, str]]


def problems_of(plan: Plan, cluster: Cluster, there: There) -> Problems:
    """Everything that is more than there is. Of several partitions one that has it is enough, as for SLURM."""
    found = _past_the_file(plan, cluster)
    if plan.scheduler == "allocation":
        return found + _past_the_allocation(plan, there)
    each = [_past_the_partition(plan, partition) for partition in there.partitions]
    return found + (each[0] if each and all(each) else [])


def gpus_in_words(count: int) -> str:
    return {0: "no GPU", 1: "1 GPU"}.get(count, f"{count} GPUs")


def _past_the_file(plan: Plan, cluster: Cluster) -> Problems:
    where, found = f"cluster {plan.cluster}", []
    if cluster.gpus_per_node is not None and plan.gpus_per_node > cluster.gpus_per_node:
        found.append(_too_many_gpus(plan, where, cluster.gpus_per_node))
    if cluster.max_nodes and plan.nodes > cluster.max_nodes:
        found.append(_too_many_nodes(plan, where, cluster.max_nodes))
    if cluster.max_time_min and plan.time_min and plan.time_min > cluster.max_time_min:
        found.append(_too_long(plan, where, cluster.max_time_min))
    cores = plan.tasks_per_node * (plan.cpus_per_task or 1)
    if cluster.cpus_per_node and cores > cluster.cpus_per_node:
        found.append(_too_many_cores(plan, where, cluster.cpus_per_node))
    return found


def _past_the_allocation(plan: Plan, there: There) -> Problems:
    where, found = "the allocation", []
    if there.num_nodes is not None and plan.nodes > there.num_nodes:
        found.append(_too_many_nodes(plan, where, there.num_nodes))
    if plan.gpus_per_node > there.node.gpus:
        found.append(_too_many_gpus(plan, where, there.node.gpus))
    elif plan.tasks_per_node * (plan.cpus_per_task or 1) > there.node.cpus:
        found.append(_too_many_cores(plan, where, there.node.cpus))
    return found


def _past_the_partition(plan: Plan, partition: Partition) -> Problems:
    where, found = f"partition {partition.name}", _past_the_nodes(plan, partition.name, partition.nodes)
    if plan.qos is not None:
        return found  # a quality of service may lift the limits of its partitions
    if partition.max_nodes is not None and plan.nodes > partition.max_nodes:
        found.append(_too_many_nodes(plan, f"a job on {where}", partition.max_nodes))
    if partition.max_time_min is not None and plan.time_min and plan.time_min > partition.max_time_min:
        found.append(_too_long(plan, where, partition.max_time_min))
    return found


def _past_the_nodes(plan: Plan, name: str, nodes: Sequence[Node]) -> Problems:
    """What is wrong is told of the first thing that no node has, or of how few nodes have all of it."""
    where = f"partition {name}"
    if not nodes:
        return [(f"--partition {name}", "has no node")]
    most = Node(max(node.gpus for node in nodes), max(node.cpus for node in nodes))
    if plan.gpus_per_node > most.gpus:
        return [_too_many_gpus(plan, where, most.gpus)]
    cores = plan.tasks_per_node * (plan.cpus_per_task or 1)
    if cores > most.cpus:
        return [_too_many_cores(plan, where, most.cpus)]
    fitting = sum(node.gpus >= plan.gpus_per_node and node.cpus >= cores for node in nodes)
    if plan.nodes > len(nodes):
        return [_too_many_nodes(plan, where, len(nodes))]
    if plan.nodes > fitting:
        has = f"{gpus_in_words(plan.gpus_per_node)} and {cores} cores"
        return [(f"--nodes {plan.nodes}", f"only {fitting} of the {len(nodes)} nodes of {where} have {has} each")]
    return []


def _too_many_gpus(plan: Plan, where: str, most: int) -> tuple[str, str]:
    instead = f"at most --gpus-per-node {most}" if most else "--tasks-per-node N runs on its CPU"
    return f"--gpus-per-node {plan.gpus_per_node}", f"a node of {where} has {gpus_in_words(most)}; {instead}"


def _too_many_nodes(plan: Plan, where: str, most: int) -> tuple[str, str]:
    return f"--nodes {plan.nodes}", f"{where} has {most} node{'s' * (most != 1)}; at most --nodes {most}"


def _too_long(plan: Plan, where: str, most: int) -> tuple[str, str]:
    problem = f"{where} allows {most} min; a run that needs longer saves before that and is queued again"
    return f"--time {plan.time_min}", f"{problem}: --time {most}"


def _too_many_cores(plan: Plan, where: str, most: int) -> tuple[str, str]:
    cores = plan.cpus_per_task or 1
    each = max(1, most // plan.tasks_per_node)
    problem = f"{plan.tasks_per_node} x {cores} cores, and a node of {where} has {most}"
    if plan.tasks_per_node > most:
        return f"--tasks-per-node {plan.tasks_per_node}", f"{problem}; at most --tasks-per-node {most}"
    return f"--cpus-per-task {cores}", f"{problem}; at most --cpus-per-task {each}"
