"""From a plan to a running job, by submitit: the only file that knows it. SLURM, or this machine.

A new scheduler is one more function `submit_...(plan, run) -> ticket` here.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import submitit
from submitit.local.local import LocalJob
from submitit.slurm.slurm import _make_sbatch_string

from launcher.cluster import visible_gpus
from launcher.plan import Plan
from launcher.ticket import LocalTicket, SlurmTicket
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir


def submit(plan: Plan, run: RunDir, launch: Callable[[], object]) -> LocalTicket | SlurmTicket:
    """Have every rank call `launch`, now or in its turn. Raises ConfigError with sbatch's words when it refuses."""
    run.scheduler.mkdir(parents=True, exist_ok=True)
    if plan.scheduler == "local":
        job = _Local(plan, run).submit(launch)
        return LocalTicket.of(int(job.job_id))
    executor = submitit.SlurmExecutor(folder=run.scheduler, python=shlex.quote(sys.executable))
    executor.update_parameters(**_slurm_parameters(plan, run))
    try:
        return SlurmTicket(executor.submit(launch).job_id)
    except submitit.core.utils.FailedJobError as error:
        raise ConfigError("sbatch refuses", [("its words", line) for line in str(error).splitlines()]) from error


def rank_command(run: RunDir) -> str:
    """What each rank executes."""
    return f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(run.scheduler))}"


def sbatch_text(plan: Plan, run: RunDir) -> str:
    """The file that sbatch gets, made without writing it."""
    text: str = _make_sbatch_string(command=rank_command(run), folder=run.scheduler, **_slurm_parameters(plan, run))
    return text


def _slurm_parameters(plan: Plan, run: RunDir) -> dict[str, Any]:
    cpus = [f"--cpus-per-task={plan.cpus_per_task}"] if plan.cpus_per_task else []  # srun no longer inherits it (22.05)
    path = shlex.quote(str(run.code))
    return {
        "job_name": run.path.name,
        "nodes": plan.nodes,
        "ntasks_per_node": plan.tasks_per_node,
        "gpus_per_node": plan.gpus_per_node or None,
        "cpus_per_task": plan.cpus_per_task,
        "mem": f"{round(plan.mem_gb * 1024)}M" if plan.mem_gb else None,
        "time": plan.time_min,
        "signal_delay_s": plan.signal_delay_s,
        "partition": plan.partition,
        "account": plan.account,
        "qos": plan.qos,
        "wckey": None,  # submitit's own, which clusters that track such keys do not know
        # Python starts in the run's own code, so that this comes before whatever lies where the user stood
        "additional_parameters": {"chdir": str(run.code), "requeue": True, **plan.sbatch},
        "setup": [*plan.setup, f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}"],
        "srun_args": ["--kill-on-bad-exit=1", *cpus],
    }


class _Local(submitit.LocalExecutor):  # type: ignore[misc]
    """submitit's local executor with our controller, which notices a rank's death, in a session of its own."""

    def __init__(self, plan: Plan, run: RunDir) -> None:
        super().__init__(folder=run.scheduler)
        self._plan, self._run = plan, run
        self.update_parameters(tasks_per_node=plan.tasks_per_node, timeout_min=plan.time_min or 0)

    def _submit_command(self, command: str) -> Any:
        limit = ["--limit-s", str(60 * self._plan.time_min)] if self._plan.time_min else []
        delay = ["--signal-delay-s", str(self._plan.signal_delay_s)]
        start = [sys.executable, "-m", "launcher.controller", str(self._run.path), "--ranks", str(self._num_tasks())]
        with (self._run.scheduler / "controller.log").open("ab") as output:
            process = subprocess.Popen(
                [*start, *limit, *delay, "--", *shlex.split(command)],
                cwd=self._run.code,  # see _slurm_parameters
                env=_local_environment(self._plan, self._run),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return LocalJob(folder=self.folder, job_id=str(process.pid), process=process, tasks=range(self._num_tasks()))


def _local_environment(plan: Plan, run: RunDir) -> dict[str, str]:
    path = [str(run.code), *filter(None, [os.environ.get("PYTHONPATH")])]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join(path),
        "CUDA_VISIBLE_DEVICES": ",".join(visible_gpus()[: plan.gpus_per_node]),
        "MASTER_PORT": str(port),
        "LAUNCHER_CPUS_PER_TASK": str(plan.cpus_per_task or ""),
    }


# --- on the node


@dataclass(frozen=True)
class Placement:
    """Which rank this process is, and of what."""

    scheduler: Literal["local", "slurm"]
    job_id: str
    restarts: int
    rank: int
    size: int
    local_rank: int
    local_size: int
    first_host: str
    port: int | None
    """The rendezvous port when submit chose one."""
    cpus_per_task: int | None


def placement() -> Placement:
    """This process's place, from the variables of SLURM or of our controller."""
    here = submitit.JobEnvironment()
    is_local = here.name() == "local"
    cpus = os.environ.get("LAUNCHER_CPUS_PER_TASK" if is_local else "SLURM_CPUS_PER_TASK")
    return Placement(
        scheduler="local" if is_local else "slurm",
        job_id=here.job_id,
        restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        rank=here.global_rank,
        size=here.num_tasks,
        local_rank=here.local_rank,
        local_size=here.num_tasks // here.num_nodes,
        first_host="127.0.0.1" if is_local else here.hostnames[0],
        port=int(os.environ["MASTER_PORT"]) if is_local else None,
        cpus_per_task=int(cpus) if cpus else None,
    )
