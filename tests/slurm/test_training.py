"""Real trainings on a real SLURM: preempted, with a node lost, stopped: they end as if nothing had been."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from launcher.starts import attempts, bad_nodes
from retrieval_train.rundir import RunDir
from tests.launcher.conftest import ROOT, Repo, wait_until
from tests.retrieval_train.data.conftest import draw
from tests.slurm.conftest import Slurm, job_of, wait_for_end, wait_for_ranks

pytestmark = pytest.mark.slurm
STEPS, BATCH, NEAR = 36, 16, 1e-5
TRAIN = f"""
job: train
run: {{name: it, device: cpu, threads: 1}}
shards_root: sets
backbone: {{name: timm, model: eva02_tiny_patch14_224, image_px: 28, weights: none, blocks: 2}}
neck: {{name: linear, out: 16}}
head: {{name: arcface, margin: 0.2, scale: 16}}
data: {{mixture: {{shapes: 1.0}}, batch: {BATCH}, ledger: true, workers: 0}}
engine: {{name: zero, stage: 2, precision: fp32}}
optimizer: {{name: adamw, lr: 1.0e-3}}
length: {{steps: {STEPS}}}
checkpoint: {{every_steps: 6}}
tracking: {{wandb: {{mode: disabled}}}}
"""


@pytest.fixture(scope="module")
def training(repo: Repo) -> Repo:
    """`train.yaml`, and 72 images of 9 classes."""
    images = repo.path / "images"
    draw(images, domains={"warm": 5, "cold": 4}, images=8)
    make = [sys.executable, "-m", "shards", "make", "folder", str(images), "--train-only", "--levels", "domain/class"]
    subprocess.run(
        [*make, "--shard-samples", "10", "--out", str(repo.path / "sets/shapes")],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (repo.path / "train.yaml").write_text(TRAIN)
    return repo


@pytest.fixture(scope="module")
def calm(training: Repo, cluster: Slurm) -> RunDir:
    """Four nodes, undisturbed."""
    run = submit(training, "calm", "--nodes", "4")
    (only,) = wait_for_end(run, starts=1, timeout_s=240)
    assert (only.kind, only.step) == ("done", STEPS)
    return run


@pytest.fixture(autouse=True)
def whole(cluster: Slurm) -> Iterator[None]:
    yield
    cluster.mend()


def submit(repo: Repo, name: str, *args: str) -> RunDir:
    ended = repo.python("launcher/submit.py", "--no-estimate", *args, "config=train.yaml", f"run.name={name}")
    assert ended.code == 0, ended.err
    return repo.run(name)


def lines(run: RunDir) -> list[dict[str, float]]:
    """Of metrics.jsonl; a line that is being written is left out."""
    text = run.metrics.read_text() if run.metrics.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wait_for_step(run: RunDir, step: int, *, start: int) -> None:
    """A step of that start."""

    def is_there() -> bool:
        starts = attempts.read(run)
        found = lines(run)
        return (
            len(starts) > start and bool(found) and found[-1]["step"] >= step and found[-1]["time"] > starts[-1].begun
        )

    wait_until(is_there, timeout_s=240)


def samples(run: RunDir) -> dict[tuple[int, int], str]:
    """(step, row) -> key. Steps that were done again have the same."""
    found: dict[tuple[int, int], str] = {}
    for file in run.ledger.glob("*.tsv"):
        for line in file.read_text().splitlines():
            step, row, key = line.split("\t")
            assert found.setdefault((int(step), int(row)), key) == key
    return found


def assert_the_same(run: RunDir, calm: RunDir) -> None:
    theirs, ours = lines(calm), lines(run)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == list(range(1, STEPS + 1))
    furthest = max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True))
    assert furthest <= NEAR
    assert len(samples(calm)) == STEPS * BATCH
    assert samples(run) == samples(calm)
    assert (run.state, calm.state) == ("done", "done")


def test_preempted_and_with_a_node_lost_a_training_of_four_nodes_ends_as_an_undisturbed_one(
    training: Repo, cluster: Slurm, calm: RunDir
) -> None:
    run = submit(training, "storm", "--nodes", "4")
    wait_for_step(run, 3, start=0)
    cluster.preempt("n3", seconds=1)
    wait_for_step(run, 16, start=1)
    cluster.crash("n2")
    wait_until(lambda: cluster.states(job_of(run)) == ["PENDING"], timeout_s=90)
    cluster.mend()
    ended = wait_for_end(run, starts=3, timeout_s=240)
    assert [attempt.kind for attempt in ended[:2]] == ["preempted", "node_failure"]
    assert (ended[1].at_fault, ended[1].words) == (("n2",), "lost n2")
    # SLURM may end what it finds on a node that came back so soon: one more that saved and stopped
    assert {attempt.kind for attempt in ended[2:-1]} <= {"preempted"}
    assert ended[-1].kind == "done"
    assert all(before.step == after.step_before for before, after in pairwise(ended))
    assert [attempt.step_before > 0 for attempt in ended[:3]] == [False, True, True]
    assert_the_same(run, calm)


def test_four_nodes_of_two_tasks_stopped_once_end_as_four_of_one(training: Repo, cluster: Slurm, calm: RunDir) -> None:
    run = submit(training, "wide", "--nodes", "4", "--tasks-per-node", "2")
    wait_for_step(run, 5, start=0)
    assert training.status("requeue", "wide").code == 0
    ended = wait_for_end(run, starts=2, timeout_s=300)
    assert [attempt.kind for attempt in ended] == ["preempted", "done"]
    assert_the_same(run, calm)


def test_two_starts_in_a_row_that_save_nothing_within_their_time_are_the_last(training: Repo, cluster: Slurm) -> None:
    run = submit(training, "short", "--time", "1", "--exclude", "n4")
    for start in range(2):
        wait_until(lambda start=start: len(attempts.read(run)) > start, timeout_s=90)  # type: ignore[misc]
        wait_for_ranks(cluster, run)
        cluster.tell("scancel", "--signal=USR2", job_of(run))  # as SLURM does, when it likes within the last minute
    first, second = wait_for_end(run, starts=2)
    assert [(a.kind, a.step, a.queued_again) for a in (first, second)] == [
        ("timed_out", 0, True),
        ("timed_out", 0, False),
    ]
    assert "give more --time" in second.words
    assert "give more --time" in run.error.read_text()


@pytest.mark.parametrize(
    ("lacks", "config", "words"),
    [
        ("room", "noop.yaml", "GB free on n1"),
        ("data", "train.yaml", "the run's config and data cannot be looked at: on n1"),
    ],
)
def test_a_node_that_the_preflight_names_is_left_out_of_the_next_start(
    training: Repo, cluster: Slurm, tmp_path: Path, lacks: str, config: str, words: str
) -> None:
    script = str(Path(__file__).with_name("slurm-cluster"))
    over = tmp_path if lacks == "room" else training.path / "sets"
    cluster.tell(script, "exec", "n1", "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(over))
    try:
        where = ("--no-estimate", "--exclude", "n4", "--nodes", "2", f"run.name={lacks}", "run.preflight=true")
        ended = training.python("launcher/submit.py", *where, f"config={config}", env={"TMPDIR": str(tmp_path)})
        assert ended.code == 0, ended.err
        first, second = wait_for_end(training.run(lacks), starts=2, timeout_s=120)
    finally:
        cluster.tell(script, "exec", "n1", "umount", str(over))
        bad_nodes.forget(training.path / "runs", "n1")
    assert (first.kind, first.at_fault, first.queued_again) == ("bad_node", ("n1",), True)
    assert words in first.words
    assert (second.kind, second.nodes) == ("done", ("n2", "n3"))


def test_what_a_requeue_costs_is_measured(training: Repo, cluster: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    """From the end of a start to the first step of the next, less what the scheduler takes between the two."""
    run = submit(training, "cost", "--nodes", "2")
    wait_for_step(run, 5, start=0)
    assert training.status("requeue", "cost").code == 0
    first, second = wait_for_end(run, starts=2, timeout_s=240)
    assert first.ended is not None and second.kind == "done"
    step = next(line["time"] for line in lines(run) if line["time"] > second.begun)
    accounting = ("sacct", "-X", "-D", "-n", "-P", "-j", job_of(run), "-o", "Start,End")
    (_, end), (start, _) = [line.split("|") for line in cluster.tell(*accounting).split()][-2:]
    scheduler_s = (datetime.fromisoformat(start) - datetime.fromisoformat(end)).total_seconds()
    with capsys.disabled():
        print(
            f"\nrequeue at 2 x 1: {step - first.ended - scheduler_s:.1f} s, besides {scheduler_s:.0f} s of the "
            f"scheduler's; until the supervisor {second.begun - first.ended:.1f} s, from there to a step "
            f"{step - second.begun:.1f} s; load {Path('/proc/loadavg').read_text().split()[0]}, {time.strftime('%H:%M')}"
        )
