"""A run that is behind the others of its sweep stops; which those are is what was there when it came."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import train
from jobs.training import halving
from jobs.training.halving import Config, Halving, Rungs, stopped_at
from jobs.training.judge import Config as Judge
from retrieval_train import config as configs
from retrieval_train.rundir import RunDir, read_json
from retrieval_train.world import Alone, World
from shards.cli import main
from tests.retrieval_train.data.conftest import draw

STEPS = 6


def looks(folder: Path, name: str, history: list[tuple[int, float]], **more: Any) -> Halving:
    config = Config(folder=folder, **more)
    one = Halving(config, name=name, judge="it", num_steps=100, world=Alone())
    one.look(history)
    return one


def test_rungs_are_factors_apart_and_end_before_the_end() -> None:
    assert Rungs(first=0.1, factor=3).shares() == pytest.approx([0.1, 0.3, 0.9])
    assert Rungs(first=0.25, factor=2).shares() == [0.25, 0.5], "nothing to stop at 1.0"


@pytest.mark.parametrize("factor", [2, 3])
def test_who_goes_on_is_what_a_loop_over_the_arrivals_says(factor: int, tmp_path: Path) -> None:
    chance = random.Random(factor)
    curves = {f"run{number}": [chance.random() for _ in range(2)] for number in range(30)}
    seen: list[list[float]] = [[], []]
    stopped = 0
    for name, values in curves.items():  # each comes to both rungs before the next one begins
        goes_on = True
        for rung, value in enumerate(values):
            seen[rung].append(value)
            best = sorted(seen[rung], reverse=True)[: max(1, len(seen[rung]) // factor)]
            goes_on = len(seen[rung]) < factor or value in best
            history = [(step, values[at]) for at, step in enumerate((40, 80)[: rung + 1])]
            verdict = looks(tmp_path, name, history, first=0.8 / factor, factor=factor).verdict
            assert (verdict is None) == goes_on, (name, rung)
            if not goes_on:
                stopped += 1
                break
    assert 10 < stopped < 30


def test_a_run_is_judged_once_whatever_comes_after_it(tmp_path: Path) -> None:
    for name, value in (("a", 0.5), ("b", 0.6)):
        assert looks(tmp_path, name, [(10, value)]).verdict is None, "too few to compare with"
    stops = looks(tmp_path, "c", [(0, 0.9), (5, 0.9), (10, 0.4), (20, 0.9)])
    assert stops.verdict == halving.Verdict(0.1, 10, better=2, seen=3), "by its first evaluation from the rung on"
    assert stops.figures() == {"halved_at": 0.1, "halved_rank": 3}
    for name in "defgh":
        looks(tmp_path, name, [(10, 0.1)])
    assert looks(tmp_path, "c", [(10, 0.7)]).verdict == stops.verdict, "a start after it has the same verdict"
    assert looks(tmp_path, "c", [(5, 0.9)]).verdict is None, "before that step there is none"
    assert looks(tmp_path, "a", [(10, 0.0)]).verdict is None, "and it is not stopped for what came later"
    assert stopped_at(Config(folder=tmp_path), "c") == 0.1 and stopped_at(Config(folder=tmp_path), "a") is None


def test_an_evaluation_counts_for_the_rung_that_it_is_nearest_above(tmp_path: Path) -> None:
    looks(tmp_path, "rare", [(50, 0.5), (100, 0.5)])
    assert [path.name for path in tmp_path.glob("it/*")] == ["rung-0.3"], (
        "none from 10 to 30, none after 90 before the end"
    )


def test_a_run_that_begins_anew_is_not_judged_by_what_it_was(tmp_path: Path) -> None:
    for name, value in (("a", 0.5), ("b", 0.6), ("c[1]", 0.4)):
        looks(tmp_path, name, [(10, value)])
    config = Config(folder=tmp_path)
    assert stopped_at(config, "c[1]") == 0.1
    halving.forget(config, "c[1]")
    assert stopped_at(config, "c[1]") is None and len(list(tmp_path.glob("it/rung-0.1/*"))) == 2
    assert looks(tmp_path, "c[1]", [(10, 0.9)]).verdict is None


def test_what_cannot_be_read_or_written_stops_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b", "c"):
        looks(tmp_path, name, [(10, 0.9)])
    (tmp_path / "it/rung-0.1/a.json").write_text('{"val')
    (tmp_path / "it/rung-0.1/b.json").write_text('["no note"]')
    assert looks(tmp_path, "d", [(10, 0.1)]).verdict is None, "two are left"
    (tmp_path / "file").touch()
    assert looks(tmp_path / "file", "d", [(10, 0.1)]).verdict is None
    assert "this run is not compared at 10%" in caplog.text


class Second(Alone):
    """What another rank than the first sees: the first one's words."""

    rank = 1

    def from_first(self, value: Any) -> Any:
        assert value is None, "it says nothing itself"
        return halving.Verdict(0.1, 10, better=2, seen=3)


def test_another_rank_writes_nothing_and_stops_with_the_first(tmp_path: Path) -> None:
    one = Halving(Config(folder=tmp_path), name="it", judge="it", num_steps=100, world=Second())
    one.look([(10, 0.4)])
    assert one.verdict is not None and not list(tmp_path.iterdir())


# --- in a training run


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    draw(root / "images", domains={"warm": 8}, images=4)
    made = ["make", "folder", str(root / "images"), "--levels", "domain/class", "--dev-fraction", "0.5"]
    assert main([*made, "--out", str(root / "shapes")]) == 0
    return root


def trained(world: World, sets: Path, folder: Path, meet: Path) -> tuple[float, list[str]]:
    """One start of a run that is compared at steps 2 and 4; its last step, and the keys of that step's line."""
    torch.set_num_threads(1)
    values = {
        "job": "train",
        "run": {"name": "halved"},
        "shards_root": sets,
        "backbone": {"name": "timm", "model": "test_vit", "image_px": 16, "weights": "none", "blocks": 1},
        "neck": {"name": "linear", "out": 8},
        "head": {"name": "arcface", "margin": 0.1, "scale": 16},
        "data": {"mixture": {"shapes": 1.0}, "batch": 4, "workers": 0},
        "engine": {"name": "plain"},
        "length": {"steps": STEPS},
        "evaluate": {"set": "shapes", "every_steps": 1, "embed": {"workers": 0}},
        "halving": {"first": 2 / STEPS, "factor": 2, "folder": meet},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
    run = RunDir(folder)
    steps = train.run(configs.check(train.Config, values, where="test"), run, world)["steps"]
    return steps, sorted(json.loads(run.metrics.read_text().splitlines()[-1]))


def put(sets: Path, meet: Path, rung: str, value: float) -> Path:
    """What another run says, and what one says that is judged by another metric, for which it counts nothing."""
    judges = [Judge(set="shapes"), Judge(set="shapes", metric="R@1")]
    mine, theirs = (meet / halving.digest_of(judge, sets) / rung / "other.json" for judge in judges)
    for file, number in ((mine, value), (theirs, 3.0)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"value": number, "stops": False}))
    return mine


def test_a_run_stops_is_whole_and_stops_at_the_same_step_whenever_it_is_started_again(
    tmp_path: Path, sets: Path
) -> None:
    meet, run = tmp_path / "meet", RunDir(tmp_path / "run")
    others = [put(sets, meet, "rung-0.3333", -1.0), put(sets, meet, "rung-0.6667", 2.0)]
    first = trained(Alone(), sets, run.path, meet)
    assert first[0] == 4.0 and "halved_at" in first[1], "better than the other at 2, worse at 4"
    assert read_json(run.export / "model.json")["step"] <= 4 and run.page.is_file()
    assert stopped_at(Config(first=2 / STEPS, factor=2, folder=meet), "run") == pytest.approx(4 / STEPS)

    before = run.metrics.read_text()
    assert trained(Alone(), sets, run.path, meet)[0] == 4.0
    assert run.metrics.read_text() == before, "no step more"
    shutil.rmtree(run.path)  # as --again moves it aside
    for other in others:
        other.unlink()
    assert trained(Alone(), sets, run.path, meet)[0] == STEPS, "alone now, and not by what it wrote then"
