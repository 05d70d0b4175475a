"""Logs that are read, merged and followed."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from pathlib import Path

import pytest

from launcher import status
from launcher.looks import logs
from launcher.looks.logs import Tail
from launcher.starts import attempts
from launcher.starts.attempts import Attempt
from retrieval_train.rundir import RunDir
from tests.launcher.runs import make_run, worked_on


def record(at: float, message: str) -> str:
    return json.dumps({"time": at, "level": "INFO", "name": "jobs", "message": message}) + "\n"


def test_a_rank_is_shown_and_the_ranks_there_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "a-12345678", "failed")
    run.logs.mkdir()
    for rank in (0, 2, 10):
        run.log(rank).write_text("first\nsecond\nno end")
    root = ["--runs-root", str(tmp_path)]
    assert status.main(["logs", "a-12345678", *root]) == 0
    assert capsys.readouterr().out == "first\nsecond\nno end\n"
    assert status.main(["logs", "a-12345678", "-n", "2", *root]) == 0
    assert capsys.readouterr().out == "second\nno end\n"
    assert status.main(["logs", str(run.path), "--rank", "5"]) == 2
    assert "has no log of rank 5 (failed); there are: 0, 2, 10" in capsys.readouterr().err


def test_all_ranks_are_merged_by_time_with_the_node_that_each_had_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, "a-12345678", "done", tasks_per_node=2)
    attempts.write(run, Attempt(0, "7", ("n1", "n2"), 1000.0, 0))
    attempts.write(run, Attempt(1, "7", ("n3", "n2"), 5000.0, 0))
    run.logs.mkdir()
    for rank in range(4):
        lines = [record(at + rank * 0.1, f"{at} of {rank}") for at in (1001, 2000, 5001)]
        run.log(rank).with_suffix(".jsonl").write_text("".join(lines))
    assert status.main(["logs", str(run.path), "--all"]) == 0
    told = capsys.readouterr().out.splitlines()
    nodes = {1001: "n1 n1 n2 n2", 2000: "n1 n1 n2 n2", 5001: "n3 n3 n2 n2"}
    wanted = [
        (f"[{rank}@{names.split()[rank]}]", f"{at} of {rank}") for at, names in nodes.items() for rank in range(4)
    ]
    assert [(line.split()[0], line.partition("INFO    ")[2]) for line in told] == wanted


def test_since_keeps_a_traceback_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "a-12345678", "failed")
    run.logs.mkdir()
    old, new = "2026-01-01 10:00:00,123 INFO old\nof old\n", "2026-01-01 11:00:00,123 ERROR new\nTraceback\n"
    run.log(0).write_text(old + new)
    assert status.main(["logs", str(run.path), "--since", "2026-01-01T10:30"]) == 0
    assert capsys.readouterr().out == new
    assert logs.moment("2h") == pytest.approx(time.time() - 7200, abs=5)
    assert time.strftime("%H:%M:%S", time.localtime(logs.moment("8:30"))) == "08:30:00"


@pytest.mark.parametrize("seed", range(5))
def test_a_tail_gives_every_line_once_whatever_the_pieces_in_which_it_is_written(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    path, wanted, seen = tmp_path / "log", [], []
    tail = Tail(path)
    for start in range(3):  # each another file of the same name
        lines = [f"start {start} line {number} ü" for number in range(draw.randrange(1, 20))]
        data = "".join(f"{line}\n" for line in lines).encode()
        path.with_name("new").touch()
        os.replace(path.with_name("new"), path)
        while data:
            size = draw.randrange(1, 40)
            with path.open("ab") as file:
                file.write(data[:size])
            data = data[size:]
            if draw.random() < 0.5 or not data:
                seen += tail.new()
        wanted += lines
    assert seen == wanted
    path.write_text("cut\nno end")
    assert (tail.new(), tail.new(is_over=True)) == (["cut"], ["no end"])


def test_following_goes_on_over_a_new_start_and_ends_with_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(make_run(tmp_path, "a-12345678", "running").path)
    with worked_on(run) as [child]:

        def end() -> None:
            with run.log(0).open("a") as file:
                file.write("last words")
            child.kill()
            child.wait()

        run.log(0).write_text("first start\n")
        threading.Timer(0.7, run.log(0).write_text, ["2nd start\n"]).start()  # begun anew, and shorter
        threading.Timer(1.5, end).start()
        assert logs.show(run, logs.of_rank(run, 0), follow=True)
    assert capsys.readouterr().out == "first start\n2nd start\nlast words\n"


def test_the_batch_log_is_the_newest_of_those_above_the_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, "a-12345678", "done")
    run.scheduler.mkdir(parents=True)
    for name, days in {"7_batch.log": 2, "8_batch.log": 1, "8_0_log.out": 0, "supervisor.log": 0}.items():
        (run.scheduler / name).write_text(name + "\n")
        os.utime(run.scheduler / name, (time.time() - days * 86400,) * 2)
    assert status.main(["logs", str(run.path), "--batch"]) == 0
    assert capsys.readouterr().out == "8_batch.log\n"
