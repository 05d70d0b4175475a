"""What the waiting command shows where nobody sees a bar, and what it says of a run that has ended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.looks import watch
from launcher.ticket import LocalTicket, write
from retrieval_train.rundir import RunDir, write_json
from tests.launcher.runs import make_run


def test_lines_come_at_each_stage_and_each_tenth_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    lines = watch._Lines()
    for stage, total in (("embed", 40), ("search", 4)):
        for done in range(total + 1):
            lines.show({"stage": stage, "done": done, "total": total, "unit": "images", "note": ""})
    shown = capsys.readouterr().err.splitlines()
    assert shown[:3] == ["embed 0/40 images", "embed 4/40 images", "embed 8/40 images"]
    assert shown[-2:] == ["search 3/4 images", "search 4/4 images"]
    assert len(shown) == 11 + 5


def test_a_scheduler_that_is_silent_for_a_while_does_not_end_the_watching(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "run")
    run.set_state("running")

    class Moody(LocalTicket):
        def is_active(self) -> bool:
            if run.progress.exists():
                run.set_state("done")
                return False
            write_json(run.progress, {"stage": "train", "done": 1, "total": 2, "unit": "steps", "note": ""})
            raise ValueError("no answer")

    assert watch.follow(run, Moody(1, 1, "", "")) == "done"
    assert capsys.readouterr().err == "train 1/2 steps\n"


def test_the_log_of_an_earlier_start_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a-12345678", "failed")
    run.scheduler.mkdir(parents=True)
    run.log(0).write_text("an hour ago\n")
    os.utime(run.log(0), (1, 1))
    write(run, LocalTicket.of(os.getpid()))
    assert watch.log_of(run, 0) is None
    (run.scheduler / "17_0_log.err").write_text("cannot import\n")
    assert watch.log_of(run, 0) == run.scheduler / "17_0_log.err"


@pytest.mark.parametrize(
    ("error", "shows_log"),
    [
        ("data.order.pk: there are too few classes", False),
        ("backbone.model: no such model", False),
        ("TypeError: no number", True),
        ("rank 1 died of signal 9", True),
    ],
)
def test_only_what_no_user_can_act_on_is_told_with_the_log(tmp_path: Path, error: str, shows_log: bool) -> None:
    run = make_run(tmp_path, "a-12345678", "failed", error=f"{error}\n(rank 0; x)\n")
    run.logs.mkdir()
    run.log(0).write_text("Traceback of it\n")
    told = watch.failure(run)
    assert error in told and ("Traceback of it" in told) == shows_log


def test_what_a_run_made_is_listed_with_its_report_for_a_terminal(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a-12345678", "done")
    run.text.write_text("a table\n")
    assert watch.results(run) == f"\n  text     {run.path}/report.txt"
