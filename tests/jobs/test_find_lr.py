"""The learning-rate finder: what its curve says, and a whole run of it on ranks."""

from __future__ import annotations

import json
import math
import os
import random
import shlex
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import find_lr, job
from jobs.training.lr_curve import Curve, Ramp
from retrieval_train import config as configs
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir, read_json, write_json
from retrieval_train.world import Alone, World
from tests.processes import run_ranks
from tests.retrieval_train.data.conftest import make_sets


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See make_sets."""
    return make_sets(tmp_path_factory.mktemp("sets"))


# --- the curve


def curve_of(loss: Callable[[float], float], *, noise: float = 0.0, seed: int = 0, steps: int = 100) -> Curve:
    """Of a loss that depends on log10 of the learning rate, up to where it would end early."""
    drawn, ramp, curve = random.Random(seed), Ramp(1e-6, 1.0, steps, peak=1e-3), Curve(smooth=0.9)
    for step in range(steps):
        curve.add(ramp.lr(step), loss(math.log10(ramp.lr(step))) + drawn.gauss(0, noise))
        if curve.is_over(4.0):
            break
    return curve


def valley(log_lr: float) -> float:
    """Falls fastest at about 1e-3, is lowest at 8e-3, then rises tenfold every half decade."""
    return 5 - 3 / (1 + math.exp(-4 * (log_lr + 3))) + math.pow(10, 2 * (log_lr + 1.5))


def test_a_ramp_multiplies_all_learning_rates_by_the_same_each_step() -> None:
    ramp = Ramp(1e-5, 0.1, 5, peak=0.02)
    assert [ramp.factor(step) * 0.02 for step in range(5)] == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])


def test_smoothing_does_not_move_the_curve() -> None:
    line = curve_of(lambda log_lr: 7 - 0.5 * log_lr)
    assert line.smooth_loss_P == pytest.approx([7 - 0.5 * math.log10(lr) for lr in line.smooth_lr_P])


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.4])
def test_the_suggestions_lie_where_the_loss_falls_whatever_the_noise(noise: float) -> None:
    for seed in range(20):
        found = curve_of(valley, noise=noise, seed=seed).suggest()
        assert found.steepest is not None and 1.5e-4 < found.steepest < 4e-3
        assert found.before_rise is not None and 2.5e-4 < found.before_rise < 1.6e-3


def test_the_loss_of_a_collapsed_model_is_no_valley_however_low_it_is() -> None:
    def collapsing(log_lr: float) -> float:
        return valley(log_lr) if log_lr < -1.15 else 1.0

    for seed in range(20):
        found = curve_of(collapsing, noise=0.1, seed=seed).suggest()
        assert found.before_rise is not None and 2.5e-4 < found.before_rise < 1.6e-3


def test_it_ends_early_when_the_loss_is_four_times_the_best_but_never_while_a_negative_one_falls() -> None:
    assert curve_of(valley).lr_P[-1] < 0.2, "valley(log10 of 0.1) is 12"
    assert len(curve_of(lambda log_lr: -1 - log_lr / 100).lr_P) == 100


def test_noise_is_no_suggestion() -> None:
    found = [curve_of(lambda _: 5.0, noise=0.3, seed=seed).suggest() for seed in range(100)]
    assert sum(one.steepest is not None for one in found) <= 3
    assert "it would be more than noise" in found[0].why


def test_a_curve_that_only_falls_has_no_largest_rate_unless_the_next_step_was_no_number() -> None:
    falling = curve_of(lambda log_lr: 5 - log_lr)
    found = falling.suggest()
    assert found.steepest and found.before_rise is None and "a higher find.high" in found.why
    assert falling.suggest(diverged=True).before_rise == pytest.approx(falling.smooth_lr_P[-1] / 10)


def test_a_rise_from_the_first_step_and_a_run_that_hardly_began_say_why_there_is_none() -> None:
    assert "lower find.low" in (rising := curve_of(lambda log_lr: 5 + log_lr).suggest()).why
    assert rising.steepest is None and rising.before_rise is None
    assert "0 points are no curve" in Curve(smooth=0.9).suggest().why


# --- the job


def values(root: Path, sets: Path, **find: Any) -> dict[str, Any]:
    """A train config as a user has it, with the overrides of a finder."""
    return {
        "job": "find_lr",
        "run": {"name": "one", "threads": 1},
        "runs_root": str(root / "runs"),
        "shards_root": str(sets),
        "backbone": {"name": "timm", "model": "test_vit", "image_px": 16, "weights": "none", "blocks": 1},
        "neck": {"name": "linear", "out": 8},
        "head": {"name": "arcface", "margin": 0.0, "scale": 8},
        "data": {"mixture": {"shapes": 1.0, "more": 1.0}, "batch": 64, "workers": 0},
        "engine": {"name": "plain"},
        "optimizer": {"name": "sgd", "lr": 2e-3, "head_lr": 1e-2},
        "length": {"steps": 4},
        "tracking": {"wandb": {"mode": "disabled"}},
        "find": {"low": 1e-3, "high": 10.0, "steps": 30, "smooth": 0.6} | find,
    }


def found_on(world: World, given: dict[str, Any], folder: str, interrupt_at: int = 0) -> dict[str, float]:
    """In a rank. The last one gets a Ctrl-C when `interrupt_at` steps are written."""
    run, config = RunDir(Path(folder)), job.check(given, where="test")
    if interrupt_at and world.rank == world.size - 1:
        threading.Thread(target=_interrupt, args=(run, interrupt_at), daemon=True).start()
    assert isinstance(config, find_lr.Config)
    return find_lr.run(config, run, world)


def _interrupt(run: RunDir, step: int) -> None:
    while not run.metrics.is_file() or len(run.metrics.read_text().splitlines()) < step:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


def lines_of(run: RunDir) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_one_and_two_ranks_find_the_same_in_the_part_where_the_loss_falls(tmp_path: Path, sets: Path) -> None:
    runs = {ranks: RunDir(tmp_path / f"on-{ranks}") for ranks in (1, 2)}
    command = "python launcher/submit.py job=find_lr config=configs/train/my.yaml find.steps=30 optimizer.lr=2e-3"
    found = {}
    for ranks, run in runs.items():
        write_json(run.plan, {"command": command})
        task = (values(tmp_path, sets), str(run.path))
        every = [found_on(Alone(), *task)] if ranks == 1 else run_ranks(found_on, ranks, *task)
        assert all(one == every[0] for one in every)
        found[ranks] = every[0]
    assert found[1] == pytest.approx(found[2], rel=1e-3)
    one, two = (lines_of(run) for run in runs.values())
    lowest = min(one, key=lambda line: line["loss_smooth"])
    falling = int(lowest["step"]) - 5  # where it diverges, the last digits of a sum of two ranks grow to the first
    assert falling > 7
    assert [line["loss"] for line in one[:falling]] == pytest.approx([line["loss"] for line in two[:falling]], rel=1e-3)
    assert one[0]["lr"] == pytest.approx(1e-3) and all(line["grad_norm"] > 0 for line in one)

    for name in ("steepest", "before_rise"):
        assert 1e-3 < found[1][f"lr_{name}"] < lowest["lr_smooth"]
    run = runs[1]
    assert not run.checkpoints.exists() and not run.export.exists()
    report, page = read_json(run.report), run.page.read_text()
    assert report["schema"] == 1 and report["suggestion"].keys() == {"steepest", "before_rise"}
    assert all(name in page for name in ("smoothed", "steepest", "before_rise", "optimizer.lr"))
    for use in report["suggestion"].values():
        assert use["command"] == f"python launcher/submit.py config=configs/train/my.yaml {use['overrides']}"
        assert use["command"] in run.text.read_text()
        _gives_these_rates(use, tmp_path, sets)


def _gives_these_rates(use: dict[str, Any], root: Path, sets: Path) -> None:
    """Typed behind a train config, they are the peaks: the suggested one, the ratios kept."""
    file = root / "my.yaml"
    given = values(root, sets) | {"job": "train"}
    file.write_text(yaml.safe_dump({key: value for key, value in given.items() if key != "find"}))
    config: Any = job.check(configs.read(file, overrides=shlex.split(use["overrides"])), where="test")
    assert config.optimizer.lr == pytest.approx(use["lr"], rel=0.05)
    assert config.optimizer.head_lr == pytest.approx(5 * use["lr"], rel=0.05) and config.optimizer.backbone_lr is None


def test_ctrl_c_on_one_rank_ends_all_with_what_there_is(tmp_path: Path, sets: Path) -> None:
    run = RunDir(tmp_path / "run")
    given = values(tmp_path, sets, steps=100_000)
    numbers = run_ranks(found_on, 2, given, str(run.path), 12)
    steps = len(lines_of(run))
    assert 12 <= steps < 100_000 and [one["steps"] for one in numbers] == [steps, steps]
    assert read_json(run.report)["ending"] == "signal"
    assert f"{steps} of 100000 steps: a signal (Ctrl-C or the scheduler) ended it" in run.text.read_text()


def test_a_train_config_is_a_finders_by_one_override_and_keeps_the_name_of_its_own_runs(
    tmp_path: Path, sets: Path
) -> None:
    file = tmp_path / "my.yaml"
    given = {key: value for key, value in values(tmp_path, sets).items() if key != "find"}
    file.write_text(yaml.safe_dump(given | {"job": "train"}))
    config = job.check(configs.read(file, overrides=["job=find_lr", "find.high=0.5"]), where="test")
    assert isinstance(config, find_lr.Config) and config.find.high == 0.5
    assert config.run.name == "one-find_lr", "runs/one stays the link to the training run"
    assert configs.check(find_lr.Config, yaml.safe_load(configs.dump(config)), where="test") == config


def test_all_mistakes_are_one_message(tmp_path: Path, sets: Path) -> None:
    given = values(tmp_path, sets, low=0.1, high=0.01) | {
        "origin": {"checkpoint": str(tmp_path)},
        "head": {"name": "arcfac"},
    }
    with pytest.raises(ConfigError) as told:
        job.check(given, where="my.yaml")
    assert "my.yaml: 3 problems" in str(told.value)
    for text in ("low 0.1 is not below high 0.01", "origin=null", "did you mean arcface?"):
        assert text in str(told.value)
    with pytest.raises(ConfigError, match=r"find\.step  unknown key; did you mean find\.steps"):
        job.check(values(tmp_path, sets, step=5), where="my.yaml")
