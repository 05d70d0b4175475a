"""What a run's supervisor asks of SLURM, where SLURM ends the asking program with the job's other processes."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

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


EVENTS = {
    "no": ("", ()),
    "away for a while": ("n2|2026-11-23T10:00:20|DOWN*\n", ("n2",)),
    "two": ("n3|2026-11-23T10:00:20|DOWN\nn2|2026-11-23T10:00:20|DOWN*\n", ("n2", "n3")),
    "before this start": ("n2|2026-11-23T09:00:00|DOWN*\n", ()),
    "drained by its admin": ("n2|2026-11-23T10:00:20|DRAIN\n", ()),
}


@pytest.mark.parametrize(("events", "lost"), EVENTS.values(), ids=EVENTS)
def test_a_node_that_is_back_already_is_found_lost_by_the_accounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: str, lost: tuple[str, ...]
) -> None:
    """A node that had no boot meanwhile tells nothing itself."""
    begun = datetime.fromisoformat("2026-11-23T10:00:00").timestamp()
    program(tmp_path, "sacct", "printf 'NODE_FAIL\\nRUNNING\\n'")
    program(tmp_path, "scontrol", "echo 'NodeName=n2 State=ALLOCATED BootTime=2026-11-01T00:00:00'")
    program(tmp_path, "sacctmgr", f"printf '%s' '{events}'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert slurm_job.how_the_last_start_ended("7", ("n1", "n2", "n3"), begun) == ("NODE_FAIL", lost)
