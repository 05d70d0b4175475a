"""Train runs with what the stream can do: sizes that change, orders that follow the losses, mistakes told in one message."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from jobs import job
from jobs.train import Config
from launcher import status
from retrieval_train import config as configs
from retrieval_train.config import ConfigError
from retrieval_train.data.config import DataConfig
from retrieval_train.data.intake import Intake
from retrieval_train.data.loader import build_loader
from retrieval_train.data.reader import Reader, Row
from retrieval_train.engine.engine import Report
from retrieval_train.engine.loop import Clock
from retrieval_train.engine.saving import Checkpoints
from retrieval_train.engine.stop import Stop
from retrieval_train.engine.watchers import Track
from retrieval_train.models import exported
from retrieval_train.models.embedder import Embedder
from retrieval_train.rundir import RunDir, read_json, write_json
from retrieval_train.tracking import Config as Tracking
from retrieval_train.tracking import open_tracker
from retrieval_train.world import World
from shards.manifest import Manifest, Sample
from tests.jobs.conftest import one_rank
from tests.processes import run_ranks
from tests.retrieval_train.data.conftest import make_sets

pytestmark = pytest.mark.usefixtures("one_process")
ROOT = Path(__file__).resolve().parents[2]
TINY = {"name": "timm", "model": "test_vit", "image_px": 16, "weights": "none", "blocks": 1}
HEAD = {"name": "arcface", "margin": 0.1, "scale": 16}
GROWING = {"resolutions": [{"until": 0.5, "px": 16}, {"until": 1.0, "px": 32}]}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See make_sets."""
    return make_sets(tmp_path_factory.mktemp("sets"))


def config(root: Path, sets: Path, **more: Any) -> dict[str, Any]:
    """A train config; keys of `data` are added to those that are there."""
    data = {"mixture": {"shapes": 1.0, "more": 1.0}, "batch": 12, "workers": 0, "ledger": True, **more.pop("data", {})}
    values = {
        "job": "train",
        "run": {"name": "one", "threads": 1},
        "runs_root": str(root / "runs"),
        "shards_root": str(sets),
        "backbone": TINY,
        "neck": {"name": "linear", "out": 8},
        "head": HEAD,
        "engine": {"name": "plain"},
        "length": {"steps": 4},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
    return values | more | {"data": data}


def trained(root: Path, sets: Path, **more: Any) -> RunDir:
    """A run of one rank, in this process, to its end."""
    run = RunDir(root / "runs" / "one")
    run.path.mkdir(parents=True)
    run.config.write_text(yaml.safe_dump(config(root, sets, **more)))
    job.start(run.path)
    return run


def metrics(run: RunDir) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "no step twice, none left out"
    return lines


def losses(run: RunDir) -> list[dict[str, float]]:
    return [{key: line[key] for key in line if key.startswith("loss")} for line in metrics(run)]


def goes_on_from(run: RunDir, step: int) -> None:
    """As a start after a kill does: what came after this checkpoint is there but not saved."""
    run.set_latest(run.checkpoint(step))
    job.start(run.path)


def keys_of(run: RunDir) -> list[list[str]]:
    """Of every step, the keys in the order of its rows."""
    found: dict[int, dict[int, str]] = {}
    for file in run.ledger.glob("*.tsv"):
        for line in file.read_text().splitlines():
            step, row, key = line.split("\t")
            found.setdefault(int(step), {})[int(row)] = key
    return [[found[step][row] for row in sorted(found[step])] for step in sorted(found)]


# --- image sizes


def test_the_image_size_changes_and_a_run_goes_on_exactly_in_either_stretch(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[int] = []
    forward = Embedder.forward

    def noted(embedder: Embedder, image_NCHW: Tensor) -> Tensor:
        if embedder.training:
            sides.append(image_NCHW.shape[-1])
        return forward(embedder, image_NCHW)

    monkeypatch.setattr(Embedder, "forward", noted)
    run = trained(
        tmp_path,
        sets,
        backbone=TINY | {"image_px": 32},
        data=GROWING,
        length={"steps": 8},
        checkpoint={"every_steps": 2, "keep": 9},
    )
    assert sides[3:] == [16] * 4 + [32] * 4, "the first ones check the adapters and count the FLOPs of each size"
    assert [line["image_px"] for line in metrics(run)] == [16] * 4 + [32] * 4
    whole, vectors = losses(run), exported.load(run.export)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    for step in (2, 6):
        sides.clear()
        goes_on_from(run, step)
        assert sides[3:] == ([16] * 4 + [32] * 4)[step:]
        assert losses(run) == whole
    assert torch.equal(exported.load(run.export)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), vectors)
    assert exported.read_card(run.export)[0].backbone.image_px == 32


@pytest.mark.parametrize(
    ("backbone", "data", "key", "told"),
    [
        (
            TINY,
            GROWING,
            "data.resolutions ",
            "ends with 32 px, but .* is 16; end with px: 16 or set backbone.image_px=32",
        ),
        (
            TINY | {"model": "eva02_tiny_patch14_224", "image_px": 28},
            {"resolutions": [{"until": 0.5, "px": 30}, {"until": 1.0, "px": 28}]},
            "data.resolutions.0.px ",
            "30 px are no whole number of .* patches of 14 px; take 28 or 42",
        ),
        (
            TINY,
            {"strong": {"preset": "ucu_strong"}},
            "data.strong ",
            r"no loss here takes it \(softmax\); leave it out or add one under aux",
        ),
        (
            TINY,
            {"unlabelled": {"mixture": {"more": 1.0}, "batch": 4}},
            "data.unlabelled ",
            r"no loss here takes it \(softmax\); leave it out or add one under aux",
        ),
    ],
)
def test_what_does_not_fit_is_told_before_anything_starts(
    sets: Path, tmp_path: Path, backbone: dict[str, Any], data: dict[str, Any], key: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=f"{key} *.*{told}"):
        job.check(config(tmp_path, sets, backbone=backbone, data=data), where="a config")


@pytest.mark.parametrize(
    ("ranks", "values", "told"),
    [
        (12, {}, []),
        (13, {}, ["data.batch 12 in 1 micro-batches gives 13 ranks"]),
        (14, {"head": None}, ["data.batch 12 in 1 micro-batches gives 14 ranks"]),
        (14, {"head": HEAD | {"shard_within": "node"}, "data": {"batch": 14}}, []),
        (14, {"data": {"batch": 14}}, ["data 13 classes cannot be shared by 14 ranks; use fewer ranks"]),
        (14, {"data": {"batch": 14, "mixture": {"gone": 1.0}}}, []),
        (4, {"engine": {"name": "plain", "accumulate": 4}}, ["data.batch 12 in 4 micro-batches gives 4 ranks"]),
        (4, {"data": {"unlabelled": {"mixture": {"more": 1.0}, "batch": 3}}}, ["data.unlabelled.batch 3 in 1"]),
    ],
)
def test_ranks_without_rows_or_classes_are_told_before_anything_starts(
    sets: Path, tmp_path: Path, ranks: int, values: dict[str, Any], told: list[str]
) -> None:
    found = configs.check(Config, config(tmp_path, sets, **values), where="a config").problems_with(ranks)
    assert len(found) == len(told)
    assert all(" ".join(problem).startswith(words) for problem, words in zip(found, told, strict=True)), found


def test_a_backbone_of_one_size_is_told_before_the_first_step(sets: Path, tmp_path: Path) -> None:
    one_size = {"name": "timm", "model": "cait_xxs24_224", "image_px": 32, "weights": "none"}
    with pytest.raises(ValueError, match=r"takes no images of 16 px, which data\.resolutions asks for \(Input height"):
        trained(tmp_path, sets, backbone=one_size, data=GROWING)
    assert not RunDir(tmp_path / "runs/one").metrics.is_file()


# --- orders


def test_shares_follow_the_losses_and_a_run_goes_on_with_those_it_had(sets: Path, tmp_path: Path) -> None:
    order = {"name": "mixed", "by": "domain", "share": "loss", "every": 128}
    run = trained(
        tmp_path,
        sets,
        data={"order": order},
        length={"steps": 200},
        optimizer={"lr": 0.002, "head_lr": 0.02},
        checkpoint={"every_steps": 100, "keep": 9},
    )
    whole, keys = losses(run), keys_of(run)
    assert all({"loss", "loss/warm", "loss/cold", "loss/grey"} >= line.keys() for line in whole)
    state = read_json(run.checkpoint(200) / "state.json")["extra"]["order"]
    names, shares = state["components"], state["shares"]
    assert names == ["cold", "grey", "warm"] and len(shares) == 3, "settled after steps 64 and 192"
    last_losses: dict[str, float] = {}
    for line in whole[:192]:
        last_losses |= line
    assert shares[2] == [last_losses[f"loss/{name}"] for name in names]
    for period, steps in enumerate((keys[:128], keys[128:])):
        rows = Counter(key.partition("/")[0] for step in steps for key in step)
        for name, share in zip(names, shares[period], strict=True):
            assert rows[name] == pytest.approx(len(steps) * 12 * share / sum(shares[period]), abs=2)
    assert shares[1] != shares[0]
    assert len(read_json(run.checkpoint(100) / "state.json")["extra"]["order"]["shares"]) == 2
    goes_on_from(run, 100)
    assert losses(run) == whole and keys_of(run) == keys
    assert read_json(run.checkpoint(200) / "state.json")["extra"]["order"] == state


def parts(names: list[str], count: int) -> list[list[str]]:
    size = len(names) // count
    return [names[at : at + size] for at in range(0, len(names), size)]


@pytest.fixture(scope="module")
def class_of(sets: Path) -> dict[str, str]:
    """Key -> domain/class."""
    found = {}
    for name in ("shapes", "more"):
        manifest = Manifest.load(sets / name)
        for shard in manifest.select("train"):
            samples = [manifest.read(shard, place) for place in range(shard.samples)]
            found.update({sample.key: f"{sample.meta['domain']}/{sample.meta['label']}" for sample in samples})
    assert len(set(found.values())) == 13
    return found


@pytest.mark.parametrize(
    "order",
    [
        {"name": "grouped", "groups": 2},
        {"name": "balanced", "per_class": 5},
        {"name": "pk", "classes": 4, "images": 3},
    ],
    ids=lambda order: order["name"],
)
def test_orders_by_groups_and_classes_train(
    sets: Path, tmp_path: Path, class_of: dict[str, str], order: dict[str, Any]
) -> None:
    run = trained(tmp_path, sets, data={"order": order})
    steps = [[class_of[key] for key in keys] for keys in keys_of(run)]
    assert run.state == "done" and [len(classes) for classes in steps] == [12] * 4
    for classes in steps:
        if order["name"] == "grouped":
            assert all(len({name.partition("/")[0] for name in part}) == 1 for part in parts(classes, 2))
        if order["name"] == "pk":
            assert all(len(set(part)) == 1 for part in parts(classes, 4)) and len(set(classes)) == 4
    if order["name"] == "balanced":
        assert max(Counter(name for classes in steps for name in classes).values()) <= 5
    reported = [{key[5:] for key in line if key.startswith("loss/")} for line in metrics(run)]
    assert reported == [{name.partition("/")[0] for name in classes} for classes in steps], "domains that had rows"


# --- what a run has seen


def test_what_was_seen_is_told_from_anywhere_and_not_for_a_set_that_changed(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sets, tmp_path / "work/sets")
    data = {"order": {"name": "mixed", "by": "domain", "share": "loss", "every": 128}, "cache_gb": 0.001}
    run = trained(
        tmp_path,
        tmp_path / "work/sets",
        data=data,
        length={"steps": 140},
        checkpoint={"every_steps": 100, "keep": 9},
    )
    values = config(tmp_path, Path("sets"), data=data | {"store": {"scratch": "$NO_SUCH_VARIABLE"}})
    run.config.write_text(yaml.safe_dump(values))
    write_json(run.plan, {"cwd": str(tmp_path / "work")})
    keys, lines = keys_of(run), run.metrics.read_text().splitlines(keepends=True)
    monkeypatch.chdir(tmp_path)
    assert status.main(["seen", str(run.path), "--step", "140"]) == 0
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == keys[139]
    shutil.rmtree(run.checkpoints)  # as if none had been saved yet: the shares from step 129 on are not known
    assert status.main(["seen", str(run.path), "--step", "128"]) == 0
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == keys[127]
    assert status.main(["seen", str(run.path), "--step", "129"]) == 2
    told = capsys.readouterr().err
    assert "has done 140 steps" in told and "can tell of steps 1 to 128" in told and len(lines) == 140
    manifest = tmp_path / "work/sets/more/manifest.json"
    values = json.loads(manifest.read_text())
    values["shards"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(values))
    assert status.main(["seen", str(run.path), "--step", "1"]) == 2
    assert "the shard set more is not what it was when one began" in capsys.readouterr().err


# --- what ends a run


@pytest.mark.parametrize("steps", [0, 2])
def test_a_run_that_must_stop_saves_before_it_waits_for_its_data_workers(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    workers: list[int] = []
    save, asked = Checkpoints.save, count()
    monkeypatch.setattr(Stop, "agreed", lambda stop: "time" if next(asked) == steps else None)

    def noted(checkpoints: Checkpoints) -> None:
        workers.append(len(multiprocessing.active_children()))
        return save(checkpoints)

    monkeypatch.setattr(Checkpoints, "save", noted)
    with pytest.raises(job.Preempted, match=f"time at step {steps}" + ("; saved" if steps else "$")):
        trained(tmp_path, sets, data={"workers": 2})
    assert workers == ([2] if steps else []) and not multiprocessing.active_children()
    run = RunDir(tmp_path / "runs/one")
    if steps:
        saved = read_json(run.checkpoint(2) / "state.json")["extra"]["intake"]
        assert saved == {"rows": 24, "bad": 0, "bad_of": {}}, "the step that was drawn is done again"
    monkeypatch.undo()
    one_rank(monkeypatch)
    job.start(run.path)
    assert run.state == "done" and [len(keys) for keys in keys_of(run)] == [12] * 4
    extra = read_json(run.checkpoint(4) / "state.json")["extra"]
    assert extra["intake"] == {"rows": 48, "bad": 0, "bad_of": {}}


def test_a_set_that_changed_since_the_run_began_is_told_before_a_step(sets: Path, tmp_path: Path) -> None:
    for name in ("shapes", "more"):
        shutil.copytree(sets / name, tmp_path / "sets" / name)
    run = trained(tmp_path, tmp_path / "sets", checkpoint={"every_steps": 2, "keep": 9})
    run.set_latest(run.checkpoint(2))
    before = run.metrics.read_bytes()
    manifest = tmp_path / "sets/more/manifest.json"
    values = json.loads(manifest.read_text())
    values["shards"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="the shard set more is not what it was when one began: the order would be"):
        job.start(run.path)
    assert run.metrics.read_bytes() == before and "not what it was" in run.error.read_text()


def submit(config_file: Path, *, ranks: int) -> subprocess.Popen[str]:
    launch = [sys.executable, "launcher/submit.py", "--cluster", "local", "--nodes", "1"]
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")
    return subprocess.Popen(
        [*launch, "--tasks-per-node", str(ranks), f"config={config_file}"],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key not in names},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_too_many_bad_samples_end_all_ranks_with_one_message(sets: Path, tmp_path: Path) -> None:
    for name in ("shapes", "more"):
        shutil.copytree(sets / name, tmp_path / "sets" / name)
    shapes = Manifest.load(tmp_path / "sets/shapes")
    worst = shapes.select("train")[0]
    for place in range(4):
        with (shapes.folder / worst.file).open("r+b") as file:
            file.seek(int(shapes.sidecar(worst)[place]["image_at"]))
            file.write(b"\0" * 400)
    values = config(tmp_path, tmp_path / "sets", data={"max_bad_fraction": 0.001, "workers": 1}, length={"steps": 400})
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(values))
    process = submit(tmp_path / "one.yaml", ranks=2)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1, out
    assert out.count("samples could not be read") == 1 and "Traceback" not in out, out
    assert f"the worst shards: shapes/{worst.file} (" in out and "data.max_bad_fraction 0.001" in out
    [run] = (tmp_path / "runs").glob("one-*")
    assert RunDir(run).state == "failed" and len(metrics(RunDir(run))) < 400
    bad = [json.loads(line) for file in (run / "bad").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert {line["shard"] for line in bad} == {worst.file} and {line["place"] for line in bad} <= set(range(4))


def test_a_data_worker_that_is_killed_ends_the_run_with_its_message(sets: Path, tmp_path: Path) -> None:
    values = config(tmp_path, sets, data={"workers": 1}, length={"steps": 100_000})
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(values))
    process = submit(tmp_path / "one.yaml", ranks=2)
    link = tmp_path / "runs/one"
    until = time.monotonic() + 120
    while not (link / "metrics.jsonl").is_file() or (link / "metrics.jsonl").stat().st_size == 0:
        assert process.poll() is None and time.monotonic() < until, process.stdout.read() if process.stdout else ""
        time.sleep(0.05)
    os.kill(workers_of(link.resolve())[-1], signal.SIGKILL)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in out, out
    assert out.count("a data worker of rank") == 1 and "take fewer data.workers" in out, out
    assert not workers_of(link.resolve()), "nothing is left behind"


def workers_of(run: Path) -> list[int]:
    """Data workers: processes of the run that were forked by a rank, not started by the controller."""
    found = subprocess.run(["pgrep", "-f", str(run)], capture_output=True, text=True, check=False).stdout.split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline") for pid in found}
    there = {pid: file.read_bytes() for pid, file in commands.items() if file.is_file()}
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in there}
    ranks = {pid for pid, parent in parents.items() if b"launcher.starts.controller" in there.get(parent, b"")}
    return [pid for pid, parent in parents.items() if parent in ranks]


# --- figures


def report_of(step: int, *, images: int, rows: int, wait_s: float) -> Report:
    """A step that was nothing but its wait."""
    spans = dict.fromkeys(("step_s", "forward_s", "backward_s", "update_s", "embed_s"), 0.01)
    figures = {"loss": 1.0, "lr_of_group": {"neck": 0.1, "centres": 0.1}, "grad_norm": 1.0, "image_px": 16}
    return Report(step=step, images=images, rows=rows, wait_s=wait_s, **spans, **figures)  # type: ignore[arg-type]


def slow_second_rank(world: World, sets: Path, folder: Path) -> list[dict[str, Any]]:
    """The metrics of 12 steps in which every read of rank 1 takes 20 ms."""
    data = DataConfig(mixture={"shapes": 1.0}, batch=12, workers=1)
    loader = build_loader(data, sets, world, image_px=16, accumulate=1, seed=0)
    if world.rank == 1:
        quick = Reader.read_row

        def slow(self: Reader, row: Row) -> Sample:
            time.sleep(0.02)
            return quick(self, row)

        Reader.read_row = slow  # type: ignore[method-assign]
    run = RunDir(folder)
    intake = Intake(world, bad_file=run.bad / f"{world.rank}.jsonl", ledger_file=None, max_bad_fraction=0.0)
    off = Tracking.model_validate({"wandb": {"mode": "disabled"}})
    tracker = open_tracker(off, run, is_first=world.rank == 0, values={})
    track = Track(
        tracker,
        epoch_steps=loader.epoch_steps,
        num_steps=12,
        clock=Clock(),
        of_step=[],
        of_ranks=[lambda report: intake.agree()],
    )
    with contextlib.closing(loader.draws(0, 12)) as draws:
        for step, micro_batches in enumerate(intake.watched(draws, first=0), start=1):
            world.barrier()  # as the gradients do
            rows, wait_s = len(micro_batches[0].row_N), sum(batch.wait_s for batch in micro_batches)
            track.after(report_of(step, images=sum(micro_batches[0].counts), rows=rows, wait_s=wait_s))
    tracker.close()
    return metrics(run) if world.rank == 0 else []


def test_a_slow_rank_is_named_in_the_metrics(sets: Path, tmp_path: Path) -> None:
    lines, _ = run_ranks(slow_second_rank, 2, sets, tmp_path)
    told, last = [line for line in lines if "data_wait_max_rank" in line]
    assert (told["step"], last["step"]) == (10, 12), "the figures of the last two steps are told too"
    assert told["data_wait_max_rank"] == 1
    own = sum(line["data_wait_s"] for line in lines[:10]) / 10
    assert own < 0.06 < 0.1 < told["data_wait_max_s"], "rank 0 waits for rank 1 in its collectives, not for data"
    assert told["data_wait_mean_s"] == pytest.approx((own + told["data_wait_max_s"]) / 2, abs=0.001)
    assert told["data_read_core_s"] > 6 * 0.02, "seconds a step over all ranks"
    assert told["bad_samples"] == 0
