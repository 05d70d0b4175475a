"""Evaluation during training says what the evaluate job says, disturbs nothing, keeps the best and knows when to stop."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import evaluate, train
from jobs.export import write_export
from jobs.training import judge, objective
from jobs.training.judge import Judge, Patience
from retrieval_train import config as configs
from retrieval_train.config import ConfigError
from retrieval_train.data.loader import build_loader
from retrieval_train.engine import loop
from retrieval_train.engine.agreement import Agreement
from retrieval_train.engine.engine import Report
from retrieval_train.engine.saving import Checkpoints
from retrieval_train.engine.snapshot import Snapshot
from retrieval_train.engine.stop import Stop
from retrieval_train.evaluation import embed
from retrieval_train.rundir import RunDir, read_json
from retrieval_train.world import Alone, World
from shards.cli import main
from tests.processes import run_ranks
from tests.retrieval_train.data.conftest import draw

STEPS = 6
BACKBONE = {"name": "timm", "model": "test_vit", "image_px": 16, "weights": "none", "blocks": 1, "drop_path": 0.2}

SILENT = {"wandb": {"mode": "disabled"}}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards_root with `shapes`: two domains of drawings, some classes for training, the others for dev."""
    root = tmp_path_factory.mktemp("sets")
    draw(root / "images", domains={"warm": 10, "cold": 8}, images=6)
    made = ["make", "folder", str(root / "images"), "--levels", "domain/class", "--dev-fraction", "0.5"]
    assert main([*made, "--shard-samples", "10", "--out", str(root / "shapes")]) == 0
    return root


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The machine is shared with other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Start:
    """One start of a small run on one rank: what it reported and where it stands."""

    run: RunDir
    config: train.Config
    losses: list[float] = field(default_factory=list)
    figures: list[dict[str, float]] = field(default_factory=list)
    judge: Judge | None = None
    ending: str = ""

    def after(self, report: Report) -> None:
        self.losses.append(report.loss)
        self.figures.append(self.judge.figures() if self.judge else {})


def train_config(sets: Path, engine: dict[str, Any], **more: Any) -> train.Config:
    values = {
        "job": "train",
        "run": {"name": "judged"},
        "shards_root": sets,
        "backbone": BACKBONE,
        "neck": {"name": "linear", "out": 8},
        "head": {"name": "arcface", "margin": 0.1, "scale": 16},
        "data": {"mixture": {"shapes": 1.0}, "batch": 12, "workers": 0},
        "engine": engine,
        "length": {"steps": STEPS},
    }
    return configs.check(train.Config, values | more, where="test")


def start(
    world: World,
    run: RunDir,
    config: train.Config,
    judging: dict[str, Any] | None = None,
    *,
    until: int = STEPS,
    keep: int = 1,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Start:
    """Train from the latest checkpoint to `until`, saving every step, as a start of the train job does."""
    embedder = train.fresh_embedder(config)
    view = train.view_of(config, embedder)
    loader = build_loader(
        config.data,
        config.shards_root,
        world,
        image_px=config.backbone.image_px,
        accumulate=1,
        seed=config.seed,
        view=view,
    )
    learner = objective.build(config, embedder, loader.labels, world)
    schedule = config.schedule.build(STEPS, epoch_steps=loader.epoch_steps, batch=config.data.batch)
    engine = config.engine.build(learner, config.optimizer, schedule, seed=config.seed)
    done = Start(run, config)

    def extra() -> dict[str, Any]:
        return {"judge": done.judge.state() if done.judge else {}}

    latest = run.latest_checkpoint()
    saved = engine.load(latest) if latest else {}
    agreement = Agreement(world)
    saving = config.checkpoint.model_copy(update={"every_steps": 1, "keep": keep})
    checkpoints = Checkpoints(engine, run, world, saving, agreement, extra=extra)
    watchers: list[loop.Watcher] = [done, checkpoints]
    if judging is not None:
        checked = configs.check(judge.Config, {"set": "shapes", "embed": {"workers": 0}, **judging}, where="test")
        model = judge.Model(engine, view, config.backbone.image_px)
        done.judge = Judge(
            checked,
            model,
            run,
            world,
            shards_root=config.shards_root,
            num_steps=STEPS,
            save=checkpoints.save,
            is_stopping=is_stopping,
        )
        done.judge.take_state(saved.get("judge", {}))
        done.judge.start()
        watchers = [done.judge, *watchers, Patience(done.judge)]
    with contextlib.closing(loader.draws(engine.step, until, num_steps=STEPS)) as draws:
        clock, stop = loop.Clock(), Stop(agreement)
        done.ending = loop.train(engine, draws, watchers, agreement, stop, beat=lambda phase: None, clock=clock)
    checkpoints.finish()
    engine.close()
    return done


def judged_twice(world: World, root: Path, sets: Path) -> dict[str, Any]:
    """By engine: what the judge says of some steps, and what the evaluate job says of their exports."""
    out: dict[str, Any] = {}
    for engine in ({"name": "plain"}, {"name": "zero", "stage": 3}):
        folder, job = root / str(engine["name"]), {}
        done = start(world, RunDir(folder / "train"), train_config(sets, engine), {"every_steps": 4}, keep=99)
        assert done.judge is not None
        for step in done.judge.curve[0][1:]:
            job[step] = evaluated(world, folder, done, step)
        out[str(engine["name"])] = (done.figures, done.judge.curve, job, done.run.embeddings.exists())
    return out


def evaluated(world: World, folder: Path, done: Start, step: int) -> dict[str, dict[str, float]]:
    """The evaluate job's metrics of a step's export."""
    export, run = folder / f"export-{step}", RunDir(folder / f"evaluate-{step}")
    if world.rank == 0:
        write_export(done.config, done.run.checkpoint(step), export)
    world.barrier()
    values = {"job": "evaluate", "run": {"name": "job"}, "shards_root": done.config.shards_root, "model": export}
    values |= {"baselines": ["chance"], "data": {"set": "shapes"}, "embed": {"workers": 0}}
    evaluate.run(configs.check(evaluate.Config, values, where="test"), run, world)
    world.barrier()
    metrics: dict[str, dict[str, float]] = read_json(run.report)["metrics"]
    return metrics


def test_the_figures_are_those_of_the_evaluate_job_for_an_export_of_that_step(tmp_path: Path, sets: Path) -> None:
    first, second = run_ranks(judged_twice, 2, tmp_path, sets)
    for engine, (figures, curve, job, is_left) in first.items():
        assert second[engine][1:] == (curve, job, is_left), "the ranks agree"
        assert curve[0] == [0, 4, STEPS], "before the first step, every fourth, after the last"
        assert [step for step, of_step in enumerate(figures, start=1) if of_step] == [4, STEPS]
        assert not is_left, "the embeddings are removed"
        for step, metrics in job.items():
            found = figures[step - 1]
            assert found.pop("evaluate_s") > 0
            wanted = {f"dev/{name}": value for name, value in metrics["merged"].items()}
            wanted |= {f"dev/{domain}/mMP@5": metrics[domain]["mMP@5"] for domain in ("warm", "cold")}
            assert found == pytest.approx(wanted, abs=1e-6), (engine, step)
            assert curve[1][curve[0].index(step)] == found["dev/mMP@5"]


def test_training_goes_on_as_if_nobody_had_looked(tmp_path: Path, sets: Path) -> None:
    config = train_config(sets, {"name": "plain"})
    alone = start(Alone(), RunDir(tmp_path / "alone"), config)
    judged = start(
        Alone(), RunDir(tmp_path / "judged"), config, {"every_steps": 1, "embed": {"batch": 5, "workers": 1}}
    )
    assert judged.losses == alone.losses and len(alone.losses) == STEPS


def test_a_run_stops_when_nothing_gets_better_and_so_does_one_that_was_cut(tmp_path: Path, sets: Path) -> None:
    still = train_config(sets, {"name": "plain"}, optimizer={"name": "adamw", "lr": 1e-12, "head_lr": 1e-12})
    judging = {"every_steps": 1, "patience": 2}
    whole = start(Alone(), RunDir(tmp_path / "whole"), still, judging)
    assert whole.judge is not None
    assert (whole.ending, len(whole.losses)) == ("early stop", 3), "best at 1, no better at 2 and 3"
    for cut in (1, 2):
        run = RunDir(tmp_path / f"cut-{cut}")
        start(Alone(), run, still, judging, until=cut)
        resumed = start(Alone(), run, still, judging)
        assert resumed.judge is not None
        assert (resumed.ending, len(resumed.losses)) == ("early stop", 3 - cut)
        assert resumed.judge.state() == whole.judge.state()
    again = start(Alone(), whole.run, still, judging, until=3)
    assert again.judge is not None and again.judge.has_seen_enough, "a start after the end has no step to make"


def test_the_best_step_stays_when_others_are_removed(tmp_path: Path, sets: Path) -> None:
    config = train_config(sets, {"name": "plain"}, optimizer={"name": "adamw", "lr": 0.01, "head_lr": 0.1})
    run = RunDir(tmp_path / "run")
    done = start(Alone(), run, config, {"every_steps": 1, "metric": "mAP@10"})
    assert done.judge is not None
    steps, values = done.judge.curve
    best = max(steps[1:], key=lambda step: (values[step], -step))
    assert best < STEPS, "the case must have a best step that is not the last"
    assert done.judge.best == run.best_checkpoint() == run.checkpoint(best)
    assert sorted(run.checkpoints.glob("step-*")) == [run.checkpoint(best), run.checkpoint(STEPS)]
    assert read_json(run.checkpoint(best) / "state.json")["extra"]["judge"]["best"] == [best, values[best]]


def test_a_train_run_exports_its_best_step_and_tracks_every_evaluation(tmp_path: Path, sets: Path) -> None:
    optimizer = {"name": "adamw", "lr": 0.01, "head_lr": 0.1}
    judging = {"set": "shapes", "every_steps": 1, "metric": "mAP@10", "patience": 3, "embed": {"workers": 0}}
    run = RunDir(tmp_path / "run")
    config = train_config(sets, {"name": "plain"}, optimizer=optimizer, evaluate=judging, tracking=SILENT)
    steps = train.run(config, run, Alone())["steps"]
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    values = {line["step"]: line["dev/mAP@10"] for line in lines}
    best = max(values, key=lambda step: (values[step], -step))
    assert list(values) == list(range(1, int(steps) + 1)) and best < steps
    assert read_json(run.export / "model.json")["step"] == best
    assert steps == min(best + 3, STEPS)


def test_better_means_by_more_than_min_delta(tmp_path: Path, sets: Path) -> None:
    config = train_config(sets, {"name": "plain"}, optimizer={"name": "adamw", "lr": 0.01, "head_lr": 0.1})
    done = start(Alone(), RunDir(tmp_path), config, {"every_steps": 1, "min_delta": 1.0})
    assert done.judge is not None and max(done.judge.curve[1]) > done.judge.curve[1][1]
    assert done.judge.state()["best"][0] == 1
    assert done.judge.state()["history"] is not done.judge.state()["history"], "a copy: it is written later"


def test_an_evaluation_that_a_preemption_cuts_short_is_made_up_for(tmp_path: Path, sets: Path) -> None:
    config, judging = train_config(sets, {"name": "plain"}), {"every_steps": 3, "first": False}
    whole = start(Alone(), RunDir(tmp_path / "whole"), config, judging)
    run = RunDir(tmp_path / "cut")
    cut = start(Alone(), run, config, judging, until=3, is_stopping=lambda: True)
    assert cut.judge is not None and whole.judge is not None
    assert cut.judge.curve == ([], []) and not run.embeddings.exists()
    resumed = start(Alone(), run, config, judging)
    assert resumed.judge is not None and resumed.judge.state() == whole.judge.state()
    assert resumed.losses == whole.losses[3:]
    made_up, last = resumed.figures[0], resumed.figures[-1]
    assert made_up.keys() == last.keys() - {"evaluate_s"}, "it took no time of the step that tells of it"


def test_a_best_step_that_cannot_be_saved_costs_no_run(
    tmp_path: Path, sets: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, write = RunDir(tmp_path / "run"), Snapshot.write

    def write_but_step_2(snapshot: Snapshot, folder: Path) -> dict[str, str]:
        if snapshot.state["step"] == 2:
            raise OSError(28, "No space left on device")
        return write(snapshot, folder)

    monkeypatch.setattr(Snapshot, "write", write_but_step_2)
    config = train_config(sets, {"name": "plain"}, optimizer={"name": "adamw", "lr": 1e-12, "head_lr": 1e-12})
    done = start(Alone(), run, config, {"every_steps": 2})
    assert done.judge is not None and done.judge.state()["best"][0] == 4
    assert "step 2 is the best so far and cannot be kept" in caplog.text


def troubled(world: World, root: Path, sets: Path) -> tuple[Any, list[int], str, list[str]]:
    """One trouble an evaluation, each on one rank; how it ended, and what was said."""
    now, said = [0], logging.Handler()
    told: list[str] = []
    said.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(judge.__name__).addHandler(said)
    scores, vectors = Judge._scores, embed._embedded

    def noting(self: Judge, step: int) -> Any:
        now[0] = step
        return scores(self, step)

    def broken(*args: Any) -> Iterator[Any]:
        for keys, vectors_ND in vectors(*args):
            yield keys, vectors_ND * (float("nan") if (now[0], world.rank) == (3, 1) else 1)

    def full_at(step: int, rank: int, act: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*args: Any) -> Any:
            if (now[0], world.rank) == (step, rank):
                raise OSError(28, "No space left on device")
            return act(*args)

        return acting

    Judge._scores, embed._embedded = noting, broken  # type: ignore[method-assign, assignment]
    RunDir.set_best = full_at(1, 0, RunDir.set_best)  # type: ignore[method-assign]
    embed._write_part = full_at(4, 1, embed._write_part)
    embed._join_keys = full_at(5, 0, embed._join_keys)
    config, judging = train_config(sets, {"name": "plain"}), {"every_steps": 1, "first": False}
    done = start(world, RunDir(root), config, judging)
    assert done.judge is not None and len(done.losses) == STEPS
    assert done.judge.best == done.run.best_checkpoint()
    told = [line for line in told if "given up" in line or "cannot" in line]
    return done.judge.state(), done.judge.curve[0], done.ending, told


def test_a_vector_that_is_no_number_and_a_full_disk_on_one_rank_cost_one_evaluation(tmp_path: Path, sets: Path) -> None:
    first, second = run_ranks(troubled, 2, tmp_path, sets)
    assert first == second, "the ranks agree"
    state, steps, ending, (unnamed, broken, unwritten, unjoined) = first
    assert (steps, ending) == ([1, 2, 6], "finished") and state["best"][0] in (2, 6)
    assert "step 1 is the best so far and cannot be kept: cannot be named: OSError" in unnamed
    assert broken.startswith("step 3: the evaluation is given up; rank 1: the vector of '")
    assert unwritten.startswith("step 4: the evaluation is given up; rank 1: OSError: [Errno 28]")
    assert unjoined.startswith("step 5: the evaluation is given up; rank 0: OSError: [Errno 28]")


def test_a_step_that_is_a_fault_is_judged_only_when_it_is_the_last(
    tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults, after = {2: "loss", 4: "overflow", 6: "gradient"}, Judge.after
    monkeypatch.setattr(
        Judge, "after", lambda self, report: after(self, replace(report, skipped=faults.get(report.step, "")))
    )
    config, judging = train_config(sets, {"name": "plain"}), {"every_steps": 2, "first": False}
    whole = start(Alone(), RunDir(tmp_path / "whole"), config, judging)
    assert whole.judge is not None and whole.judge.curve[0] == [3, 4, 6], "the next good step in its place"
    start(Alone(), RunDir(tmp_path / "cut"), config, judging, until=2)
    resumed = start(Alone(), RunDir(tmp_path / "cut"), config, judging)
    assert resumed.judge is not None and resumed.judge.state() == whole.judge.state()


def test_a_best_step_that_is_gone_gives_way_to_the_next(
    tmp_path: Path, sets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, config = RunDir(tmp_path / "run"), train_config(sets, {"name": "plain"})
    state = {"history": [(1, 2.0)], "best": (1, 2.0), "in_vain": 1}
    done = start(Alone(), run, config, {"every_steps": STEPS}, until=1)
    assert done.judge is not None
    done.judge.take_state(state)
    assert done.judge.best == run.checkpoint(1), "it is there"
    done.judge.take_state({**state, "best": (7, 2.0)})
    assert done.judge.best is None and "step-00000007, the best so far, is gone" in caplog.text


def test_mistakes_are_told_before_the_run(sets: Path) -> None:
    with pytest.raises(ConfigError, match=r"'mAP' is no metric; there are: mMP@5, R@1, R@5, R@10, mAP@10"):
        configs.check(judge.Config, {"set": "shapes", "metric": "mAP"}, where="test")
    assert judge.Config(set="shapes").problems(sets) == []
    [(key, text)] = judge.Config(set="shaped").problems(sets)
    assert key == "set" and "shapes" in text
    [(key, text)] = judge.Config(set="shapes", split="test").problems(sets)
    assert key == "split" and "has no test queries and index" in text
    assert list(judge.Config(set="shapes").digests(sets)) == ["set"]
