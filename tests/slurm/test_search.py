"""A search on a real SLURM: a task for each trial, which asks for its values when its turn comes."""

from __future__ import annotations

import pytest

from retrieval_train.rundir import read_json
from tests.launcher.conftest import Repo, wait_until
from tests.slurm.conftest import Slurm

pytest.importorskip("optuna")
pytestmark = pytest.mark.slurm
SWEEP = """\
base: climber.yaml
search: {count: %d, metric: dev/mMP@5, draws: {rate: {log: [1.0e-5, 1.0]}, depth: {int: [1, 4]}}}
"""
SUBMIT = ("launcher/submit.py", "--parallel", "2", "--sweep", "climb.yaml")


def test_trials_ask_tell_and_are_added_to_by_the_next_submit(quick_repo: Repo, cluster: Slurm) -> None:
    (quick_repo.path / "climber.yaml").write_text(
        "job: climber\nrun: {name: it, device: cpu, preflight: false}\nrate: 1\n"
    )
    here = quick_repo.path / "runs/.stages/climb"

    def trials() -> dict[str, list[str]]:
        """Ending -> folders."""
        found: dict[str, list[str]] = {}
        for file in sorted(here.glob("trial-*/trial.json")):
            found.setdefault(str(read_json(file)["ending"]), []).append(file.parent.name)
        return found

    for count, new in ((3, 3), (4, 1)):
        (quick_repo.path / "climb.yaml").write_text(SWEEP % count)
        ended = quick_repo.python(*SUBMIT)
        assert ended.code == 0, ended.err
        assert f"== trials: {new} new, 0 active, {count - new} over\n" in ended.err
        wait_until(lambda count=count: len(trials().get("done", [])) == count, timeout_s=120)  # type: ignore[misc]
        jobs = [read_json(folder / "ticket.json")["job_id"] for folder in sorted(here.glob("trial-*"))]
        wait_until(lambda jobs=jobs: not any(cluster.states(job) == ["RUNNING"] for job in jobs))  # type: ignore[misc]
    assert len({str(read_json(file)["values"]) for file in here.glob("trial-*/trial.json")}) == 4
    assert not list(here.glob("trial-*/error.txt"))
    over = quick_repo.python(*SUBMIT)
    assert over.code == 0 and "== trials: 0 new, 0 active, 4 over\n" in over.err, over.err
    assert "best so far: climb-" in over.err
