"""Before a job begins, every node is looked at: a bad one is named in seconds, instead of hanging all others for an hour.

Each rank says what it finds (`Facts`), through rank 0's store and before any collective; `judge` is pure arithmetic on
what all found; then `retrieval_train.exchange` measures how fast they reach each other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retrieval_train.meeting import BadNode
from retrieval_train.node import FREE, Facts, look
from retrieval_train.rundir import RunDir, write_json

if TYPE_CHECKING:
    from jobs.job import JobConfig
    from retrieval_train.meeting import Meeting
    from retrieval_train.world import Group

log = logging.getLogger(__name__)

FULL_GB, SHORT_GB = 0.016, 1.0
MOST_SKEW_S = 1.0
_SAID_S = 90.0


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
        told = meeting.every("facts", asdict(_facts(self._config, meeting)), limit_s=_SAID_S)
        self._said["ranks"] = told
        self._note(judge([Facts.of(one) for one in told], device=self._config.run.device), meeting.rank, began)
        self._refuse()

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

    def _refuse(self) -> None:
        errors = [check for check in self._checks if check.level == "error"]
        if not errors:
            return
        words = "pre-flight: " + "\n".join(check.words for check in errors)
        if not all(check.nodes for check in errors):  # on other nodes it would be the same
            raise ValueError(words)
        raise BadNode(words, nodes=(node for check in errors for node in check.nodes))


def _facts(config: JobConfig, meeting: Meeting) -> Facts:
    is_first = meeting.nodes.index(meeting.node) == meeting.rank
    device, folders = config.run.device, _folders(config)
    return look(meeting.node, began=meeting.began, device=device, folders=folders, is_first=is_first)


def _folders(config: JobConfig) -> dict[str, Path]:
    data = getattr(config, "data", None)
    store = getattr(data, "store", None)
    scratch = store.scratch_folder() if store is not None else None
    folders = {"runs_root": config.runs_root, "temporary files": Path(tempfile.gettempdir())}
    if scratch:
        folders["data.store.scratch"] = scratch
    if getattr(data, "workers", 0):
        folders["data workers"] = Path("/dev/shm")
    return folders


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


def expanded(names: str) -> list[str]:
    """SLURM's short form of a list of nodes: `a[01-03,7]-x,b` are a01-x, a02-x, a03-x, a7-x and b."""
    found: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", names):
        done = [""]
        for text, inside in re.findall(r"([^\[]+)|\[([^\]]*)\]", part):
            choices = [text] if text else [number for span in inside.split(",") for number in _span(span)]
            done = [before + choice for before in done for choice in choices]
        found += done
    return found


def _span(span: str) -> list[str]:
    first, _, last = span.partition("-")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]


# --- what follows from it


def judge(ranks: Sequence[Facts], *, device: Literal["auto", "cpu", "cuda"]) -> list[Check]:
    """A line of each kind, and one of each problem. `device` is the run's."""
    return [*_gpus(ranks, device), *_memory(ranks), *_disk(ranks), *_clocks(ranks), *_same_versions(ranks)]


def _gpus(ranks: Sequence[Facts], device: Literal["auto", "cpu", "cuda"]) -> list[Check]:
    if device == "cpu":
        return [Check("GPUs", "not checked, for run.device is cpu")]
    without = _nodes(ranks, lambda one: one.gpu is None)
    if len(without) == len(_nodes(ranks)) and all(one.gpu is None for one in ranks):
        if device == "auto":
            return [Check("GPUs", "torch sees none on any node: the job runs on CPUs")]
        words = (
            "run.device is cuda, but torch sees no GPU on any node; ask for GPUs (--gpus-per-node), see whether this "
        )
        return [Check("GPUs", words + "torch is built for CUDA (torch.version.cuda), or set run.device=auto", "error")]
    checks = []
    if without:
        words = "torch sees no GPU there, but on other ranks it does; look at nvidia-smi and the node's driver"
        checks.append(Check("GPUs", f"{_list(without)}: {words}", "error", without))
    taken = [(one.node, one.gpu.uuid) for one in ranks if one.gpu]
    sharing = _nodes(ranks, lambda one: one.gpu is not None and taken.count((one.node, one.gpu.uuid)) > 1)
    if sharing:
        is_everywhere = len(sharing) == len(_nodes(ranks))
        words = (
            f"{_list(sharing)}: several ranks would share a GPU; each needs one of its own, so start as many tasks a "
        )
        words += (
            "node as it has GPUs" if is_everywhere else "node as it has GPUs; other nodes have enough, one is lost here"
        )
        checks.append(Check("GPUs", words, "error", () if is_everywhere else sharing))
    kinds = sorted({one.gpu.name for one in ranks if one.gpu})
    if len(kinds) > 1:
        checks.append(Check("GPUs", f"of several kinds, and all wait for the slowest: {_list(kinds)}", "warning"))
    return checks or [Check("GPUs", f"{len(taken)}, one a rank: {kinds[0]}")]


def _memory(ranks: Sequence[Facts]) -> list[Check]:
    gpus = [(one.node, one.gpu) for one in ranks if one.gpu]
    busy = [(node, gpu) for node, gpu in gpus if gpu.free_gib < FREE * gpu.total_gib]
    if busy:
        told = _list(f"{node} {gpu.free_gib:g} of {gpu.total_gib:g} GiB free ({gpu.uuid})" for node, gpu in busy)
        words = f"GPU memory: {told}; wanted are {FREE:.0%}: another process is on it (nvidia-smi shows which). "
        words += "End it, leave the node out, or set run.preflight=false"
        return [Check("GPU memory", words, "error", tuple(dict.fromkeys(node for node, _ in busy)))]
    if not gpus:
        return []
    return [Check("GPU memory", f"at least {min(gpu.free_gib for _, gpu in gpus):g} GiB free on each")]


def _disk(ranks: Sequence[Facts]) -> list[Check]:
    checks = []
    for name in dict.fromkeys(name for one in ranks for name in one.disks):
        of_node = {one.node: one.disks[name] for one in ranks if name in one.disks}
        full = tuple(node for node, (_, free) in of_node.items() if free < FULL_GB)
        short = tuple(node for node, (_, free) in of_node.items() if free < SHORT_GB)
        folder, least = min(of_node.values(), key=lambda one: one[1])
        words = f"{folder} ({name}) has {least:g} GB free"
        if full and name != "data workers":
            # no other node would do better
            is_shared = len(full) == len(of_node) and (name == "runs_root" or len(full) > 1)
            words += (
                f" on {_list(full)}; {FULL_GB:g} GB are the least, and some GB wanted: make room or take another folder"
            )
            checks.append(Check("disk", words, "error", () if is_shared else full))
        elif short:
            checks.append(Check("disk", f"{words} on {_list(short)}; that may not last", "warning"))
        else:
            checks.append(Check("disk", f"{words} or more"))
    return checks


def _clocks(ranks: Sequence[Facts]) -> list[Check]:
    middle = statistics.median_low([one.began for one in ranks])
    off = {one.node: one.began - middle for one in ranks if abs(one.began - middle) > MOST_SKEW_S}
    if off:
        told = _list(f"{node} {seconds:+.1f} s" for node, seconds in off.items())
        return [Check("clock", f"off the others': {told}; times in the logs do not line up", "warning")]
    apart = max(one.began for one in ranks) - min(one.began for one in ranks)
    return [Check("clock", f"{apart:.2f} s apart at most")]


def _same_versions(ranks: Sequence[Facts]) -> list[Check]:
    differing = {}
    for name in dict.fromkeys(name for one in ranks for name in one.versions):
        nodes_of: dict[str, list[str]] = {}
        for one in ranks:
            if name in one.versions and one.node not in nodes_of.setdefault(one.versions[name], []):
                nodes_of[one.versions[name]].append(one.node)
        if len(nodes_of) > 1:
            told = (f"{version} on {_list(nodes)}" for version, nodes in nodes_of.items())
            differing[name] = f"{name} is {' and '.join(told)}"
    if differing:
        # drivers of one cluster do differ, and work together
        is_harmless = differing.keys() == {"CUDA driver"}
        words = f"versions differ: {'; '.join(differing.values())}"
        words += "" if is_harmless else ". All nodes have to run the same: look at setup lines, modules, PATH"
        return [Check("versions", words, "warning" if is_harmless else "error")]
    same = ", ".join(f"{name} {version}" for name, version in ranks[0].versions.items())
    return [Check("versions", f"the same everywhere: {same}")]


def _nodes(ranks: Sequence[Facts], is_meant: Callable[[Facts], bool] = lambda one: True) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.node for one in ranks if is_meant(one)))


def _list(names: Iterable[str], *, most: int = 8) -> str:
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
