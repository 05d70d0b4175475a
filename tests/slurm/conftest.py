"""A real SLURM on this machine (`slurm-cluster`): four nodes with namespaces, addresses and daemons of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.starts import attempts
from launcher.starts.attempts import Attempt
from retrieval_train.rundir import RunDir, read_json
from tests.launcher.conftest import Ended, Repo, copy_of_the_repo, wait_until

NODES = ("n1", "n2", "n3", "n4")
_CLUSTER = Path(__file__).with_name("slurm-cluster")
_EXTRA = (Path(__file__).parent / "extra_jobs", Path(__file__).parents[1] / "launcher/extra_jobs")
# not the script's defaults: somebody may have a cluster of their own up
_OURS = {"SLURM_CLUSTER_STATE": "/tmp/slurm-retrieval", "SLURM_CLUSTER_NET": "10.213.78", "SLURM_CLUSTER_PORT": "17817"}
_PATIENT = "job: patient\nrun: {name: it, device: cpu, preflight: false}\n"


@dataclass(frozen=True)
class Slurm:
    """The cluster, and what a test does to it."""

    env: dict[str, str]
    """Of a client."""

    def tell(self, *command: str) -> str:
        told = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        assert told.returncode == 0, told.stderr
        return told.stdout

    def crash(self, node: str) -> None:
        """Cut its power."""
        subprocess.run([_CLUSTER, "crash", node], env=self.env, check=True)

    def mend(self) -> None:
        """All nodes are there, and take jobs."""
        for node in self.tell("sinfo", "-h", "-N", "-p", "main", "-t", "drain,drng", "-o", "%N").split():
            self.tell("scontrol", "update", f"NodeName={node}", "State=RESUME")
        subprocess.run([_CLUSTER, "up", str(len(NODES))], env=self.env, check=True)

    def preempt(self, *nodes: str, seconds: float) -> str:
        """Somebody more important needs the nodes; their job."""
        where = ("-p", "high", "--exclusive", "-N", str(len(nodes)), "-w", ",".join(nodes), "-o", "/dev/null")
        return self.tell("sbatch", "--parsable", *where, "--wrap", f"sleep {seconds}").strip()

    def states(self, job_id: str) -> list[str]:
        """SLURM's words for all tasks of the job."""
        return self.tell("squeue", "-h", "-r", "-t", "all", "-j", job_id, "-o", "%T").split()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Slurm]:
    """Asked only while it is up. One that was up before stays up."""
    if os.geteuid() != 0:
        pytest.skip("a SLURM with its own network needs root")
    env = _OURS | dict(os.environ)
    state = Path(env["SLURM_CLUSTER_STATE"])
    was_up = (state / "shape").exists()
    subprocess.run([_CLUSTER, "up", str(len(NODES))], env=env, check=True)
    env = {name: value for name, value in env.items() if name != "PYTHONPATH"}
    found = Slurm(env | {"SLURM_CONF": str(state / "etc/slurm.conf"), "COLUMNS": "200"})
    found.mend()
    yield found
    if not was_up:
        subprocess.run([_CLUSTER, "down"], env=env, check=True)


@pytest.fixture(scope="session")
def slurm(cluster: Slurm) -> dict[str, str]:
    """The environment of a client."""
    return cluster.env


@pytest.fixture(scope="session")
def repo(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """A clone with the job `noop`, in a folder whose name sbatch and shells could trip over."""
    return Repo(copy_of_the_repo(tmp_path_factory.mktemp("slurm") / "it's a repo", quick=False), cluster.env)


@pytest.fixture(scope="session")
def quick_repo(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """A clone whose ranks meet over files instead of torch, with all jobs that end as a test wants."""
    path = copy_of_the_repo(tmp_path_factory.mktemp("quick") / "it's a repo", quick=True)
    for folder in _EXTRA:
        for file in folder.glob("*.py"):
            shutil.copy(file, path / "jobs")
    (path / "patient.yaml").write_text(_PATIENT)
    return Repo(path, cluster.env | {"PYTHONPATH": str(path / "quick")})


@dataclass(frozen=True)
class Patient:
    """Runs of the job `patient`, which end when they are told."""

    repo: Repo
    cluster: Slurm

    def submit(self, name: str, *args: str, until: bool = True) -> RunDir:
        ended = self.again(name, *args, until=until)
        assert ended.code == 0, ended.err
        return self.repo.run(name)

    def again(self, name: str, *args: str, until: bool = True) -> Ended:
        values = (f"run.name={name}", *([f"until=end-{name}"] if until else []))
        return self.repo.python("launcher/submit.py", *args, "config=patient.yaml", *values)

    def end(self, name: str) -> None:
        """Its ranks go on to their end."""
        (self.repo.path / f"end-{name}").touch()

    def wait_for_start(self, run: RunDir, number: int, *, rank: int = 0, timeout_s: float = 90) -> None:
        wait_until(lambda: (run.path / f"starts/{rank}/{number}.json").exists(), timeout_s=timeout_s)


@pytest.fixture
def patient(quick_repo: Repo, cluster: Slurm) -> Patient:
    return Patient(quick_repo, cluster)


def job_of(run: RunDir) -> str:
    return str(read_json(run.ticket)["job_id"])


def wait_for_ranks(cluster: Slurm, run: RunDir) -> None:
    """Until srun has a step, whose ranks a signal reaches."""
    job = job_of(run)
    wait_until(lambda: f"{job}.0" in cluster.tell("squeue", "-h", "-s", "-j", job, "-o", "%i").split(), timeout_s=60)


def kinds(run: RunDir) -> list[tuple[str | None, bool]]:
    """How each start ended, and whether the run was queued again."""
    return [(attempt.kind, attempt.queued_again) for attempt in attempts.read(run)]


def wait_for_end(run: RunDir, *, starts: int, timeout_s: float = 90) -> list[Attempt]:
    """The starts, once there are so many and the last has ended."""

    def has_ended() -> bool:
        known = attempts.read(run)
        is_last = len(known) >= starts and known[-1].kind is not None and not known[-1].queued_again
        # the supervisor's last words come a moment later
        return is_last and (run.state == "done" or (run.state in ("failed", "preempted") and run.error.exists()))

    try:
        wait_until(has_ended, timeout_s=timeout_s)
    except AssertionError as error:
        told = "\n".join(path.read_text() for path in sorted(run.scheduler.glob("*.log")))
        raise AssertionError(f"{run.state}; {attempts.read(run)}\n{told[-3000:]}") from error
    return attempts.read(run)
