"""The benchmark, small: everybody is measured and compared; how fast they are is nobody's concern here."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import benchmark, job
from jobs.peers import outcome, tables
from jobs.peers.demand import MOST_WAIT, Demand, cores_per_gpu
from jobs.peers.outcome import BARE, MOSAICML, OPEN_CLIP, SUITE, Outcome, Race
from jobs.peers.race import Entry, Rates, started, take_turns, usable_cores
from jobs.peers.task import Task
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir, read_json
from retrieval_train.world import Alone
from tests.shards.conftest import picture

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pins and stops processes")
TINY = {"images": 64, "batch": 8, "image_px": 32, "short_px": 48, "workers": [1], "rounds": 1, "turn_s": 0.1}


def config_of(**values: object) -> benchmark.Config:
    return job.check({"job": "benchmark", "run": {"name": "it"}, **values}, where="a test")  # type: ignore[return-value]


def test_everybody_has_a_figure_or_a_reason(tmp_path: Path) -> None:
    rates = benchmark.run(config_of(**TINY), RunDir(tmp_path), Alone())
    report = read_json(tmp_path / "report.json")
    assert list(rates) == list(report["metrics"]) == ["full size, 1 worker", "48 px, 1 worker"]
    titles = {entry.title for entry in benchmark.entries_of(config_of(**TINY))}
    for figures in report["metrics"].values():
        assert set(figures) | set(report["absent"]) == titles
        assert min(figures.values()) > 0
    if importlib.util.find_spec("streaming") is None:
        assert report["absent"] == {MOSAICML: "not installed: pip install mosaicml-streaming"}
    assert [opened["step"] for opened in report["opening"]] == [0, outcome.RESUMED]
    assert {len(opened["seconds"]) for opened in report["opening"]} == {2}
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "report.txt"))
    assert all(title in page and title in text for title in titles)
    assert not (tmp_path / "images").exists()


def test_a_contestant_stands_still_between_its_turns_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "files/a").mkdir(parents=True)
    for number in range(16):
        (tmp_path / f"files/a/{number}.jpg").write_bytes(picture(number))
    task = Task(shards_root="", mixture={}, files=str(tmp_path / "files"), image_px=16, batch=4, cores=usable_cores(1))
    with started([Entry("imagefolder", "it")], tmp_path) as (contestants, absent):
        assert not absent
        rates, failed = take_turns(contestants, {"imagefolder": task}, rounds=3, turn_s=0.05, shown=lambda done: None)
        assert (failed, len(rates["it"].per_s)) == ({}, 3)
        contestants[0].ask(do="open", task={**vars(task), "data": {}})
        family, until = members(contestants[0].group), time.monotonic() + 5
        while {state for _, state, _ in family} != {"T"} and time.monotonic() < until:
            time.sleep(0.01)  # the signal takes a moment where the machine is busy
            family = members(contestants[0].group)
        assert len(family) == 2  # a worker, too
        assert {state for _, state, _ in family} == {"T"}
        assert {tuple(cores) for _, _, cores in family} == {usable_cores(1)}
    assert members(contestants[0].group) == []


def members(group: int) -> list[tuple[int, str, list[int]]]:
    """(process, state, cores) of a process group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group:
                found.append((int(folder.name), state, sorted(os.sched_getaffinity(int(folder.name)))))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_who_cannot_do_it_is_left_out_with_the_reason(tmp_path: Path) -> None:
    task = Task(shards_root="", mixture={}, files=str(tmp_path / "nowhere"))
    entries = [Entry("imagefolder", "no files"), Entry("nobody", "no such file", "a-package")]
    with started(entries, tmp_path) as (contestants, absent):
        assert absent == {"no such file": "not installed: pip install a-package"}
        rates, failed = take_turns(contestants, {"imagefolder": task}, rounds=1, turn_s=0.05, shown=lambda done: None)
    assert (rates, list(failed)) == ({}, ["no files"])
    assert "FileNotFoundError" in failed["no files"] and str(tmp_path / "imagefolder.log") in failed["no files"]


def rates_of(*per_s: float) -> Rates:
    return Rates(0.1, per_s, per_s)


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    """The machine is half as fast in the second round, for both."""
    ours, theirs = rates_of(100, 50, 101), rates_of(25, 12.5, 25)
    assert ours.times(theirs) == ours.times_by_cpu(theirs) == 4
    assert rates_of(100, 20, 100).images_per_s == 100


@pytest.mark.parametrize(
    ("is_full_size", "workers", "rate", "met"),
    [
        (True, 1, 350.0, {OPEN_CLIP: True, MOSAICML: True, BARE: False}),
        (True, 1, 349.0, {OPEN_CLIP: False, MOSAICML: True, BARE: False}),
        (False, 1, 300.0, {OPEN_CLIP: True, MOSAICML: True, BARE: False}),
        (False, 1, 360.0, {OPEN_CLIP: True, MOSAICML: True, BARE: True}),
        (True, 2, 249.0, {OPEN_CLIP: False}),
        (False, 2, 250.0, {OPEN_CLIP: True}),
    ],
)
def test_goals_are_met_from_their_numbers_on(
    is_full_size: bool, workers: int, rate: float, met: dict[str, bool]
) -> None:
    rates = {OPEN_CLIP: rates_of(100.0), MOSAICML: rates_of(100.0), BARE: rates_of(400.0), SUITE: rates_of(rate)}
    found = outcome_of([Race("images", is_full_size, workers, rates)])
    judged = {goal.what.partition(": to ")[2]: goal.is_met for goal in found.goals}
    assert judged == met


def test_a_goal_beside_somebody_who_is_absent_is_not_claimed() -> None:
    found = outcome_of([Race("images", True, 1, {SUITE: rates_of(100.0)})])
    assert found.goals == []
    assert "0 of 0 goals" in tables.headline(found)


def test_a_machine_that_was_busy_is_said_so() -> None:
    quiet = Race("images", True, 2, {SUITE: Rates(0.1, (190.0,), (100.0,))})
    busy = Race("images", True, 2, {SUITE: Rates(0.1, (100.0,), (100.0,))})
    assert "something else ran" not in tables.as_text(outcome_of([quiet]))
    assert "They had only 50% of it: something else ran" in " ".join(tables.as_text(outcome_of([busy])).split())


def test_starting_far_into_a_run_has_a_goal_of_its_own() -> None:
    found = Outcome(races=[], absent={}, opening={0: [1.5, 0.2], outcome.RESUMED: [1.5, 0.2]}, demand=None, about={})
    assert [(goal.wanted, goal.found, goal.is_met) for goal in found.goals] == [
        ("< 2 s", "1.50 s", True),
        ("< 1 s", "1.50 s", False),
    ]


def outcome_of(races: list[Race]) -> Outcome:
    return Outcome(races=races, absent={}, opening={}, demand=None, about={})


@given(model=st.floats(1, 1e5), core=st.floats(1, 1e4))
def test_so_many_cores_keep_the_wait_small_and_one_less_would_not(model: float, core: float) -> None:
    workers = cores_per_gpu(model, core) - 1
    assert 1 - workers * core / model <= MOST_WAIT + 1e-9
    assert workers == 1 or 1 - (workers - 1) * core / model > MOST_WAIT - 1e-9


def test_what_a_config_needs_is_said_in_one_sentence() -> None:
    demand = Demand("x.yaml", core_images_per_s=150, model_images_per_s=1200, measured_on="a GPU", is_gpu=True)
    assert demand.cores == math.ceil(0.98 * 8) + 1
    assert demand.in_words().startswith("x.yaml needs 9 CPU cores per GPU to keep the wait for data below 2%")
    here = Demand("x.yaml", core_images_per_s=150, model_images_per_s=10, measured_on="this CPU", is_gpu=False)
    assert "per GPU to keep" not in here.in_words() and "give cores_per_gpu.gpu_images_per_s" in here.in_words()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": [4096]}, "need 4096 cores; there are"),
        ({"workers": [0]}, "greater than or equal to 1"),
        ({"batch": 600}, "600 is more than each of 2 workers gets of 480 images"),
        ({"peers": {"mosaicml": {"python": "/nowhere/python"}}}, "/nowhere/python is no program"),
        ({"peers": {"dali": {"python": "/usr/bin/python3"}}}, "dali"),
        ({"set": "nothing", "shards_root": "/nowhere"}, "no shard set /nowhere/nothing"),
        ({"cores_per_gpu": {"train": "/nowhere/train.yaml"}}, "no such file"),
        ({"cores_per_gpu": {"train": "configs/benchmark/data.yaml"}}, "'benchmark' is not train"),
    ],
)
def test_a_mistake_is_named_before_anything_starts(
    values: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    with pytest.raises(ConfigError, match=message):
        config_of(**values)
