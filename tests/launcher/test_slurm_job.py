"""What a run's supervisor asks of SLURM, where SLURM ends the asking program with the job's other processes."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from launcher.clusters.cluster import job_state
from launcher.starts import slurm_job
from tests.launcher.conftest import program

CASES = {
    "taken at once": (["RUNNING"], "exit 0", "", 1),
    "taken, and scontrol ended by it": (["RUNNING", "PENDING"], "kill -TERM $$", "", 1),
    "not taken at first": (["RUNNING", "RUNNING", "PENDING"], "exit 1", "", 2),
    "on its way": (["RUNNING", "COMPLETING", "PENDING"], "exit 1", "", 1),
    "waits already": (["PENDING"], "exit 1", "", 0),
    "cancelled": (["CANCELLED"], "exit 0", "CANCELLED", 0),
    "cancelled while it asked": (["RUNNING", "CANCELLED"], "exit 1", "CANCELLED", 1),
    "forgotten": ([""], "exit 0", "gone", 0),
}


@pytest.mark.parametrize(("states", "scontrol", "instead", "asked"), CASES.values(), ids=CASES)
def test_a_job_that_waits_is_queued_again_and_one_that_was_cancelled_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: list[str], scontrol: str, instead: str, asked: int
) -> None:
    """`states` are squeue's answers in turn, `scontrol` is how a requeue ends."""
    (tmp_path / "states").write_text("".join(f"{state}|None\n" for state in states))
    program(tmp_path, "squeue", f"cd '{tmp_path}'; head -n 1 states; sed -i 1d states")
    program(tmp_path, "scontrol", f"echo asked >> '{tmp_path}/asked'; {scontrol}")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert slurm_job.requeue("7") == instead
    told = tmp_path / "asked"
    assert (len(told.read_text().splitlines()) if told.exists() else 0) == asked


ENDED = "NODE_FAIL|2026-11-23T10:00:20\nRUNNING|Unknown\n"
AWAY = "NodeName=n3 State=DOWN* BootTime=2026-11-01T00:00:00\n"
BOOTED = "NodeName=n3 State=ALLOCATED BootTime=2026-11-23T12:00:00\n"
ACCOUNTS = {
    "away for a while": (ENDED, "n2|2026-11-23T10:00:20|DOWN*\n", AWAY, ("n2",)),
    "two": (ENDED, "n3|2026-11-23T10:00:20|DOWN\nn2|2026-11-23T10:00:21|DOWN*\n", "", ("n2", "n3")),
    "before this start": (ENDED, "n2|2026-11-23T09:00:00|DOWN*\n", "", ()),
    "long after it": (ENDED, "n2|2026-11-23T12:00:00|DOWN*\n", "", ()),
    "drained by its admin": (ENDED, "n2|2026-11-23T10:00:20|DRAIN\n", "", ()),
    "preempted, and a node booted since": ("PREEMPTED|2026-11-23T10:00:20\n", "", BOOTED, ()),
    "lost, and no events": (ENDED, "", BOOTED, ("n3",)),
    "no accounts": ("", "", AWAY + BOOTED, ("n3",)),
}


@pytest.mark.parametrize(("sacct", "events", "nodes", "lost"), ACCOUNTS.values(), ids=ACCOUNTS)
def test_the_nodes_that_went_away_while_the_start_ran_are_lost_wherever_they_are_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sacct: str, events: str, nodes: str, lost: tuple[str, ...]
) -> None:
    begun = datetime.fromisoformat("2026-11-23T10:00:00").timestamp()
    for name, text in {"sacct": sacct, "sacctmgr": events, "scontrol": nodes}.items():
        (tmp_path / f"{name}.out").write_text(text)
        program(tmp_path, name, f"exec cat '{tmp_path}/{name}.out'" if text else "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    for is_recent in (True, False):
        end = slurm_job.end_of_the_start_before("7", ("n1", "n2", "n3"), begun, is_recent=is_recent)
        assert end.state == sacct.partition("|")[0]
        assert end.lost == (lost if is_recent or events else ())


def test_what_a_shell_sets_for_its_users_eyes_hides_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "squeue", 'test -z "$SQUEUE_PARTITION" && echo "RUNNING|$SLURM_TIME_FORMAT"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    assert job_state("7") == ("RUNNING", "standard")
