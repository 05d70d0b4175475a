"""A step that is not finite is left out as if its rows had never come, on all ranks; a second look says where it began."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from launcher.starts.processes import group_members
from retrieval_train.data.batch import Batch
from retrieval_train.engine import plain, zero
from retrieval_train.engine.checkpoint import persistent_buffers
from retrieval_train.engine.diagnosis import look_again
from retrieval_train.engine.engine import EngineConfig
from retrieval_train.engine.faults import Faults, FaultsConfig
from retrieval_train.engine.optimizers import adamw
from retrieval_train.engine.schedule import ScheduleConfig
from retrieval_train.engine.stepper import Stepper
from retrieval_train.heads import arcface
from retrieval_train.heads.centres import Head
from retrieval_train.learner import Learner
from retrieval_train.losses import softmax
from retrieval_train.rundir import RunDir, read_json
from retrieval_train.world import Alone, World
from tests.processes import ROOT, run_ranks
from tests.retrieval_train.data.conftest import draw

CLASSES = [f"toys/{name}" for name in "abcde"]
ROWS, MICRO, STEPS = 12, 2, 10
ENGINES: list[EngineConfig] = [
    plain.Config(accumulate=MICRO),
    *(zero.Config(stage=s, accumulate=MICRO) for s in (0, 1, 2, 3)),
]


class NanBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * math.nan


class Passing(nn.Module):
    """Gives on what it gets; where it `is_broken` its backward does not."""

    is_broken = False

    def forward(self, x: Tensor) -> Tensor:
        return NanBack.apply(x) if self.is_broken else x  # type: ignore[no-any-return]


class Net(nn.Module):
    """With batch norm: its running statistics take up whatever comes by."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        first = nn.Linear(
            12, 16, bias=False
        )  # the bias before a batch norm has no effect, only rounding for a gradient
        self.backbone = nn.Sequential(first, nn.BatchNorm1d(16), nn.GELU(), Passing(), nn.Linear(16, 16))
        self.neck = nn.Linear(16, 8)

    def draw(self, seed_N: Tensor | None) -> None:
        """It drops nothing."""

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.neck(self.backbone(image.flatten(1).float() / 255))
        return out


def engine_of(config: EngineConfig, world: World) -> Stepper:
    head = Head(arcface.Config(margin=0.3), CLASSES, dim=8, world=world, seed=3)
    learner = Learner(Net(), head, softmax.Config(), world)
    engine = config.build(
        learner, adamw.Config(lr=0.02), ScheduleConfig().build(STEPS, epoch_steps=STEPS, batch=ROWS), seed=0
    )
    assert isinstance(engine, Stepper)
    return engine


def micro_batches(step: int, world: World) -> list[Batch]:
    """2 of 6 rows each."""
    generator = torch.Generator().manual_seed(step)
    batches, rows = [], ROWS // MICRO // world.size
    for part in range(MICRO):
        image = torch.randint(0, 250, (ROWS // MICRO, 3, 2, 2), generator=generator, dtype=torch.uint8)
        label = torch.randint(0, len(CLASSES), (len(image),), generator=generator)
        mine = range(world.rank * rows, (world.rank + 1) * rows)
        keys = tuple(f"toys/{part}-{row}" for row in mine)
        chosen = slice(mine.start, mine.stop)
        counts = (rows,) * world.size
        batches.append(Batch(image[chosen], label[chosen], counts, 1 / MICRO, row_N=tuple(mine), key_N=keys))
    return batches


def state_of(engine: Stepper) -> dict[str, Tensor]:
    """Weights, moments, centres and this rank's own statistics."""
    files = engine.snapshot({}).tensors
    found = {f"{file} {name}": tensor.clone() for file, tensors in files.items() for name, tensor in tensors.items()}
    return found | {name: tensor.clone() for name, tensor in persistent_buffers(engine.learner.embedder).items()}


# --- what can go wrong

Poison = Callable[[Stepper, int, int], Any]  # (engine, micro-batch, row): puts a hook somewhere


def in_row(part: int, row: int, value: float) -> Callable[..., Tensor]:
    """A forward hook: from its `part`-th call of two on, one row of the output is no number."""
    calls = itertools.count()

    def hook(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        if next(calls) % MICRO != part:
            return out
        is_row = torch.arange(len(out))[:, None] == row
        return out.masked_fill(is_row, value)

    return hook


def embedding(engine: Stepper, part: int, row: int) -> Any:
    return engine.learner.embedder.get_submodule("neck").register_forward_hook(in_row(part, row, math.nan))


def activation(engine: Stepper, part: int, row: int) -> Any:
    return engine.learner.embedder.get_submodule("backbone.0").register_forward_hook(in_row(part, row, math.inf))


class NanLogits:
    """Of a row of the global batch, that may be another rank's, with this rank's classes."""

    def __init__(self, engine: Stepper, part: int, row: int) -> None:
        assert engine.learner.head is not None
        self.head, calls = engine.learner.head, itertools.count()
        score: Any = self.head.score

        def spoiled(block: Any) -> Any:
            def spoil(number: int) -> Any:
                logit_bc, row_b = block(number)
                logit_bc[row] = math.nan
                return logit_bc, row_b

            return spoil

        def poisoned_score(*args: Any, **kwargs: Any) -> Any:
            scored = score(*args, **kwargs)
            if next(calls) % MICRO == part:
                scored.block = spoiled(scored.block)
            return scored

        self.head.score = poisoned_score  # type: ignore[method-assign]

    def remove(self) -> None:
        del self.head.score


class Broken:
    """A layer whose backward gives no numbers, until it is removed."""

    def __init__(self, engine: Stepper, part: int, row: int) -> None:
        self.layer = engine.learner.embedder.get_submodule("backbone.3")
        self.layer.is_broken = True  # type: ignore[assignment]

    def remove(self) -> None:
        self.layer.is_broken = False  # type: ignore[assignment]


def bias(engine: Stepper, part: int, row: int) -> Any:
    return engine.learner.embedder.get_parameter("neck.bias").register_hook(lambda grad: grad * math.inf)


def large(engine: Stepper, part: int, row: int) -> Any:
    """Finite, but its square is not."""
    return engine.learner.embedder.get_parameter("neck.bias").register_hook(lambda grad: torch.full_like(grad, 1e25))


def centre_gradient(engine: Stepper, part: int, row: int) -> Any:
    assert engine.learner.head is not None
    return engine.learner.head.centre_CKD.register_hook(lambda grad: grad * math.nan)


class NanCentre:
    """The first class of this rank."""

    def __init__(self, engine: Stepper, part: int, row: int) -> None:
        assert engine.learner.head is not None
        self.centre = engine.learner.head.centre_CKD.data
        self.before = self.centre[0].clone()
        self.centre[0, 0, 3] = math.nan

    def remove(self) -> None:
        self.centre[0] = self.before


@contextmanager
def poisoned(
    engine: Stepper, poison: Poison, *, ranks: list[int], world: World, part: int = 0, row: int = 0
) -> Iterator[None]:
    hooks = [poison(engine, part, row)] if world.rank in ranks else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# --- left out


def faulty_steps(world: World) -> dict[int, tuple[Poison, list[int], int, str]]:
    """step -> what, on which ranks, in which micro-batch, and what the report calls it."""
    last, everywhere = [world.size - 1], list(range(world.size))
    return {
        1: (activation, last, 1, "loss"),
        3: (Broken, everywhere, 0, "gradient"),
        4: (centre_gradient, last, 0, "gradient"),
        6: (embedding, everywhere, 0, "loss"),
        7: (bias, last, 0, "gradient"),
        8: (large, last, 0, "gradient"),
    }


def train_with_faults(engine: Stepper, world: World) -> list[float]:
    """Losses and norms of the steps that were made."""
    figures, faults = [], faulty_steps(world)
    while engine.step < STEPS:
        poison, ranks, part, kind = faults.get(engine.step, (embedding, [], 0, ""))
        before = state_of(engine) if kind else {}
        with poisoned(engine, poison, ranks=ranks, world=world, part=part):
            report = engine.train_step(micro_batches(engine.step, world))
        assert report.skipped == kind, f"{report} at {engine.config}"
        after = state_of(engine) if kind else {}
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        assert not changed, f"{poison} at {engine.config}"
        figures += [] if kind else [report.loss, report.grad_norm]
    assert engine.updates == STEPS - len(faults)
    return figures


def train_without(engine: Stepper, world: World) -> list[float]:
    """As if the rows of those steps had never come."""
    figures = []
    while engine.step < STEPS:
        if engine.step in faulty_steps(world):
            engine.step += 1
            continue
        report = engine.train_step(micro_batches(engine.step, world))
        figures += [report.loss, report.grad_norm]
    return figures


def left_out(world: World) -> None:
    logging.disable(logging.WARNING)
    twin = engine_of(ENGINES[0], world)
    wanted, wanted_state = train_without(twin, world), state_of(twin)
    for config in ENGINES:
        engine = engine_of(config, world)
        assert train_with_faults(engine, world) == pytest.approx(wanted, rel=2e-5), config
        for name, tensor in state_of(engine).items():
            torch.testing.assert_close(tensor, wanted_state[name], rtol=1e-4, atol=2e-6, msg=f"{name} at {config}")
        engine.close()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_with_faults_is_the_run_in_which_those_steps_never_happened(ranks: int) -> None:
    run_ranks(left_out, ranks)


# --- explained

EXPLAINED: list[tuple[Poison, list[int], int, str]] = [
    (activation, [1], 1, "rank 1: first in the output of backbone.0; samples toys/1-4"),
    (embedding, [0], 0, "rank 0: first in the output of neck; samples toys/0-1"),
    (NanCentre, [1], 0, "rank 1: in the class centres of toys/c"),
    (
        NanLogits,
        [1],
        0,
        "rank 0: in the loss (nan) or its gradient, of finite embeddings and centres; samples toys/0-1",
    ),
    (Broken, [1], 0, "rank 1: first in the backward of backbone.3; samples toys/0-3, toys/0-4, toys/0-5"),
    (bias, [0], 0, "rank 0: first in the gradient of neck.bias"),
]
FORWARD_ONLY = 4  # the first of them, which stage 3 explains too


def explained(world: World, folder: Path) -> None:
    logging.disable(logging.WARNING)
    for config in ENGINES:
        figures = {}
        for looks in (True, False):
            engine = engine_of(config, world)
            figures[looks] = [found for case in EXPLAINED for found in explain(engine, world, *case, looks=looks)]
            if looks:
                explain_weights(engine, world, folder / f"{config.name}-{getattr(config, 'stage', '')}")
            engine.close()
        assert figures[True] == figures[False], "a second look must leave no trace"


def explain(
    engine: Stepper, world: World, poison: Poison, ranks: list[int], part: int, wanted: str, *, looks: bool
) -> list[float]:
    """A faulty step, looked at again or not, and the figures of the good one after it."""
    batches = micro_batches(engine.step, world)
    with poisoned(engine, poison, ranks=ranks, world=world, part=part, row=1):
        report = engine.train_step(batches)
        assert report.skipped
        if looks:
            found = "; ".join(text for text in world.every(look_again(engine, engine.learner, batches)) if text)
            is_told = engine.replicated() or poison in [case[0] for case in EXPLAINED[:FORWARD_ONLY]]
            assert found == (wanted if is_told else ""), f"{found!r} at {engine.config}"
    after = engine.train_step(micro_batches(engine.step, world))
    assert not after.skipped
    return [after.loss, after.grad_norm]


def explain_weights(engine: Stepper, world: World, folder: Path) -> None:
    """A weight that is no number, which no later step mends; told by the run's own watcher."""
    name = "backbone.4.weight"
    weight = engine.half.whole(name).clone()
    weight[2, 2] = math.nan
    engine.half.set_updates(engine.updates)
    engine.half.put(name, weight, {kind: torch.zeros_like(weight) for kind in engine.optimizer.moments})
    run = RunDir(folder)
    faults = Faults(FaultsConfig(skip=1), engine, engine.learner, run, world)
    endings = []
    for batches in faults.watched(micro_batches(step, world) for step in range(2)):
        endings.append(faults.after(engine.train_step(batches)))
    assert endings == [None, "not finite"], "there is no checkpoint to go back to"
    world.barrier()
    for rank in range(world.size):
        keys = ", ".join(f"toys/0-{row}" for row in range(3 * rank, 3 * rank + 3))
        assert (
            f"rank {rank}: first in the output of backbone.4, whose weight is not finite; samples {keys}" in faults.last
        )
    assert len(run.faults.read_text().splitlines()) == 2 and faults.skipped == 2


def test_a_second_look_names_rank_layer_and_samples_and_leaves_no_trace(tmp_path: Path) -> None:
    run_ranks(explained, 2, tmp_path)


# --- noted down


def faults_of(run: RunDir, world: World) -> tuple[Faults, Stepper]:
    engine = engine_of(ENGINES[0], world)
    return Faults(FaultsConfig(), engine, engine.learner, run, world), engine


def leave_out(faults: Faults, engine: Stepper) -> None:
    step = engine.step
    with poisoned(engine, embedding, ranks=[0], world=Alone()):
        for batches in faults.watched([micro_batches(step, Alone())]):
            assert faults.after(engine.train_step(batches)) is None


def test_a_full_disk_costs_a_note_and_neither_the_run_nor_the_lowered_rate(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.roll_backs.mkdir(parents=True)  # in the place of the files
    run.faults.parent.write_text("in the way")
    faults, engine = faults_of(run, Alone())
    leave_out(faults, engine)
    faults.roll_back(to_step=0, from_step=1)
    assert (engine.lr_scale, faults.skipped, len(faults.roll_backs)) == (0.5, 1, 1)
    run.roll_backs.rmdir()
    run.faults.parent.unlink()
    run.faults.mkdir(parents=True)
    leave_out(faults, engine)
    run.faults.rmdir()
    leave_out(faults, engine)
    assert [json.loads(line)["step"] for line in run.faults.read_text().splitlines()] == [1, 2]
    run.faults.rename(run.path / "before")
    run.faults.mkdir()
    leave_out(faults, engine)
    faults.roll_back(to_step=0, from_step=3)
    run.faults.rmdir()
    leave_out(faults, engine)
    lines = run.faults.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4], "nothing of what is done again"
    assert [json.loads(line)["from"] for line in run.roll_backs.read_text().splitlines()] == [1, 3]
    assert engine.lr_scale == 0.25


def test_a_run_without_its_files_takes_its_roll_backs_from_the_checkpoint(tmp_path: Path) -> None:
    here, engine = faults_of(RunDir(tmp_path / "here"), Alone())
    for step in (7, 8):
        here.roll_back(to_step=5, from_step=step)
    elsewhere, engine = faults_of(RunDir(tmp_path / "elsewhere"), Alone())
    assert engine.lr_scale == 1
    elsewhere.take_roll_backs(here.roll_backs)
    assert (engine.lr_scale, elsewhere.roll_backs) == (0.25, here.roll_backs)
    elsewhere.take_roll_backs(here.roll_backs[:1])  # an older checkpoint's, after going back to it
    again, engine = faults_of(RunDir(tmp_path / "elsewhere"), Alone())
    assert (engine.lr_scale, again.roll_backs) == (0.25, here.roll_backs)


# --- gone back from

LR = 5e-3
DIVERGES = """
job: train
run: {{name: {name}, threads: 1, device: cpu}}
runs_root: {root}/runs
shards_root: {root}
backbone: {{name: timm, model: eva02_tiny_patch14_224, image_px: 28, weights: none, blocks: 2}}
neck: {{name: linear, out: 16}}
head: {{name: arcface, margin: 0.2, scale: 16}}
data: {{mixture: {{shapes: 1.0}}, batch: 16, view: {{resize: squeeze}}, workers: 0}}
engine: {{name: zero, stage: 2}}
optimizer: {{lr: {lr}, weight_decay: 2000}}  # every step multiplies the weights by 1 - lr x 2000: with 5e-3 by -9
schedule: {{name: constant, warmup: 0}}
length: {{steps: {steps}}}
checkpoint: {{every_steps: 5}}
faults: {{skip: {skip}, roll_backs: {roll_backs}}}
tracking: {{wandb: {{mode: disabled}}}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults")
    draw(root / "images", domains={"warm": 5, "cold": 4}, images=8)
    make = [sys.executable, "-m", "shards", "make", "folder", str(root / "images"), "--train-only"]
    make += ["--levels", "domain/class", "--out", str(root / "shapes")]
    subprocess.run(make, cwd=ROOT, check=True, capture_output=True)
    return root


def start(root: Path, name: str, **fields: float) -> subprocess.Popen[str]:
    """The command that a user types, on two ranks."""
    file = root / f"{name}.yaml"
    file.write_text(DIVERGES.format(root=root, name=name, lr=LR, **fields))
    command = [sys.executable, "launcher/submit.py", "--cluster", "local", "--nodes", "1", "--tasks-per-node", "2"]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    command.append(f"config={file}")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True)


def test_a_diverging_run_goes_back_with_a_lower_rate_that_a_kill_does_not_raise(root: Path) -> None:
    run, fields = RunDir(root / "runs/mends"), {"steps": 16, "skip": 2, "roll_backs": 4}
    first = start(root, "mends", **fields)
    while not run.roll_backs.exists() and first.poll() is None:
        time.sleep(0.02)
    assert first.poll() is None, first.communicate()[0]
    for pid in (first.pid, *group_members(int(read_json(run.ticket)["pid"]))):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    first.communicate()
    second = start(root, "mends", **fields)
    told = second.communicate(timeout=240)[0]
    assert second.returncode == 0, told
    roll_backs = [json.loads(line) for line in run.roll_backs.read_text().splitlines()]
    assert roll_backs and all(line["to"] % 5 == 0 and line["to"] < line["from"] for line in roll_backs)
    assert all("first in the output of backbone.blocks." in line["found"] for line in roll_backs)
    metrics = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(1, 17)), "every step once"
    assert {metrics[0]["lr"], metrics[-1]["lr"]} == {LR, LR * 0.5 ** len(roll_backs)}


def test_a_run_that_lower_rates_do_not_mend_fails_with_what_to_change(root: Path) -> None:
    run = RunDir(root / "runs/fails")
    process = start(root, "fails", steps=60, skip=0, roll_backs=1)
    told = process.communicate(timeout=240)[0]
    assert process.returncode == 1 and run.state == "failed", told
    assert len(run.roll_backs.read_text().splitlines()) == 1
    error = run.error.read_text()
    for part in ("not a finite number", "first in the output of backbone.blocks.", "optimizer.lr", "rank 0"):
        assert part in error, error
    assert error.splitlines()[0] in told
