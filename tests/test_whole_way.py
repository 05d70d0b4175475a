"""Images -> shards -> submit -> ZeRO-2 on two ranks -> export -> sharded FAISS -> report, by the commands that users type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytestmark = pytest.mark.xdist_group("whole way")  # what its fixture makes takes long
ROOT = Path(__file__).resolve().parents[1]
TRAIN = """
job: train
run: {{name: {name}}}
runs_root: {root}/runs
shards_root: {root}/sets
backbone: {{name: timm, model: eva02_tiny_patch14_224, image_px: 28, weights: none}}
lora: {{rank: 4, last_blocks: 4}}
neck: {{name: linear, out: 16}}
head: {{name: arcface, margin: 0.2, scale: 16}}
data: {{mixture: {{shapes: 1.0}}, batch: 15}}
engine: {{name: zero, stage: 2}}
optimizer: {{lr: 5.0e-3, head_lr: 2.0e-2}}
length: {{steps: 24}}
checkpoint: {{every_steps: 5}}
tracking: {{wandb: {{mode: offline}}}}
"""
EVALUATE = """
job: evaluate
run: {{name: judged}}
runs_root: {root}/runs
shards_root: {root}/sets
model: {root}/runs/whole/export
data: {{set: shapes}}
"""


def draw_shapes(folder: Path) -> None:
    """Two domains of drawings: a class is a colour and a number of corners; 13 classes, 6 images each."""
    rng = np.random.default_rng(0)
    lines = ["image,domain,label,split"]
    for domain, colours in (("warm", ["#c33", "#e83"]), ("cold", ["#36c", "#3aa"])):
        for number in range(13 if domain == "warm" else 12):
            corners, colour = 3 + number // 2, colours[number % 2]
            for view in range(6):
                image = Image.new("RGB", (40, 40), tuple(int(v) for v in rng.integers(180, 255, 3)))
                turn, size = int(rng.integers(0, 360)), int(rng.integers(10, 18))
                ImageDraw.Draw(image).regular_polygon((20, 20, size), corners, turn, fill=colour)
                name = f"{domain}-{number}-{view}.png"
                image.save(folder / name)
                role = "train" if number < 8 else ("dev_query" if view == 0 else "dev_index")
                lines.append(f"{name},{domain},{number},{role}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")


def run(*command: str, expect: int = 0) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment())
    assert done.returncode == expect, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("WANDB_API_KEY", "RANK", "WORLD_SIZE")}


def submit(config: Path, *overrides: str, expect: int = 0) -> str:
    return run(*submit_command(config), *overrides, expect=expect)


def submit_command(config: Path) -> list[str]:
    launch = [sys.executable, "launcher/submit.py", "--cluster", "local", "--nodes", "1", "--tasks-per-node", "2"]
    return [*launch, f"config={config}"]


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def the_run(root: Path, name: str) -> Path:
    return (root / "runs" / name).resolve()


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards made, one run trained to its end without interruption, and evaluated."""
    root = tmp_path_factory.mktemp("way")
    (root / "images").mkdir()
    draw_shapes(root / "images")
    run(
        sys.executable,
        "-m",
        "shards",
        "make",
        "table",
        str(root / "images/table.csv"),
        "--out",
        str(root / "sets/shapes"),
    )
    for name in ("whole", "moved"):
        (root / f"{name}.yaml").write_text(TRAIN.format(name=name, root=root))
    (root / "evaluate.yaml").write_text(EVALUATE.format(root=root))
    submit(root / "whole.yaml")
    submit(root / "evaluate.yaml")
    return root


def test_the_run_folder_holds_what_the_contract_names(way: Path) -> None:
    folder = the_run(way, "whole")
    assert (folder / "state").read_text() == "done\n"
    for name in ("plan.json", "config.yaml", "code/jobs/train.py", "logs/0.log", "logs/1.jsonl", "report.html"):
        assert (folder / name).is_file(), name
    lines = metrics_of(folder)
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert {"epoch", "images", "loss", "lr", "grad_norm", "images_per_s", "data_wait_s", "time"} <= lines[0].keys()
    assert (folder / "checkpoints/latest").read_text() == "step-00000024\n"
    assert (folder / "export/model.safetensors").is_file() and (folder / "export/classes.txt").is_file()
    assert not list(folder.rglob("*.pt")) + list((folder / "checkpoints").rglob("*.pkl")), "no pickles"
    assert list(folder.glob("wandb/offline-run-*")), "W&B writes offline where there is no key"


def test_the_report_has_every_scope_and_baseline(way: Path) -> None:
    report = json.loads((the_run(way, "judged") / "report.json").read_text())
    assert report["schema"] == 1
    for scores in (report["metrics"], *report["baselines"].values()):
        assert set(scores) == {"merged", "warm", "cold"}
        assert {"mMP@5", "R@1"} <= scores["merged"].keys()
    assert list(report["baselines"]) and set(report["baselines"]) == {"chance", "raw_pixels", "untrained"}
    assert report["counts"]["merged"] == {"queries": 9, "judged": 9, "index": 45, "distractors": 0, "classes": 9}
    assert "launcher/submit.py" in report["command"]
    assert "<html" in (the_run(way, "judged") / "report.html").read_text()


def test_the_report_is_what_a_brute_force_loop_over_the_embeddings_finds(way: Path) -> None:
    from retrieval_train.evaluation.embed import Embeddings

    folder = the_run(way, "judged") / "embeddings" / "trained"
    query, index = Embeddings(folder / "query", 9), Embeddings(folder / "index", 45)
    query_QD, _ = query.vectors(range(len(query.parts)))
    index_ND, _ = index.vectors(range(len(index.parts)))
    query_keys, index_keys = query.keys(), index.keys()
    values = []
    for vector, key in zip(query_QD, query_keys, strict=True):
        scores = [np.float32(np.dot(vector.astype(np.float64), row.astype(np.float64))) for row in index_ND]
        ranked = sorted(range(45), key=lambda number: (-scores[number], index_keys[number].encode()))
        same = [index_keys[number].rpartition("-")[0] == key.rpartition("-")[0] for number in ranked]
        values.append(sum(same[:5]) / 5)  # every class has 5 images in the index
    report = json.loads((the_run(way, "judged") / "report.json").read_text())
    assert report["metrics"]["merged"]["mMP@5"] == pytest.approx(np.mean(values), abs=1e-12)


def test_a_run_that_is_cancelled_saves_and_goes_on_with_one_rank(way: Path) -> None:
    command = [*submit_command(way / "moved.yaml"), "checkpoint.every_steps=1000"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    folder = wait_for_step(way, "moved", 3, process)
    run(sys.executable, "launcher/status.py", "cancel", "moved", "--runs-root", str(way / "runs"))
    process.wait(60)
    assert (folder / "state").read_text() == "preempted\n"
    saved = int((folder / "checkpoints/latest").read_text().rpartition("-")[2])
    assert 3 <= saved < 24, "saved where it was told to stop: no regular step is due"
    alone = [part if part != "2" else "1" for part in command]
    run(*alone)
    lines, whole = metrics_of(folder), metrics_of(the_run(way, "whole"))
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in whole], rel=1e-3)


def test_the_export_job_gives_what_the_run_exported(way: Path) -> None:
    config = way / "export.yaml"
    config.write_text(f"job: export\nrun: {{name: again}}\nruns_root: {way}/runs\ntrain: {way}/runs/whole\n")
    command = [sys.executable, "launcher/submit.py", "--cluster", "local", f"config={config}"]
    run(*command)
    first, second = (json.loads((the_run(way, name) / "export/model.json").read_text()) for name in ("whole", "again"))
    assert first == second
    assert "train" in run(*command, "step=7", expect=2)


def wait_for_step(root: Path, name: str, step: int, process: subprocess.Popen[bytes]) -> Path:
    until = time.monotonic() + 200
    while time.monotonic() < until:
        assert process.poll() is None, process.stdout.read().decode() if process.stdout else ""
        link = root / "runs" / name
        if (link / "metrics.jsonl").is_file() and len(metrics_of_so_far(link.resolve())) >= step:
            return link.resolve()
        time.sleep(0.05)
    raise AssertionError(f"{name} did not reach step {step}")


def metrics_of_so_far(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("head.margn=0.3", "unknown key; did you mean head.margin?"),
        ("data.batch=-1", "data.batch"),
        ("data.mixture.shaeps=1.0", "did you mean"),
        ("init.model=nowhere/export", "is no export"),
    ],
)
def test_a_mistake_costs_one_message_and_leaves_nothing(way: Path, override: str, told: str) -> None:
    before = sorted((way / "runs").iterdir())
    out = submit(way / "whole.yaml", override, expect=2)
    assert told in out and "Traceback" not in out
    assert sorted((way / "runs").iterdir()) == before


def test_an_evaluation_without_an_evaluation_split_is_told(way: Path) -> None:
    source, bare = way / "sets/shapes", way / "sets/bare"
    manifest = json.loads((source / "manifest.json").read_text())
    bare.mkdir()
    manifest["shards"] = [shard for shard in manifest["shards"] if shard["split"] == "train"]
    (bare / "manifest.json").write_text(json.dumps(manifest))
    out = submit(way / "evaluate.yaml", "data.set=bare", expect=2)
    assert "set 'bare' has no dev queries and index to evaluate on" in out and "Traceback" not in out
