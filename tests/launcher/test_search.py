"""Adaptive search: what is asked, what is told, and how a search goes on."""

from __future__ import annotations

import json
import math
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import jobs
from jobs import failure as failures
from jobs.failure import Failure
from jobs.training import judge
from launcher import folder as folders
from launcher.sweeps import points, search, search_run, search_task, sweep
from launcher.sweeps.search import Outcome, Search, Study, Trial
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir, read_json
from tests.launcher.conftest import ROOT, Repo
from tests.launcher.extra_jobs.climber import height

pytest.importorskip("optuna")
EXTRA = Path(__file__).parent / "extra_jobs"
DRAWS: dict[str, Any] = {"rate": {"log": [1e-5, 1.0]}, "depth": {"int": [1, 4]}}


def study_in(folder: Path, **values: Any) -> Study:
    return Study(folder, "0123abcd", Search.model_validate({"count": 6, "metric": "m", "draws": DRAWS, **values}))


def climb(study: Study, number: int) -> Trial:
    trial = study.begin(number)
    return study.tell(number, Outcome("done", height(**trial.values), 2))


# --- the study


def test_a_search_repeats_itself_with_its_seed_and_lasts_over_a_break_but_not_with_another_seed(tmp_path: Path) -> None:
    found = [climb(study_in(tmp_path / "a"), number) for number in range(14)]
    again = [climb(study_in(tmp_path / "b"), number) for number in range(14)]
    assert found == again and found == study_in(tmp_path / "a").trials()
    other = [climb(study_in(tmp_path / "c", seed=1), number).values for number in range(3)]
    assert not {trial.values["rate"] for trial in found} & {values["rate"] for values in other}
    assert all(1e-5 <= trial.values["rate"] <= 1 and trial.values["depth"] in (1, 2, 3, 4) for trial in found)
    assert all(float(f"{trial.values['rate']:.4g}") == trial.values["rate"] for trial in found)


def test_it_searches_where_it_was_good(tmp_path: Path) -> None:
    """After the ten random trials that TPE begins with."""
    adaptive, blind = study_in(tmp_path / "tpe", count=40), study_in(tmp_path / "random", count=40, sampler="random")
    values = {
        study.search.sampler: [climb(study, number).value or 0.0 for number in range(40)] for study in (adaptive, blind)
    }
    late = {name: sum(found[15:]) / 25 for name, found in values.items()}
    assert late["tpe"] > late["random"] + 0.15
    best = adaptive.best()
    assert best is not None and best.value == max(values["tpe"])


def test_trials_that_run_at_the_same_time_have_different_values_and_a_number_is_asked_once(tmp_path: Path) -> None:
    draws = {"head": {"choice": [{"name": "arcface"}, None, 3, "x"]}}
    with ThreadPoolExecutor(8) as pool:
        begun = list(pool.map(lambda number: study_in(tmp_path, draws=draws).begin(number % 4), range(8)))
    assert begun[:4] == begun[4:]
    assert len({json.dumps(trial.values) for trial in begun}) == 4, "all points that there are, each once"
    with pytest.raises(ValueError, match=r"trial 4: .* only values that were tried already; lower search.count"):
        study_in(tmp_path, draws=draws).begin(4)


def test_what_was_told_stays_and_only_a_failure_that_may_pass_is_tried_again(tmp_path: Path) -> None:
    from optuna.trial import TrialState

    study = study_in(tmp_path)
    endings: list[Outcome] = [
        Outcome("done", 0.5, 9),
        Outcome("halved", 0.1, 3),
        Outcome("hopeless"),
        Outcome("failed"),
    ]
    for number, ending in enumerate(endings):
        study.begin(number)
        study.tell(number, ending)
        study.tell(number, Outcome("failed"))
    assert [trial.ending for trial in study.trials()] == ["done", "halved", "hopeless", "failed"]
    assert study.left() == [3, 4, 5]
    before = study.trials()[3]
    assert study.begin(3) == before, "the same values"
    study.tell(3, Outcome("done", 0.7, 9))
    assert study.left() == [4, 5] and study.best() == study.trials()[3]

    told = [(t.state, t.value, t.intermediate_values) for t in study._open().get_trials() if t.state != TrialState.FAIL]
    assert told == [
        (TrialState.COMPLETE, 0.5, {}),
        (TrialState.PRUNED, None, {3: 0.1}),
        (TrialState.PRUNED, None, {}),
        (TrialState.COMPLETE, 0.7, {9: 0.7}),
    ]


@pytest.mark.parametrize(
    ("state", "kind", "lines", "expected"),
    [
        ("done", None, [{"step": 1, "m": 0.1}, {"step": 2, "m": 0.4}, {"step": 3, "loss": 1}], Outcome("done", 0.4, 2)),
        ("done", None, [{"step": 1, "m": 0.1, "halved_at": 0.1}], Outcome("halved", 0.1, 1)),
        ("failed", "user_error", [], Outcome("hopeless")),
        ("failed", "not_finite", [{"step": 1, "m": 0.1}], Outcome("hopeless")),
        ("failed", "node_failure", [], Outcome("failed")),
        ("preempted", None, [], Outcome("failed")),
        ("running", None, [{"step": 1, "m": 0.1}], None),
    ],
)
def test_what_a_run_is_told_as(
    state: Any, kind: Any, lines: list[dict[str, float]], expected: Outcome | None, tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    run.set_state(state)
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if kind:
        failures.tell(run, 0, Failure(kind, "why"))
    assert search.outcome(run, "m") == expected
    if state == "done":
        with pytest.raises(ValueError, match=r"has no 'M', which the search is for; there are: .*m"):
            search.outcome(run, "M")


def test_a_study_that_others_hold_for_long_says_that_it_is_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_in(tmp_path)
    monkeypatch.setattr(search, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(search, "_PATIENCE_PER_TRIAL_S", 0.05)
    with (
        folders.only_one_submits(tmp_path),
        pytest.raises(ValueError, match=r"other trials of this search have held .* for 0\.4 s"),
    ):
        study.begin(0)
    assert study.begin(0).number == 0


# --- the file


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"grid": {"seed": [0, 1]}}, "grid  does not go with search"),
        ({"seeds": 3, "then": "x.yaml"}, "then  does not go with search"),
        ({"search": {"count": 3, "metric": "m", "draws": {"run.name": {"choice": ["a"]}}}}, "search.draws.run.name"),
        ({"search": {"count": 3, "draws": {"rate": {"log": [1, 2]}}}}, "search.metric"),
        ({"run": "x{depht}"}, "{depht} is nothing that varies; there are: {trial}, {rate}, {depth}"),
        ({"run": "x"}, "points are called 'x'; put"),
    ],
)
def test_a_search_that_cannot_be_meant_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as told:
        found = {"base": "it.yaml", "search": {"count": 3, "metric": "m", "draws": DRAWS}, **values}
        sweep.points(found, where="s.yaml", prefix="s")
    assert words in re.sub(r" {2,}", "  ", str(told.value))


def test_the_points_that_check_a_search_have_both_ends_of_each_range_and_each_choice() -> None:
    draws = {**DRAWS, "head": {"choice": ["a", "b", "c", "d"]}, "margin": {"uniform": [0, 0.5]}}
    rows = [row for _, row in study_in(Path(), draws=draws).search.corners()]
    assert {row["head"] for row in rows} == set("abcd")
    for key, (low, high) in {"rate": (1e-5, 1.0), "depth": (1, 4), "margin": (0, 0.5)}.items():
        assert {low, high} <= {row[key] for row in rows}
    assert len(study_in(Path(), draws={"a": {"choice": [1, 2]}}).search.corners()) == 2


@pytest.mark.parametrize(
    ("metric", "words"),
    [("dev/mMP@5", None), ("dev/food/R@1", None), ("mMP@5", "there are: dev/mMP@5"), ("dev/mMP", "is not measured")],
)
def test_a_metric_that_a_training_does_not_measure_is_told_before_it_begins(metric: str, words: str | None) -> None:
    found = search_run._bad_metric(metric, judge.Config(set="food", split="dev"))
    assert not found if words is None else words in found[0][1]
    assert "has no `evaluate`" in search_run._bad_metric(metric, None)[0][1]


def test_without_optuna_or_with_more_trials_than_points_it_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    few = study_in(Path(), draws={"a": {"choice": [1, 2]}, "b": {"int": [1, 2]}}).search
    assert [path for path, _ in search.problems(few)] == ["search.count"]
    monkeypatch.setattr(search, "find_spec", lambda name: None)
    (_, told), _ = search.problems(few)
    assert told.endswith("pip install 'retrieval-train[search]'")
    assert "search" in (ROOT / "setup.cfg").read_text().partition("[options.extras_require]")[2].split()


# --- on the node


def test_a_task_makes_its_trials_config_and_tells_its_end_unless_the_search_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "__path__", [*jobs.__path__, str(EXTRA)])
    monkeypatch.chdir(tmp_path)
    write(tmp_path, 6)
    found = points.find("climb.yaml", ["seed=3"], is_named=True)
    assert found is not None
    folder = found.study.stage(4)
    about = {"file": str(tmp_path / "climb.yaml"), "overrides": ["seed=3"], "trial": search_task.about(found.study, 4)}
    about = json.loads(json.dumps(about))

    config = search_task.config(folder, about)
    (trial,) = found.study.trials()
    assert {"rate": dict(config)["rate"], "depth": dict(config)["depth"]} == trial.values and config.seed == 3
    assert config.run.name == f"climb-rate{trial.values['rate']}-depth{trial.values['depth']}"
    write(tmp_path, 60)
    assert search_task.config(folder, about) == config, "it is queued again, and more trials were asked for"

    run = RunDir(tmp_path / "run")
    run.set_state("running")
    search_task.end(folder, about, run)
    assert found.study.left() == [0, 1, 2, 3, 4, 5]
    run.metrics.write_text('{"step": 7, "dev/mMP@5": 0.25}\n')
    run.set_state("done")
    search_task.end(folder, about, run)
    assert found.study.left() == [0, 1, 2, 3, 5] and found.study.trials()[0].value == 0.25

    write(tmp_path, 6, base="rate: 1\nnewer: 1\n")
    with pytest.raises(ValueError, match=r"climb.yaml, or its base, has changed since the submit"):
        search_task.config(folder, about)


# --- the command


SWEEP = ["--sweep", "climb.yaml"]


@pytest.fixture
def climbing(repo: Repo) -> Repo:
    shutil.copy(EXTRA / "climber.py", repo.path / "jobs")
    write(repo.path, 2)
    return repo


def write(folder: Path, count: int, more: str = "", *, base: str = "rate: 1\n") -> None:
    found = {"count": count, "metric": "dev/mMP@5", "draws": DRAWS}
    (folder / "climb.yaml").write_text(f"base: climber.yaml\nsearch: {json.dumps(found)}\n{more}")
    (folder / "climber.yaml").write_text(f"job: climber\nrun: {{name: it, device: cpu, preflight: false}}\n{base}")


def test_a_search_goes_on_where_it_was_and_is_shown_with_its_best_trial(climbing: Repo, tmp_path: Path) -> None:
    first = climbing.python("launcher/submit.py", *SWEEP)
    assert first.code == 0, first.err
    assert first.err.count("== trial ") == 2
    again = climbing.python("launcher/submit.py", *SWEEP)
    assert again.code == 0 and "== trial " not in again.err, again.err
    write(climbing.path, 4)
    more = climbing.python("launcher/submit.py", *SWEEP)
    assert re.findall(r"== trial (\d) of 4", more.err) == ["2", "3"], more.err
    assert len(list(climbing.path.glob("runs/climb-*/state"))) == 2 * 4, "each run and the link to it"

    (log,) = climbing.path.glob("runs/.stages/climb/study-*.log")
    slow = Study(
        tmp_path / "twin", log.stem.partition("-")[2], Search(count=6, metric="m", draws=study_in(Path()).search.draws)
    )
    expected = [climb(slow, number) for number in range(4)]
    assert [read_json(file) for file in sorted(log.parent.glob("*/trial.json"))] == [vars(trial) for trial in expected]

    best = max(expected, key=lambda trial: trial.value or 0)
    told = json.loads(climbing.status("sweep", "climb.yaml", "--json").out)
    assert [point["values"] for point in told["points"]] == [dict(trial.values) for trial in expected]
    assert told["rows"][0]["name"] == " ".join(f"{key}={value}" for key, value in best.values.items())
    assert math.isclose(told["rows"][0]["estimates"]["mMP@5"]["mean"], best.value or 0)
    assert {one["key"]: one["measure"] for one in told["importance"]} == {"rate": "|rho|", "depth": "|rho|"}


@pytest.mark.parametrize(
    ("more", "args", "words"),
    [
        ("", ["rate=0.1"], "rate=0.1  would undo what varies: rate"),
        ("", ["seed=0,1"], "seed: several values do not go with search"),
        ("", ["--again"], "--again  a search goes on with what it knows"),
        ("halving: {first: 0.1}\n", [], "halving  is for job train"),
        ("", ["deep=1"], "deep  unknown key"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(more: str, args: list[str], words: str, climbing: Repo) -> None:
    write(climbing.path, 3, more)
    told = climbing.python("launcher/submit.py", *SWEEP, *args)
    assert told.code == 2 and words in told.err, told.err
    assert not (climbing.path / "runs").exists()
