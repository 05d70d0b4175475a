"""From a plan to a running job, by submitit: the only file that knows it. SLURM, or this machine.

A new scheduler is one more function `submit_...(plan, run) -> ticket` here.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import submitit
from submitit.local.local import LocalJob
from submitit.slurm.slurm import _make_sbatch_string

from launcher.clusters.cluster import NoAnswer, ask, visible_gpus
from launcher.plan import Plan
from launcher.starts import bad_nodes, tasks
from launcher.ticket import LocalTicket, SlurmTicket
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir


def submit(plan: Plan, run: RunDir, launch: Callable[[], object]) -> LocalTicket | SlurmTicket:
    """Have every rank call `launch`, now or in its turn. Raises ConfigError with sbatch's words when it refuses."""
    run.scheduler.mkdir(parents=True, exist_ok=True)
    tasks.write(run.scheduler, [run])
    if plan.scheduler == "slurm":
        name, root = run.path.name, run.path.parent
        return submit_array(plan, [launch], code=run.code, folder=run.scheduler, name=name, runs_root=root)[0]
    executor = _Local(plan, run) if plan.scheduler == "local" else _Allocation(plan, run)
    executor.submit(launch)
    return LocalTicket.of(executor.pid)


def submit_array(
    plan: Plan,
    launches: Sequence[Callable[[], object]],
    *,
    code: Path,
    folder: Path,
    name: str,
    runs_root: Path,
    parallel: int = 256,
    after: str = "",
) -> list[SlurmTicket]:
    """One job of SLURM with a task for each of `tasks.json` in `folder`, at most `parallel` at once.

    `folder` is submitit's, for this job alone; `after` a condition as sbatch's --dependency has them. Nodes that failed
    for runs of `runs_root` are left out. Raises ConfigError with sbatch's words when it refuses.
    """
    leave_out = _to_leave_out(plan, runs_root)
    executor = submitit.SlurmExecutor(folder=folder, python=_supervised(plan, folder))
    executor.update_parameters(**_slurm_parameters(plan, code, folder, name=name, after=after, leave_out=leave_out))
    executor.update_parameters(array_parallelism=parallel)
    try:
        with _without_sbatch_variables(), executor.batch():
            jobs = [executor.submit(launch) for launch in launches]
    except submitit.core.utils.FailedJobError as error:
        words = [("its words", line) for line in str(error).splitlines()]
        ours = [("left out", f"{', '.join(leave_out)}, which failed before; `status.py nodes` says why, and forgets")]
        raise ConfigError("sbatch refuses", words + (ours if leave_out else [])) from error
    return [SlurmTicket(job.job_id) for job in jobs]


@contextlib.contextmanager
def _without_sbatch_variables() -> Iterator[None]:
    """sbatch would take them before what its file says; those that are wishes of the user's are in the plan by now."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("SBATCH_")}
    try:
        yield
    finally:
        os.environ.update(hidden)


def rank_command(plan: Plan, run: RunDir) -> str:
    """What the batch step or, on this machine, each rank executes."""
    begin = shlex.quote(sys.executable) if plan.scheduler == "local" else _supervised(plan, run.scheduler)
    return f"{begin} -u -m submitit.core._submit {shlex.quote(str(run.scheduler))}"


def sbatch_text(plan: Plan, run: RunDir) -> str:
    """The file that sbatch gets, made without writing it."""
    leave_out = _to_leave_out(plan, run.path.parent)
    parameters = _slurm_parameters(plan, run.code, run.scheduler, name=run.path.name, leave_out=leave_out)
    text: str = _make_sbatch_string(command=rank_command(plan, run), folder=run.scheduler, **parameters)
    return text


def _to_leave_out(plan: Plan, runs_root: Path) -> tuple[str, ...]:
    """Nodes that failed and that SLURM still knows; none where the user named the nodes."""
    found = () if "nodelist" in plan.sbatch else bad_nodes.to_leave_out(runs_root)
    if not found:
        return ()
    with contextlib.suppress(NoAnswer):
        known = set(ask(["sinfo", "-h", "-N", "-o", "%N"]).split())
        found = tuple(node for node in found if node in known)
    return found


def _supervised(plan: Plan, folder: Path) -> str:
    """The beginning of a command line: up to the ranks' Python."""
    cpus = [f"--cpus-per-task={plan.cpus_per_task}"] if plan.cpus_per_task else []  # srun no longer inherits it (22.05)
    options = [f"--srun={option}" for option in (*cpus, *plan.srun)]
    if plan.scheduler == "allocation":
        gpus = [f"--gpus-per-node={plan.gpus_per_node}"] if plan.gpus_per_node else []
        # --ntasks too: srun would take salloc's -n, and then ignores --ntasks-per-node
        shape = [
            f"--nodes={plan.nodes}",
            f"--ntasks={plan.num_ranks}",
            f"--ntasks-per-node={plan.tasks_per_node}",
            *gpus,
        ]
        options += ["--allocation", *(f"--srun={option}" for option in shape)]
    supervise = [sys.executable, "-u", "-m", "launcher.starts.supervise", str(folder), *options]
    return shlex.join([*supervise, "--", *(plan.python or (sys.executable,))])


def _slurm_parameters(
    plan: Plan, code: Path, folder: Path, *, name: str, after: str = "", leave_out: Sequence[str] = ()
) -> dict[str, Any]:
    path = shlex.quote(str(code))
    theirs = dict(plan.sbatch)
    if after:  # a comma is SLURM's `and`
        theirs["dependency"] = ",".join([after, *([str(theirs["dependency"])] if "dependency" in theirs else [])])
        theirs["kill-on-invalid-dep"] = "yes"
    if leave_out:
        theirs["exclude"] = ",".join([*([str(theirs["exclude"])] if "exclude" in theirs else []), *leave_out])
    # Python starts in the run's own code, so that this comes before whatever lies where the user stood
    ours = {"chdir": str(code), "requeue": True, "output": str(folder / "%j_batch.log")}
    return {
        "job_name": name,
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
        "stderr_to_stdout": True,
        "additional_parameters": {**ours, **theirs},
        "setup": [*plan.setup, f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}"],
        "use_srun": False,  # supervise.py calls it
    }


class _Local(submitit.LocalExecutor):  # type: ignore[misc]
    """submitit's local executor with our controller, which notices a rank's death, in a session of its own."""

    def __init__(self, plan: Plan, run: RunDir) -> None:
        super().__init__(folder=run.scheduler)
        self._plan, self._run = plan, run
        self.pid = 0
        self.update_parameters(tasks_per_node=plan.tasks_per_node, timeout_min=plan.time_min or 0)

    def _submit_command(self, command: str) -> Any:
        limit = ["--limit-s", str(60 * self._plan.time_min)] if self._plan.time_min else []
        delay = ["--signal-delay-s", str(self._plan.signal_delay_s)]
        start = [
            sys.executable,
            "-m",
            "launcher.starts.controller",
            str(self._run.path),
            "--ranks",
            str(self._num_tasks()),
        ]
        self._start([*start, *limit, *delay, "--", *shlex.split(command)], _local_environment(self._plan, self._run))
        return self._job(str(self.pid))

    def _start(self, command: Sequence[str], env: dict[str, str]) -> None:
        with (self._run.scheduler / "controller.log").open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=self._run.code,  # see _slurm_parameters
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid, self._process = process.pid, process

    def _job(self, job_id: str) -> Any:
        """submitit calls the pickled `Launch` after it."""
        return LocalJob(folder=self.folder, job_id=job_id, process=self._process, tasks=range(self._num_tasks()))


class _Allocation(_Local):
    """By srun, at once, on nodes that a job of the user's (salloc) has: the supervisor is a process of this machine."""

    def _submit_command(self, command: str) -> Any:
        path = [str(self._run.code), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(path)}
        lines = [*self._plan.setup, f"exec {rank_command(self._plan, self._run)}"]
        self._start(["bash", "-c", "\n".join(lines)], env)
        return self._job(os.environ["SLURM_JOB_ID"])


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
    number: int
    """Another one for each job: a pid, SLURM's number."""
    restarts: int
    """Starts of this job before this one."""
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
    if not is_local:  # submitit reads the job's nodes; in an allocation, srun may have started us on some of them
        os.environ["SLURM_JOB_NODELIST"] = os.environ["SLURM_STEP_NODELIST"]
        os.environ["SLURM_JOB_NUM_NODES"] = os.environ["SLURM_STEP_NUM_NODES"]
    cpus = os.environ.get("LAUNCHER_CPUS_PER_TASK" if is_local else "SLURM_CPUS_PER_TASK")
    return Placement(
        scheduler="local" if is_local else "slurm",
        number=int(os.environ["SUBMITIT_LOCAL_JOB_ID" if is_local else "SLURM_JOB_ID"]),  # of an array's task its own
        # the second run of an allocation is another step of the same job
        restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")) + int(os.environ.get("SLURM_STEP_ID", "0")),
        rank=here.global_rank,
        size=here.num_tasks,
        local_rank=here.local_rank,
        local_size=here.num_tasks // here.num_nodes,
        first_host="127.0.0.1" if is_local else here.hostnames[0],
        port=int(os.environ["MASTER_PORT"]) if is_local else None,
        cpus_per_task=int(cpus) if cpus else None,
    )
