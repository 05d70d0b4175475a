"""Real runs, killed with SIGKILL at random steps and repeated on other ranks and workers, train on the same samples."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.retrieval_train.data.conftest import draw

pytestmark = pytest.mark.xdist_group("stream")  # what its fixture makes takes long
ROOT = Path(__file__).resolve().parents[1]
STEPS, RANKS, WORKERS = 40, (1, 2, 3, 1), (1, 2, 1, 0)
TRAIN = """
job: train
run: {{name: {name}}}
runs_root: {root}/runs
shards_root: {root}/sets
backbone: {{name: timm, model: eva02_tiny_patch14_224, image_px: 28, weights: none, blocks: 1}}
neck: {{name: linear, out: 8}}
head: {{name: arcface, margin: 0.1, scale: 16}}
data: {{mixture: {{shapes: 1.0, more: 2.0}}, batch: 16, ledger: true, workers: 1, order: {order}}}
engine: {{name: plain}}
length: {{steps: {steps}}}
checkpoint: {{every_steps: 4}}
tracking: {{wandb: {{mode: disabled}}}}
"""
ORDERS = {
    "mixed": "{name: mixed, streams: 2}",
    "pk": "{name: pk, classes: 4, images: 4, coverage: full}",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume")
    for name, domains, images in (("shapes", {"warm": 5, "cold": 4}, 9), ("more", {"grey": 4}, 6)):
        draw(root / "images" / name, domains=domains, images=images)
        make = [sys.executable, "-m", "shards", "make", "folder", str(root / "images" / name), "--train-only"]
        make += ["--levels", "domain/class", "--shard-samples", "10", "--out", str(root / "sets" / name)]
        subprocess.run(make, cwd=ROOT, check=True, capture_output=True)
    return root


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_killed_runs_train_on_the_samples_of_the_order_on_1_2_3_and_1_ranks(root: Path, order: str) -> None:
    config = root / f"{order}.yaml"
    text = TRAIN.format(name=order, root=root, order=ORDERS[order], steps=STEPS)
    config.write_text(text.replace("more: 2.0", "more: 1.0") if order == "pk" else text)
    rng = random.Random(order)
    done = 0
    for ranks, workers in zip(RANKS[:-1], WORKERS[:-1], strict=True):
        done = kill_at(start(config, ranks, workers), root / "runs" / order, done + rng.randint(5, 9))
    last = start(config, RANKS[-1], WORKERS[-1])
    assert last.wait(200) == 0, last.stdout.read().decode() if last.stdout else ""
    run = (root / "runs" / order).resolve()
    lines = [line.split("\t") for file in (run / "ledger").glob("*.tsv") for line in file.read_text().splitlines()]
    trained = {(int(step), int(row)): key for step, row, key in lines}
    assert len(trained) == len(lines) == STEPS * 16, "every row of every step once"
    assert len(list((run / "ledger").glob("*.tsv"))) == 3
    status = [sys.executable, "launcher/status.py", "seen", str(run)]
    for step in (1, 17, STEPS):
        told = subprocess.run([*status, "--step", str(step)], cwd=ROOT, check=True, capture_output=True, text=True)
        keys = [line.split("\t")[1] for line in told.stdout.splitlines()]
        assert keys == [trained[step - 1, row] for row in range(16)], "what arithmetic says was trained on"
    some = trained[23, 5]
    told = subprocess.run([*status, some], cwd=ROOT, check=True, capture_output=True, text=True)
    wanted = [f"step {step + 1}, row {row}," for (step, row), key in sorted(trained.items()) if key == some]
    assert [line[: line.index(" epoch")] for line in told.stdout.splitlines()[1:]] == wanted
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))


def start(config: Path, ranks: int, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "launcher/submit.py", "--cluster", "local", "--nodes", "1"]
    command += ["--tasks-per-node", str(ranks), f"config={config}", f"data.workers={workers}"]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def kill_at(process: subprocess.Popen[bytes], run: Path, step: int) -> int:
    """SIGKILL to every process of the run once it has done `step` steps; how many it had."""
    until = time.monotonic() + 200
    while steps_done(run) < step:
        assert process.poll() is None, process.stdout.read().decode() if process.stdout else ""
        assert time.monotonic() < until, f"no step {step} in 200 s"
        time.sleep(0.005)
    found = subprocess.run(["pgrep", "-f", str(run.resolve())], capture_output=True, text=True, check=False)
    for pid in map(int, found.stdout.split()):
        if pid != process.pid:
            os.kill(pid, signal.SIGKILL)
    process.wait(60)
    return steps_done(run)


def steps_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.is_file() else 0
