"""Where a run can go: a `Cluster` is a small file, `configs/cluster/<name>.yaml`; and the questions that we ask SLURM.

Every question has a time limit. `srun` on the PATH does not mean a live cluster, and the tools of a dead one may retry
for minutes.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from launcher.clusters.environment import Environment, Line
from launcher.starts.attempts import Requeue
from retrieval_train import config as configs
from retrieval_train.config import ConfigError

REPO = Path(__file__).resolve().parents[2]
_FOLDER = REPO / "configs" / "cluster"
_QUEUE = ("partition", "account", "qos", "mem_gb", "sbatch")
_FOR_EYES = ("SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_")
_NODES = ("cpus_per_node", "max_nodes")


class Cluster(Environment):
    """Defaults and limits of a place to run; the options of `submit` come before the defaults. None: as SLURM has it."""

    scheduler: Literal["local", "slurm", "allocation"]
    """local: processes on this machine; slurm: sbatch; allocation: srun on the nodes of the salloc that we stand in."""
    match: tuple[Line, ...] = ()
    """Where this file holds without --cluster: names of login hosts (`login*.lab.org`), or SLURM's ClusterName."""
    partition: Line | None = None
    """SLURM's partition."""
    account: Line | None = None
    """Who pays."""
    qos: Line | None = None
    """SLURM's quality of service."""
    gpu: Line | None = None
    """What a GPU is, for the estimate: a name that it knows, as h100-80, or a number of GB."""
    gpus_per_node: int | None = Field(default=None, ge=0)
    """GPUs of each node, and ranks where not told otherwise; None asks the machine or the partition."""
    cpus_per_node: int | None = Field(default=None, ge=1)
    """Cores of each node; None asks the partition."""
    max_nodes: int | None = Field(default=None, ge=1)
    """Of one run."""
    cpus_per_task: int | None = Field(default=None, ge=1)
    """Cores of each rank, its data workers included; None is a GPU's share of its node, or SLURM's default (often 1)."""
    mem_gb: float | None = Field(default=None, gt=0)
    """Memory that a run takes of each node."""
    time_min: int | None = Field(default=None, ge=1)
    """Time limit of one start; a run that is not done by then saves and is queued again."""
    max_time_min: int | None = Field(default=None, ge=1)
    """The longest time limit that may be asked for."""
    signal_delay_s: int = Field(default=120, ge=5)
    """How long before the time limit the ranks are told to save."""
    parallel: int = Field(default=16, ge=1)
    """Points of a sweep that run at once."""
    requeue: Requeue = Requeue()
    """How often a run is queued again after each kind of ending."""
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """Any other option of sbatch: `constraint: a100`; true for one without a value."""

    @model_validator(mode="after")
    def _only_what_is_read(self) -> Cluster:
        unread = {
            "slurm": (),
            "allocation": (*_QUEUE, "time_min", "max_time_min"),
            "local": (*_QUEUE, *_NODES, *Environment.model_fields),
        }[self.scheduler]
        if given := [name for name in unread if getattr(self, name)]:
            raise ValueError(
                f"{', '.join(given)}: for SLURM only; with scheduler: {self.scheduler} nothing would read it"
            )
        if self.time_min and self.max_time_min and self.time_min > self.max_time_min:
            raise ValueError(f"time_min: {self.time_min} is more than max_time_min, {self.max_time_min}")
        return self


class NoAnswer(Exception):
    """SLURM said no, or nothing in time; the text is its own last words where it had some, `said` all of them."""

    def __init__(self, words: str, said: str = "") -> None:
        super().__init__(words)
        self.said = said


class TooLate(NoAnswer):
    """It said nothing in time."""


def names() -> list[str]:
    """The clusters there are."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def load(name: str) -> Cluster:
    """The cluster of that name, or in that file. Raises ConfigError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else _FOLDER / f"{name}.yaml"
    if path.parent == _FOLDER and not path.is_file():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        known = f"there are: {', '.join(names())}, or a file.yaml"
        raise ConfigError("command line", [(f"--cluster {name}", f"no such cluster; {hint}{known}")])
    return configs.check(Cluster, configs.read(path), where=str(path))


def visible_gpus() -> tuple[str, ...]:
    """The GPUs of this machine as CUDA_VISIBLE_DEVICES names them, seen without importing torch."""
    seen = _gpus_of_the_machine()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not seen:
        return tuple(seen)
    valid = []
    for name in (part.strip() for part in chosen.split(",")):
        if name not in seen and not name.startswith(("GPU-", "MIG-")):
            break  # CUDA, too, ignores all that stands behind the first name that it does not know
        valid.append(name)
    return tuple(valid)


def _gpus_of_the_machine() -> list[str]:
    devices = list(Path("/dev").glob("nvidia[0-9]*"))
    if devices or shutil.which("nvidia-smi") is None:
        return [str(number) for number in range(len(devices))]
    try:
        return re.findall(r"^GPU (\d+):", ask(["nvidia-smi", "-L"]), flags=re.MULTILINE)
    except NoAnswer:  # the tool without a driver
        return []


# --- SLURM


def why_no_slurm(*, timeout_s: float = 10.0, patience_s: float = 15.0) -> str | None:
    """None where a SLURM answers, else the reason why there is none.

    Raises NoAnswer where there is one whose controller is silent, and asked again for `patience_s`: a run must not begin
    on a login node because a controller was busy.
    """
    if shutil.which("sbatch") is None:
        return "no sbatch on PATH"
    until = time.monotonic() + patience_s
    while True:
        try:
            said, silence = ask(["scontrol", "ping"], timeout_s=timeout_s), None
        except NoAnswer as error:
            said, silence = error.said, error
        controllers = re.findall(r"^Slurmctld\(.*", said, flags=re.MULTILINE)
        if any(one.endswith(" UP") for one in controllers):
            return None
        if not controllers and not isinstance(silence, TooLate):
            return f"sbatch is there, and knows no controller: {silence or said.strip()}"
        if time.monotonic() >= until:
            raise NoAnswer("; ".join(controllers) or str(silence))
        time.sleep(0.5)


@dataclass(frozen=True)
class Node:
    """What every node of a place has at least."""

    gpus: int
    cpus: int


def this_machine() -> Node:
    return Node(len(visible_gpus()), len(os.sched_getaffinity(0)))


def job_state(job_id: str) -> tuple[str, str] | None:
    """SLURM's words for the job's state and its reason (PENDING, Priority), or None when it has forgotten the job.

    Raises NoAnswer when SLURM cannot be asked.
    """
    try:
        answer = ask(["squeue", "-h", "-t", "all", "-j", job_id, "-o", "%T|%r"])
    except NoAnswer as error:
        if "Invalid job id" not in str(error):
            raise
        answer = ""
    state, _, reason = answer.strip().partition("|")
    return (state, "" if reason == "None" else reason) if state else None


def recorded_state(job_id: str) -> str:
    """The state of a job that the controller has forgotten, from accounting; empty where there is none."""
    with contextlib.suppress(NoAnswer):
        return ask(["sacct", "-X", "-n", "-P", "-j", job_id, "-o", "State"]).strip().partition("\n")[0]
    return ""


def seconds_of(local_time: str) -> float | None:
    """Since 1970, of a time as SLURM writes it; None where it does not say: Unknown, None, N/A."""
    try:
        return datetime.datetime.fromisoformat(local_time).timestamp()
    except ValueError:
        return None


def cancel(job_id: str) -> None:
    ask(["scancel", job_id], timeout_s=60)


def ask(command: Sequence[str], *, timeout_s: float = 20.0) -> str:
    """What the command prints. Raises NoAnswer when it fails or takes too long."""
    # what a shell has set for its user's eyes would leave jobs out (SQUEUE_PARTITION) or write times in another way
    env = {name: value for name, value in os.environ.items() if not name.startswith(_FOR_EYES)}
    try:
        process = subprocess.Popen(
            command,
            env=env | {"SLURM_TIME_FORMAT": "standard"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that what it started ends with it
        )
    except OSError as error:
        raise NoAnswer(f"{command[0]}: {error.strerror}") from error
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise TooLate(f"`{' '.join(command)}` took more than {timeout_s:g} s") from None
    if process.returncode:
        raise NoAnswer((err.strip() or out.strip()).rpartition("\n")[2] or f"{command[0]} failed", out + err)
    return out
