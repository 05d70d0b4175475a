"""A real SLURM on this machine (`slurm-cluster`): two nodes with namespaces, addresses and daemons of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.conftest import Repo, copy_of_the_repo

_CLUSTER = Path(__file__).with_name("slurm-cluster")
# not the script's defaults: somebody may have a cluster of their own up
_OURS = {"SLURM_CLUSTER_STATE": "/tmp/slurm-retrieval", "SLURM_CLUSTER_NET": "10.213.78", "SLURM_CLUSTER_PORT": "17817"}


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """The environment of a client; asked only while the cluster is up. One that was up before stays up."""
    if os.geteuid() != 0:
        pytest.skip("a SLURM with its own network needs root")
    env = _OURS | dict(os.environ)
    state = Path(env["SLURM_CLUSTER_STATE"])
    was_up = (state / "shape").exists()
    subprocess.run([_CLUSTER, "up", "2"], env=env, check=True)
    yield env | {"SLURM_CONF": str(state / "etc/slurm.conf")}
    if not was_up:
        subprocess.run([_CLUSTER, "down"], env=env, check=True)


@pytest.fixture(scope="session")
def repo(slurm: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """A clone with the job `noop`, in a folder whose name sbatch and shells could trip over."""
    path = copy_of_the_repo(tmp_path_factory.mktemp("slurm") / "it's a repo", quick=False)
    return Repo(path, {name: value for name, value in slurm.items() if name != "PYTHONPATH"} | {"COLUMNS": "200"})
