"""A pipeline on a real SLURM: one submit, each stage behind those that it needs."""

from __future__ import annotations

import pytest

from launcher.starts import attempts
from tests.launcher.conftest import Repo, wait_until
from tests.slurm.conftest import Slurm

pytestmark = pytest.mark.slurm
PIPELINE = """\
job: pipeline
stages:
  first: {config: patient.yaml, set: {run.name: one}}
  second: {config: piped_maker.yaml, needs: [first], set: {run.name: two, fails_with: no-second}}
  third: {config: piped_judge.yaml, set: {run.name: three, model: "{second}/export"}}
  aside: {config: patient.yaml, needs: [first], set: {run.name: beside}}
"""
SUBMIT = ("launcher/submit.py", "--exclude", "n4", "config=pipe.yaml")


@pytest.fixture
def piped(quick_repo: Repo) -> Repo:
    said = "run: {name: it, device: cpu, preflight: false}\n"
    (quick_repo.path / "piped_maker.yaml").write_text(f"job: maker\n{said}head: {{name: margin, margin: 0.2}}\n")
    (quick_repo.path / "piped_judge.yaml").write_text(f"job: judge\n{said}model: nowhere\n")
    (quick_repo.path / "pipe.yaml").write_text(PIPELINE)
    return quick_repo


def stages(repo: Repo) -> dict[str, str]:
    """Stage -> the rest of its line."""
    told = repo.status("pipeline", "pipe.yaml")
    assert told.code == 0, told.err
    return {line.split()[0]: " ".join(line.split()[1:]) for line in told.out.splitlines()[1:]}


def test_a_failed_stage_cancels_what_depends_on_it_says_so_and_the_same_command_goes_on(
    piped: Repo, cluster: Slurm
) -> None:
    flag = piped.path / "no-second"
    flag.touch()
    first = piped.python(*SUBMIT)
    assert first.code == 0, first.err
    shown = {line.split()[0]: " ".join(line.split()[1:]) for line in first.out.splitlines() if line.strip()}
    assert shown["second"].startswith("waits for first")
    assert shown["third"].startswith("waits for second")

    wait_until(lambda: stages(piped)["third"].startswith("not begun: second failed"), timeout_s=90)
    told = stages(piped)
    assert told["first"].startswith("done")
    assert told["second"].startswith("failed first runs/two-")
    assert told["second"].endswith("there is no such margin")
    wait_until(lambda: stages(piped)["aside"].startswith("done"), timeout_s=60)
    wait_until(lambda: cluster.tell("squeue", "-h", "-u", "root", "-t", "PD,R", "-o", "%j").count("pipe-") == 0)

    flag.unlink()
    again = piped.python(*SUBMIT)
    assert again.code == 0, again.err
    wait_until(lambda: stages(piped)["third"].startswith("done"), timeout_s=90)
    assert all(line.startswith("done") for line in stages(piped).values())
    runs = [piped.run(name) for name in ("one", "two", "three", "beside")]
    assert [len(attempts.read(run)) for run in runs] == [1, 2, 1, 1]
    one, two, three, _ = runs
    assert attempts.read(one)[-1].ended < attempts.read(two)[0].begun  # type: ignore[operator]
    assert attempts.read(two)[-1].ended < attempts.read(three)[0].begun  # type: ignore[operator]
