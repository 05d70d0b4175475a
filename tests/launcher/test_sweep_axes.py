"""Axes of a sweep beyond grids: drawn values, seeds, folds; and what a sweep adds to its points' configs."""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from launcher.sweeps import points, sweep
from launcher.sweeps.draws import Draw, Random
from launcher.sweeps.points import Sweep
from launcher.sweeps.sweep import Point
from retrieval_train import config as configs
from retrieval_train.config import ConfigError, identity
from shards.cli import main
from tests.retrieval_train.data.conftest import draw as draw_images

RATE = {"log": [1e-5, 1e-2]}


def made(**values: Any) -> list[Point]:
    return sweep.points({"base": "it.yaml", **values}, where="s.yaml", prefix="s")


def drawn(draws: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [row for _, row in Random.model_validate({"count": 20, "draws": draws, **more}).rows()]


# --- at random


def test_a_larger_count_adds_points_another_key_changes_none_and_another_seed_all() -> None:
    few = drawn({"lr": RATE})
    assert drawn({"lr": RATE}, count=50)[:20] == few
    both = drawn({"margin": {"uniform": [0.1, 0.5]}, "lr": RATE})
    assert [row["lr"] for row in both] == [row["lr"] for row in few]
    assert not {row["lr"] for row in few} & {row["lr"] for row in drawn({"lr": RATE}, seed=1)}
    assert few[:2] == [{"lr": 0.0001574}, {"lr": 0.0001264}], "the same numbers on every machine, for ever"


@pytest.mark.parametrize(
    ("spec", "straight"),
    [
        ({"uniform": [-0.5, 0.5]}, lambda value: value + 0.5),
        ({"log": [1e-5, 1e-2]}, lambda value: math.log(value / 1e-5) / math.log(1e3)),
    ],
)
def test_draws_follow_their_distribution(spec: dict[str, Any], straight: Any) -> None:
    values = [row["key"] for row in drawn({"key": spec}, count=500)]
    assert stats.kstest([straight(value) for value in values], "uniform").pvalue > 0.01
    assert all(float(f"{value:.4g}") == value for value in values), "four digits say all of it"


def test_whole_numbers_have_both_ends_and_choices_all_values() -> None:
    whole = Draw.model_validate({"int": [4, 6]})
    assert [whole.at(share) for share in (0, 0.3, 0.34, 0.66, 0.67, 0.999999)] == [4, 4, 5, 5, 6, 6]
    by_size = Draw.model_validate({"int": [1, 64], "log": True})
    values = [by_size.at(share / 1000) for share in range(1000)]
    assert (values[0], values[-1]) == (1, 64) and values == sorted(values)
    assert 150 < sum(value == 1 for value in values) < 180, "log 2 / log 65: the share of [1, 2)"
    choice = Draw.model_validate({"choice": ["a", None, {"name": "b"}]})
    assert [choice.at(share) for share in (0.1, 0.4, 0.9)] == ["a", None, {"name": "b"}]


def test_drawn_points_are_crossed_with_the_rest_and_named_by_number_or_value() -> None:
    random = {"count": 3, "draws": {"opt.lr": RATE, "data.batch": {"choice": [64, 128]}}}
    found = made(run="r{random}-{opt.lr}-s{seed}", random=random, seeds=2, drop=[{"random": 1}])
    rows = drawn(random["draws"], count=3)  # type: ignore[arg-type]
    assert [dict(point.overrides) for point in found] == [
        {**rows[number], "seed": seed, "run.name": f"r{number}-{rows[number]['opt.lr']}-s{seed}"}
        for number, seed in itertools.product((0, 2), (0, 1))
    ]
    assert made(random=random)[1].name == f"s-lr{rows[1]['opt.lr']}-batch{rows[1]['data.batch']}"
    assert found[0].setting == found[1].setting == f"opt.lr={rows[0]['opt.lr']} data.batch={rows[0]['data.batch']}"
    assert len(made(random={"count": 9, "draws": {"a": {"choice": [1, 2]}}})) == 2, "equal points are one"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"random": {"count": 2, "draws": {"a": {"uniform": [1, 2], "choice": [3]}}}},
            "random.draws.a  give exactly one",
        ),
        ({"random": {"count": 2, "draws": {"a": {"log": True}}}}, "random.draws.a  give exactly one of uniform"),
        ({"random": {"count": 2, "draws": {"a": {"log": [0, 1]}}}}, "random.draws.a  log cannot begin at 0"),
        ({"random": {"count": 2, "draws": {"a": {"int": [3, 3]}}}}, "random.draws.a  [3, 3] is no range"),
        ({"random": {"count": 2, "draws": {"a": {"int": [1.5, 3]}}}}, "random.draws.a.int"),
        ({"random": {"count": 2, "draws": {"a": {"unform": [1, 3]}}}}, "did you mean random.draws.a.uniform?"),
        ({"random": {"count": 0, "draws": {"a": RATE}}}, "random.count  0 is not allowed"),
        ({"random": {"count": 2, "draws": {"run.name": RATE}}}, "random.draws.run.name  cannot vary"),
        ({"random": {"count": 2, "draws": {"a": RATE}}, "grid": {"a": [1]}}, "grid.a  random changes it, too"),
        ({"random": {"count": 2, "draws": {"a": RATE}}, "drop": [{"a": 1}]}, "drop.0.a  its values are drawn; name"),
        ({"seeds": 2, "grid": {"seed": [1]}}, "seeds  grid changes it, too"),
        ({"seeds": 0}, "seeds  0 is no number of seeds"),
        ({"seeds": [1, 1]}, "seeds  [1, 1]: give each seed once"),
        ({"folds": 2, "grid": {"data.fold": [1]}}, "folds  grid changes it, too"),
        ({"folds": 0}, "folds  0 is no number of folds"),
        ({"folds": [1, 1]}, "folds  [1, 1]: give each fold once"),
        ({"folds": 1, "drop": [{"data.fold": 1}]}, "drop.0.data.fold  1 is none of its values: 0"),
        ({"halving": {"first": 1.0}, "seeds": 2}, "halving.first  1.0 is not allowed: input should be less than 1"),
    ],
)
def test_axes_that_cannot_be_meant_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as told:
        made(**values)
    assert words in re.sub(r" {2,}", "  ", str(told.value))


@pytest.mark.parametrize(("key", "short"), [("seed", "seeds"), ("data.fold", "folds")])
def test_seeds_and_folds_are_short_for_a_grid(key: str, short: str) -> None:
    grid = made(grid={"a": [1, 2], key: [0, 1, 2]})
    assert made(grid={"a": [1, 2]}, **{short: 3}) == made(grid={"a": [1, 2]}, **{short: [0, 1, 2]}) == grid
    assert len({point.setting for point in grid}) == 2, "its values are repetitions of one setting"


# --- what the points' configs say


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A train and an evaluate config, a set with two folds and one without."""
    root = tmp_path_factory.mktemp("here")
    draw_images(root / "images", domains={"warm": 6}, images=4)
    for name, words in (("shapes", ["--folds", "2"]), ("others", ["--dev-fraction", "0.5"])):
        made = ["make", "folder", str(root / "images"), "--levels", "domain/class", *words]
        assert main([*made, "--out", str(root / "sets" / name)]) == 0
    (root / "train.yaml").write_text(
        f"""\
job: train
run: {{name: it}}
runs_root: {root / "runs"}
shards_root: {root / "sets"}
backbone: {{name: timm, model: test_vit, image_px: 16, weights: none}}
head: {{name: arcface}}
data: {{mixture: {{shapes: 1.0}}, batch: 4, fold: 0}}
evaluate: {{set: shapes}}
engine: {{name: plain}}
length: {{steps: 10}}
"""
    )
    (root / "evaluate.yaml").write_text(
        f"job: evaluate\nrun: {{name: unused}}\nmodel: nowhere\nshards_root: {root / 'sets'}\ndata: {{set: shapes}}\n"
    )
    return root


def found(root: Path, values: dict[str, Any], *overrides: str) -> Sweep:
    file = root / "mine.yaml"
    file.write_text(yaml.safe_dump({"base": "train.yaml", **values}))
    sweep = points.find(str(file), list(overrides), is_named=False)
    assert sweep is not None
    return sweep


def test_each_point_is_evaluated_on_its_fold(root: Path) -> None:
    mine = found(root, {"folds": 2, "then": "evaluate.yaml", "run": "f{data.fold}", "seeds": [5]})
    configs_of = {point.name: config for point, config in points.checked(mine)}
    for fold in (0, 1):
        config: Any = configs_of[f"f{fold}"]
        assert (config.data.fold, config.judge.fold) == (fold, fold)
        assert f"data.fold={fold}" in mine.then_assignments(f"f{fold}", root)
    one, other = configs_of.values()
    assert identity(one, {}) != identity(other, {}) and one.inputs() != other.inputs()
    assert len({point.setting for point in mine.points}) == 1, "one row of the table"
    by_command = found(root, {"seeds": [5], "then": "evaluate.yaml", "run": "f{data.fold}"}, "data.fold=0,1")
    assert [point.values for point in by_command.points] == [point.values for point in mine.points]


def test_the_fold_of_a_base_is_that_of_all_evaluations_but_of_other_sets(root: Path) -> None:
    mine = found(root, {"seeds": 1, "then": "evaluate.yaml", "run": "s{seed}"})
    points.checked(mine)
    assert "data.fold=0" in mine.then_assignments("s0", root)
    others = found(root, {"seeds": 1, "then": "evaluate.yaml", "run": "s{seed}"}, "then.data.set=others")
    points.checked(others)
    assert not [item for item in others.then_assignments("s0", root) if item.startswith("data.fold")]


def test_a_fold_that_is_not_there_is_told_with_its_points(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.fold +set 'shapes' has no fold 2; give 0 to 1 \(point mine-fold2\)"):
        points.checked(found(root, {"folds": 3}))
    with pytest.raises(ConfigError, match=r"folds.*integer|folds.*list"):
        found(root, {"folds": {"shapes": ["a", "b"]}})


def test_points_belong_together_in_the_tracker_and_stay_the_same_runs(root: Path) -> None:
    ((_, config),) = points.checked(found(root, {"grid": {"head.margin": [0.2]}}))
    wandb = config.tracking.wandb  # type: ignore[attr-defined]
    assert (wandb.group, wandb.tags) == ("mine", ("sweep",))
    alone = configs.read(root / "train.yaml", overrides=["head.margin=0.2", f"run.name={config.run.name}"])
    plain = configs.check(type(config), alone, where="alone")
    assert plain.tracking != config.tracking and identity(plain, {}) == identity(config, {})  # type: ignore[attr-defined]

    said = ["tracking.wandb.group=ours", "tracking.wandb.mode=offline"]
    ((_, other),) = points.checked(found(root, {"grid": {"head.margin": [0.2]}}, *said))
    wandb = other.tracking.wandb  # type: ignore[attr-defined]
    assert (wandb.group, wandb.tags, wandb.mode) == ("ours", ("sweep",), "offline")


def test_halving_is_part_of_what_a_point_is_but_not_where_the_points_meet(root: Path) -> None:
    values: dict[str, Any] = {"grid": {"head.margin": [0.2, 0.3]}}
    halved = {**values, "halving": {"first": 0.2, "factor": 2}}
    (_, one), (_, two) = points.checked(found(root, halved))
    ((_, plain), _) = points.checked(found(root, values))
    assert plain.halving is None and identity(plain, {}) != identity(one, {})  # type: ignore[attr-defined]
    mine: Any = one.halving  # type: ignore[attr-defined]
    assert (mine.first, mine.factor, mine) == (0.2, 2, two.halving)  # type: ignore[attr-defined]
    assert mine.folder.parent == root / "runs/.sweeps" and mine.folder.name.startswith("mine-")

    def folder(*overrides: str, **more: Any) -> Path:
        config: Any = points.checked(found(root, halved | more, *overrides))[0][1]
        return Path(config.halving.folder)

    same = [folder(grid={"head.margin": [0.4]}), folder("head.margin=0.1,0.2"), folder("run.threads=1", seeds=2)]
    assert set(same) == {mine.folder}, "more points, the same sweep"
    assert folder("data.batch=6") != mine.folder, "another base, another sweep"
    with pytest.raises(ConfigError, match=r"halving +compares what evaluations on the way find"):
        points.checked(found(root, halved, "evaluate=null"))
    with pytest.raises(ConfigError, match=r"halving +is for job train; .*evaluate.yaml is of job evaluate"):
        points.checked(found(root, {**halved, "base": "evaluate.yaml"}))


def test_values_of_the_command_line_take_the_place_of_seeds_and_not_of_draws(root: Path) -> None:
    random = {"count": 2, "draws": {"optimizer.lr": RATE}}
    mine = found(root, {"seeds": 3, "random": random}, "seed=7")
    assert [point.overrides["seed"] for point in mine.points] == [7, 7] and mine.drawn == {"optimizer.lr"}
    with pytest.raises(ConfigError, match=r"optimizer.lr=1,2 +random of the sweep's file gives its values"):
        found(root, {"random": random}, "optimizer.lr=1,2")
    with pytest.raises(ConfigError, match=r"optimizer.lr=1 +would undo what varies: optimizer.lr"):
        found(root, {"random": random}, "optimizer.lr=1")


def test_a_hundred_points_are_checked_in_a_few_seconds(root: Path) -> None:
    mine = found(root, {"random": {"count": 50, "draws": {"optimizer.lr": RATE}}, "seeds": 2, "halving": {}})
    points.checked(found(root, {"seeds": 1}))  # what is imported and cached once
    began = time.process_time()
    assert len(points.checked(mine)) == 100
    assert time.process_time() - began < 5


def test_the_overrides_are_json_that_any_yaml_reads() -> None:
    (point, *_) = made(random={"count": 1, "draws": {"a": RATE}})
    assert json.loads(point.assignments()[0].partition("=")[2]) == point.values["a"]
