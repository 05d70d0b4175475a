"""The race of heads, small: everybody computes the same loss; how fast they are is nobody's concern here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from jobs import benchmark, job
from jobs.peers.head import bare, outcome, partial_fc, suite, tables
from jobs.peers.head.config import HeadRaceConfig
from jobs.peers.head.measure import entrants_of
from jobs.peers.head.race import Turns, take_turns
from jobs.peers.head.task import MARGIN, SCALE, Task, embeddings, fill_centres, labels
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir, read_json
from retrieval_train.world import Alone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pins and stops processes")
TINY = {"classes": [97], "dim": 8, "batch": 6, "cores": 1, "steps": 1, "optimizers": ["sgd"]}


def config_of(**values: object) -> benchmark.Config:
    return job.check({"job": "benchmark", "run": {"name": "it"}, **values}, where="a test")  # type: ignore[return-value]


def test_everybody_has_a_figure_or_a_reason(tmp_path: Path) -> None:
    memory = {"classes": [97, 10_000_000], "ranks": [1, 64], "measured_ranks": 0}
    config = config_of(what="head", rounds=1, head=TINY | {"memory": memory, "beside": ["metric_learning"]})
    assert list(benchmark.run(config, RunDir(tmp_path), Alone())) == ["97 classes, sgd"]
    report = read_json(tmp_path / "report.json")
    times, absent = report["metrics"]["97 classes, sgd"], report["absent"]
    assert min(times.values()) > 0
    everybody = {outcome.SUITE, outcome.BARE, outcome.METRIC_LEARNING}
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        why = "not installed: pip install pytorch-metric-learning"
        assert absent == {f"{outcome.METRIC_LEARNING} (97 classes, sgd)": why}
        everybody.remove(outcome.METRIC_LEARNING)
    assert set(times) == everybody
    assert [held["is_measured"] for held in report["memory_per_rank"]] == [False] * 4
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "report.txt"))
    assert all(title in page and title in text for title in times)
    assert "10,000,000" in page


def test_two_ranks_take_turns_too(tmp_path: Path) -> None:
    config = HeadRaceConfig.model_validate(TINY)
    entrants = [one for one in entrants_of(config, {}) if one.title == outcome.PARTIAL_FC_SAMPLED]
    turns, failed = take_turns(
        entrants, Task(97, dim=8, batch=6), tmp_path, ranks=2, cores=1, rounds=2, steps=1, shown=lambda done: None
    )
    assert failed == {}
    assert len(turns[outcome.PARTIAL_FC_SAMPLED].step_s) == 2


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_contestants_compute_the_same_loss(optimizer: str) -> None:
    task = Task(classes=301, dim=256, batch=12, optimizer=optimizer)  # type: ignore[arg-type]
    centre_CD = torch.empty(task.classes, task.dim)
    fill_centres(centre_CD, task)
    label_B = next(labels(task))
    cosine_BC = functional.normalize(embeddings(task).detach()) @ functional.normalize(centre_CD).T
    is_own_BC = functional.one_hot(label_B, task.classes).bool()
    logit_BC = SCALE * torch.where(is_own_BC, (cosine_BC.arccos() + MARGIN).cos(), cosine_BC)
    expected = float(functional.cross_entropy(logit_BC, label_B))
    assert suite.build(task, Alone())() == pytest.approx(expected, rel=1e-5)
    assert partial_fc.build(task, Alone())() == pytest.approx(expected, rel=1e-5)
    if importlib.util.find_spec("pytorch_metric_learning") is not None:
        from jobs.peers.head import metric_learning

        assert metric_learning.build(task, Alone())() == pytest.approx(expected, rel=1e-5)


def test_the_other_way_to_a_partial_loss_has_the_gradient_that_autograd_finds() -> None:
    logit_BS = torch.randn(5, 7, requires_grad=True)
    column_B = torch.tensor([3, 0, 6, 6, 1])
    expected = torch.autograd.grad(functional.cross_entropy(logit_BS, column_B), logit_BS)[0]
    doubled = logit_BS.detach().clone().requires_grad_()
    found: torch.Tensor = partial_fc._CrossEntropy.apply(doubled * 1, column_B, Alone())  # type: ignore[assignment]
    found.backward()
    assert doubled.grad is not None
    torch.testing.assert_close(doubled.grad, expected)


def test_a_sample_has_every_label_and_as_many_classes_as_asked() -> None:
    weight_CD, column_B = torch.randn(100, 4), torch.tensor([5, -1, 99, 5, 42])
    centre_SD, place_B = partial_fc.sample(weight_CD, column_B, 0.1)
    assert centre_SD.shape == (10, 4) and place_B[1] == -1
    kept = column_B >= 0
    assert torch.equal(centre_SD[place_B[kept]], weight_CD[column_B[kept]])
    assert len(partial_fc.sample(weight_CD, torch.arange(30), 0.1)[0]) == 30  # labels are never left out


def test_the_bare_products_need_no_optimizer() -> None:
    task = Task(classes=50, dim=4, batch=3)
    step = bare.build(task, Alone())
    assert step() == step()


def turns_of(step_s: float, memory_mb: float) -> Turns:
    return Turns((step_s, 2 * step_s), (step_s, step_s), memory_mb, memory_mb)


@pytest.mark.parametrize(
    ("step_s", "memory_mb", "met"),
    [(1.0, 500.0, [True] * 4), (1.7, 500.0, [False, False, True, True]), (1.5, 501.0, [True, False, False, False])],
)
def test_goals_are_met_from_their_numbers_on(step_s: float, memory_mb: float, met: list[bool]) -> None:
    turns = {outcome.BARE: turns_of(1.0, 1), outcome.PARTIAL_FC: turns_of(2.7, 1000)}
    turns[outcome.SUITE] = turns_of(step_s, memory_mb)
    race = outcome.Race(1000, 8, 4, "sgd", 1, turns)
    assert [goal.is_met for goal in race.goals] == met
    found = outcome.Outcome(races=[race], absent={}, held=[], about={})
    assert f"1,000 classes, sgd: faster than {outcome.PARTIAL_FC}" in " ".join(tables.as_text(found).split())


def test_memory_by_arithmetic_falls_with_the_ranks() -> None:
    whole, half = (outcome.by_arithmetic(100_000, r, dim=512, rows=256, optimizer="adamw") for r in (1, 2))
    assert half == pytest.approx(whole / 2, rel=0.05)
    assert whole > 4 * 100_000 * 512 * 4 / 1e6  # centres, gradient, two moments


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"what": "head"}, "set what=head for a race of heads"),
        ({"head": TINY}, "set what=head for a race of heads"),
        ({"what": "head", "head": TINY | {"cores": 4096}}, "4096 cores are asked for; there are"),
        ({"what": "head", "head": TINY | {"ranks": [2]}}, "2 ranks on 1 cores"),
        ({"what": "head", "head": TINY | {"ranks": [2], "batch": 1, "cores": 2}}, "2 ranks need as many rows"),
        ({"what": "head", "head": TINY | {"memory": {"classes": [3]}}}, "3 are fewer than the ranks"),
        ({"what": "head", "head": TINY | {"sample_rate": 1.0}}, "less than 1"),
        (
            {"what": "head", "head": TINY, "peers": {"metric_learning": {"python": "/nowhere"}}},
            "/nowhere is no program",
        ),
    ],
)
def test_a_mistake_is_named_before_anything_starts(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**values)
