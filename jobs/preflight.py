"""Before a job begins, every node is looked at: a bad one is named in seconds, instead of hanging all others for an hour.

Each rank says what it finds (`Facts`), through rank 0's store and before any collective; `judge` is pure arithmetic on
what all found; then `retrieval_train.exchange` measures how fast they reach each other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retrieval_train.meeting import BadNode, listed
from retrieval_train.node import BUSY, FREE, Facts, expanded, look
from retrieval_train.rundir import RunDir, read_json, write_json

if TYPE_CHECKING:
    from jobs.job import JobConfig
    from retrieval_train.meeting import Meeting
    from retrieval_train.world import Group

log = logging.getLogger(__name__)

FULL_GB, SHORT_GB = 0.016, 1.0
RUNS_SHORT_GB = 10.0  # checkpoints go there
MOST_SKEW_S = 1.0
_FACTS, _CONFIG = "facts", "the run's config and data"
_SAID_S, _SAID_WITH_GPU_S = 15.0, 45.0  # a driver that is not loaded takes half a minute, a GPU to be released 10 s


@dataclass(frozen=True)
class Check:
    """One line of the result."""

    name: str
    words: str
    level: Literal["ok", "warning", "error"] = "ok"
    nodes: tuple[str, ...] = ()
    """At fault; none where it is the user's to correct."""


class Preflight:
    """The checks of one start of a run, as far as `run.preflight` wants them. Both methods are collective."""

    def __init__(self, config: JobConfig, run: RunDir) -> None:
        self._config, self._run = config, run
        self._said: dict[str, Any] = {"schema": 1}
        self._checks: list[Check] = []

    def look(self, meeting: Meeting) -> None:
        """Compare what the ranks find. Raises BadNode with the nodes' names, or ValueError for what a user has to correct."""
        if not self._config.run.preflight:
            return
        began = time.monotonic()
        device = self._config.run.device
        limit_s = _SAID_S if device == "cpu" else _SAID_WITH_GPU_S
        told = meeting.every(_FACTS, asdict(_facts(self._config, meeting)), limit_s=limit_s)
        self._said["ranks"] = told
        planned = read_json(self._run.plan).get("gpus_per_node", 0) if self._run.plan.is_file() else 0
        checks = judge([Facts.of(one) for one in told], device=device, gpus_per_node=planned)
        self._note(checks, meeting.rank, began)
        _refuse(checks)

    def exchange(self, world: Group) -> None:
        """Measure the way from node to node. Raises BadNode for one that is not reached."""
        if not self._config.run.preflight or world.size == 1:
            return
        from retrieval_train.exchange import measure

        assert world.meeting is not None
        began = time.monotonic()
        try:
            found = measure(world)
        except BadNode as error:
            self._note([Check("network", str(error), "error", error.nodes)], world.rank, began)
            raise
        where = world.meeting.where
        self._said["exchange"] = asdict(found)
        typical = statistics.median(found.swap_mb_s)
        words = (
            f"neighbours swap {found.mb} MB at {typical:.0f} MB/s, all-reduce of all ranks at {found.sum_mb_s:.0f} MB/s"
        )
        slow = [f"{where([rank])} at {found.swap_mb_s[rank]:.0f} MB/s" for rank in found.slow()]
        check = Check("network", words)
        if slow:
            check = Check("network", f"{', '.join(slow)}: all ranks will wait for it ({words})", "warning")
        self._note([check], world.rank, began)

    def _note(self, checks: list[Check], rank: int, began: float) -> None:
        """Into rank 0's log and `preflight.json`."""
        self._checks += checks
        if rank == 0:
            for check in checks:
                level = {"ok": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}[check.level]
                log.log(level, "pre-flight, %s: %s", check.name, check.words)
            self._said["seconds"] = round(self._said.get("seconds", 0.0) + time.monotonic() - began, 3)
            with contextlib.suppress(OSError):  # a full disk is one of the checks
                write_json(self._run.preflight, self._said | {"checks": [asdict(one) for one in self._checks]})


def tell_problem(error: Exception, *, nodes: Sequence[str]) -> None:
    """For a rank that cannot read the run's config: the others learn of it in `Preflight.look`, as of what it found.

    Raises BadNode where ranks on other nodes can.
    """
    from retrieval_train.world import meet

    meeting = meet(nodes=nodes)
    words = " ".join(str(error).split())
    facts = Facts(meeting.node, meeting.began, problems={_CONFIG: words})
    try:
        told = [Facts.of(one) for one in meeting.every(_FACTS, asdict(facts), limit_s=_SAID_WITH_GPU_S)]
    except BadNode:  # with run.preflight=false those who could read it say nothing, and go on
        raise BadNode(f"{meeting.node}: {_CONFIG} cannot be looked at: {words}", nodes=(meeting.node,)) from error
    with_it = _nodes(told, lambda one: _CONFIG in one.problems)
    if len(with_it) < len(_nodes(told)):
        _refuse(_problems(told))


def _facts(config: JobConfig, meeting: Meeting) -> Facts:
    is_first = meeting.nodes.index(meeting.node) == meeting.rank
    device, folders = config.run.device, _folders(config)
    return look(meeting.node, began=meeting.began, device=device, folders=folders, is_first=is_first)


def _folders(config: JobConfig) -> dict[str, Path]:
    data = getattr(config, "data", None)
    store = getattr(data, "store", None)
    scratch = store.scratch_folder() if store is not None else None
    folders = {"runs_root": config.runs_root, "temporary files": _temporary()}
    if scratch:
        folders["data.store.scratch"] = scratch
    if getattr(data, "workers", 0):
        folders["data workers"] = Path("/dev/shm")
    return folders


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError:  # none that can be written: how full it is, is said below
        return Path(os.environ.get("TMPDIR", "/tmp"))


def node_names() -> list[str]:
    """The machines of this start in the order of their ranks, as SLURM calls them; empty where it did not place the ranks."""
    of_step = os.environ.get("SLURM_STEP_NODELIST", "")
    tasks, size = int(os.environ.get("SLURM_STEP_NUM_TASKS", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    names = expanded(of_step)
    mine = os.environ.get("SLURMD_NODENAME")
    if not names or not tasks or size % tasks or size % len(names):
        return []
    # ranks dealt out another way than node by node
    is_as_planned = names[int(os.environ.get("RANK", "0")) * len(names) // size] == mine
    return names if is_as_planned else []


# --- what follows from it


def _refuse(checks: Sequence[Check]) -> None:
    """Raises BadNode for what is wrong with some nodes, ValueError for what is the user's to correct."""
    errors = [check for check in checks if check.level == "error"]
    if not errors:
        return
    words = "pre-flight: " + "\n".join(check.words for check in errors)
    nodes = [node for check in errors for node in check.nodes]
    if not nodes:  # on other nodes it would be the same
        raise ValueError(words)
    raise BadNode(words, nodes=nodes)


def judge(ranks: Sequence[Facts], *, device: Literal["auto", "cpu", "cuda"], gpus_per_node: int = 0) -> list[Check]:
    """A line of each kind, and one of each problem. `device` is the run's, `gpus_per_node` what was planned."""
    looked = [one for one in ranks if not {"GPU", _CONFIG} & one.problems.keys()]
    gpus = _gpus(looked, device, gpus_per_node)
    return [*_problems(ranks), *gpus, *_memory(ranks), *_disk(ranks), *_clocks(ranks), *_same_versions(ranks)]


def _problems(ranks: Sequence[Facts]) -> list[Check]:
    checks = []
    for what in dict.fromkeys(what for one in ranks for what in one.problems):
        told = {one.node: one.problems[what] for one in ranks if what in one.problems}
        is_everywhere = len(told) == len(_nodes(ranks))
        # of one node it may be the node, but not where a user may not read a folder
        is_users = is_everywhere and (len(told) > 1 or any("PermissionError" in words for words in told.values()))
        words = f"{what} cannot be looked at: {listed(f'on {node} {words}' for node, words in told.items())}"
        words += "; look at nvidia-smi and at Xid lines of dmesg there" if what == "GPU" else ""
        checks.append(Check(what, words, "error", () if is_users else tuple(told)))
    return checks


def _gpus(ranks: Sequence[Facts], device: Literal["auto", "cpu", "cuda"], planned: int) -> list[Check]:
    if device == "cpu":
        return [Check("GPUs", "not checked, for run.device is cpu")]
    if not ranks:
        return []
    without = _nodes(ranks, lambda one: one.gpu is None)
    if len(without) == len(_nodes(ranks)) and all(one.gpu is None for one in ranks):
        if device == "auto" and not planned:
            return [Check("GPUs", "torch sees none on any node: the job runs on CPUs")]
        wanted = f"{planned} GPUs a node were asked for" if planned else "run.device is cuda"
        words = f"{wanted}, but torch sees no GPU on any node; see whether this torch is built for CUDA "
        words += "(torch.version.cuda) and nvidia-smi shows GPUs, "
        words += "or set run.device=cpu" if planned else "ask for GPUs (--gpus-per-node), or set run.device=auto"
        return [Check("GPUs", words, "error")]
    checks = []
    if without:
        words = "torch sees no GPU there, but on other ranks it does; look at nvidia-smi and the node's driver"
        checks.append(Check("GPUs", f"{listed(without)}: {words}", "error", without))
    taken = [(one.node, one.gpu.uuid) for one in ranks if one.gpu]
    sharing = _nodes(ranks, lambda one: one.gpu is not None and taken.count((one.node, one.gpu.uuid)) > 1)
    if sharing:
        is_everywhere = len(sharing) == len(_nodes(ranks))
        words = (
            f"{listed(sharing)}: several ranks would share a GPU; each needs one of its own, so start as many tasks a "
        )
        words += (
            "node as it has GPUs" if is_everywhere else "node as it has GPUs; other nodes have enough, one is lost here"
        )
        checks.append(Check("GPUs", words, "error", () if is_everywhere else sharing))
    kinds = sorted({one.gpu.name for one in ranks if one.gpu})
    if len(kinds) > 1:
        checks.append(Check("GPUs", f"of several kinds, and all wait for the slowest: {listed(kinds)}", "warning"))
    return checks or [Check("GPUs", f"{len(taken)}, one a rank: {kinds[0]}")]


def _memory(ranks: Sequence[Facts]) -> list[Check]:
    gpus = [(one.node, one.gpu) for one in ranks if one.gpu]
    busy = [(node, gpu) for node, gpu in gpus if gpu.free_gib < FREE * gpu.total_gib]
    if busy:
        told = listed(f"{node} {gpu.free_gib:g} of {gpu.total_gib:g} GiB free ({gpu.uuid})" for node, gpu in busy)
        words = f"GPU memory: {told}; wanted are {FREE:.0%}: another process is on it (nvidia-smi shows which). "
        taken = tuple(dict.fromkeys(node for node, gpu in busy if gpu.free_gib < BUSY * gpu.total_gib))
        if not taken:
            return [Check("GPU memory", f"{words}The job has that much less", "warning")]
        words += f"End it, leave out {listed(taken)}, or set run.preflight=false"
        return [Check("GPU memory", words, "error", taken)]
    if not gpus:
        return []
    return [Check("GPU memory", f"at least {min(gpu.free_gib for _, gpu in gpus):g} GiB free on each")]


def _disk(ranks: Sequence[Facts]) -> list[Check]:
    checks = []
    for name in dict.fromkeys(name for one in ranks for name in one.disks):
        of_node = {one.node: one.disks[name] for one in ranks if name in one.disks}
        full = tuple(node for node, (_, free) in of_node.items() if free < FULL_GB)
        enough_gb = RUNS_SHORT_GB if name == "runs_root" else SHORT_GB
        short = tuple(node for node, (_, free) in of_node.items() if free < enough_gb)
        folder, least = min(of_node.values(), key=lambda one: one[1])
        words = f"{folder} ({name}) has {least:g} GB free"
        if full and name != "data workers":
            # no other node would do better
            is_shared = name == "runs_root" or len(full) == len(of_node) > 1
            words += f" on {listed(full)}; {FULL_GB:g} GB are the least, and some GB wanted: make room or take another folder"
            checks.append(Check("disk", words, "error", () if is_shared else full))
        elif short:
            checks.append(
                Check("disk", f"{words} on {listed(short)}; that may not last, {enough_gb:g} GB are wanted", "warning")
            )
        else:
            checks.append(Check("disk", f"{words} or more"))
    return checks


def _clocks(ranks: Sequence[Facts]) -> list[Check]:
    middle = statistics.median_low([one.began for one in ranks])
    off = {one.node: one.began - middle for one in ranks if abs(one.began - middle) > MOST_SKEW_S}
    if off:
        told = listed(f"{node} {seconds:+.1f} s" for node, seconds in off.items())
        return [Check("clock", f"off the others': {told}; times in the logs do not line up", "warning")]
    apart = max(one.began for one in ranks) - min(one.began for one in ranks)
    return [Check("clock", f"{apart:.2f} s apart at most")]


def _same_versions(ranks: Sequence[Facts]) -> list[Check]:
    differing = {}
    minority: list[str] = []
    for name in dict.fromkeys(name for one in ranks for name in one.versions):
        nodes_of: dict[str, list[str]] = {}
        for one in ranks:
            if name in one.versions and one.node not in nodes_of.setdefault(one.versions[name], []):
                nodes_of[one.versions[name]].append(one.node)
        if len(nodes_of) > 1:
            told = (f"{version} on {listed(nodes)}" for version, nodes in nodes_of.items())
            differing[name] = f"{name} is {' and '.join(told)}"
            most = max(nodes_of.values(), key=len)
            if name != "CUDA driver" and 2 * len(most) > len({node for nodes in nodes_of.values() for node in nodes}):
                minority += [node for nodes in nodes_of.values() for node in nodes if node not in most]
    if differing:
        # drivers of one cluster do differ, and work together
        is_harmless = differing.keys() == {"CUDA driver"}
        words = f"versions differ: {'; '.join(differing.values())}"
        words += "" if is_harmless else ". All nodes have to run the same: look at setup lines, modules, PATH"
        at_fault = tuple(dict.fromkeys(minority))
        return [Check("versions", words, "warning" if is_harmless else "error", at_fault)]
    same = ", ".join(f"{name} {version}" for name, version in ranks[0].versions.items())
    return [Check("versions", f"the same everywhere: {same}")]


def _nodes(ranks: Sequence[Facts], is_meant: Callable[[Facts], bool] = lambda one: True) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.node for one in ranks if is_meant(one)))
