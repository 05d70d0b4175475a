"""Runs killed with SIGKILL, any process at any moment, and repeated by the same command on other ranks and stages.

At the end they are what an undisturbed run is. A seed gives what is killed, when, and on what it goes on; it is in the name
of the test and in what a failure prints. `KILLS` is how many kills there are in all.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launcher.starts.processes import group_members
from retrieval_train.rundir import RunDir, read_json
from tests.retrieval_train.data.conftest import draw

pytestmark = pytest.mark.xdist_group("kills")  # what its fixture makes takes long
ROOT = Path(__file__).resolve().parents[1]
STEPS, STAGES, NEAR = 30, (0, 1, 2, 3), 1e-4
TRAIN = """
job: train
run: {{name: {name}, threads: 1}}
runs_root: {root}/runs
shards_root: {root}/sets
backbone: {{name: timm, model: eva02_tiny_patch14_224, image_px: 28, weights: none, blocks: 2, drop_path: 0.2}}
neck: {{name: linear, out: 16}}
lora: {lora}
head: {{name: arcface, margin: 0.2, scale: 16, sub_centres: 2}}
data: {{mixture: {{shapes: 1.0}}, batch: 12, ledger: true}}
engine: {{name: zero, precision: fp32, accumulate: {accumulate}}}
optimizer: {{name: adamw, lr: 1.0e-3}}
length: {{steps: {steps}}}
checkpoint: {{every_steps: 3}}
tracking: {{wandb: {{mode: disabled}}}}
"""
KINDS = {"lora": {"lora": "{rank: 4, dropout: 0.1}", "accumulate": 1}, "whole": {"lora": "null", "accumulate": 2}}
MOMENTS = ("start", "step", "write", "seal", "export")
VICTIMS = ("rank", "worker", "controller", "command", "all")


def kills_of_runs(total: int) -> list[int]:
    """1, 2, 3, 1, 2, 3 ... kills, `total` in all; one seed a run."""
    kills: list[int] = []
    for count in itertools.cycle((1, 2, 3)):
        if sum(kills) >= total:
            return kills
        kills.append(min(count, total - sum(kills)))
    raise AssertionError("a cycle ends never")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("kills"))


def make_set(root: Path) -> Path:
    """`root` with 72 images of 9 classes in root/sets/shapes."""
    draw(root / "images", domains={"warm": 5, "cold": 4}, images=8)
    make = [sys.executable, "-m", "shards", "make", "folder", str(root / "images"), "--train-only"]
    make += ["--levels", "domain/class", "--shard-samples", "10", "--out", str(root / "sets/shapes")]
    subprocess.run(make, cwd=ROOT, check=True, capture_output=True)
    return root


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> dict[str, RunDir]:
    """kind -> a run that nobody killed."""
    runs = {}
    for kind in KINDS:
        start = Start(config(root, kind, kind), ranks=2, stage=2, workers=1)
        assert start.wait(240) == 0, start.told()
        runs[kind] = RunDir((root / "runs" / kind).resolve())
    return runs


@pytest.mark.parametrize(("seed", "kills"), enumerate(kills_of_runs(int(os.environ.get("KILLS", "2")))))
def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(
    root: Path, undisturbed: dict[str, RunDir], seed: int, kills: int
) -> None:
    chance, kind = random.Random(seed), sorted(KINDS)[seed % 2]
    link, told = root / "runs" / f"killed{seed}", [f"seed {seed} ({kind}):"]
    starts: list[Start] = []
    groups: set[int] = set()
    file = config(root, link.name, kind)
    for _ in range(kills):
        plan = Kill.drawn(chance)
        start = Start(file, ranks=chance.choice((1, 2, 3)), stage=chance.choice(STAGES), workers=chance.choice((0, 1)))
        whom = plan.carry_out(start, link, groups)
        starts.append(start)
        if plan.victim == "controller":  # the ranks go on without it; the same command finds them and waits
            told.append(f"  {start.what}; killed {whom} {plan.delay_s:.3f} s after {plan.moment}")
            continue
        code = start.wait(120)
        told.append(f"  {start.what}; killed {whom} {plan.delay_s:.3f} s after {plan.moment}; it ended with {code}")
        assert code in (0, 1, -signal.SIGKILL), "\n".join([*told, start.told()])
        if chance.random() < 0.25 and (file_damaged := damage(link, chance.random())):
            told.append(f"  damaged {file_damaged}")
    last = Start(file, ranks=chance.choice((1, 2, 3)), stage=chance.choice(STAGES), workers=0)
    code = last.wait(240)
    told.append(f"  {last.what}; it ended with {code}")
    assert code == 0, "\n".join([*told, last.told()])
    groups.add(group_of(link))
    for start in starts:
        start.wait(60)
    try:
        told.append(f"  furthest from the undisturbed run: {compare(link, undisturbed[kind], groups)}")
    except AssertionError as error:
        raise AssertionError("\n".join(told)) from error
    print("\n" + "\n".join(told))


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_it_taken(
    root: Path, undisturbed: dict[str, RunDir]
) -> None:
    whole = undisturbed["lora"]
    run = RunDir(root / "again" / whole.path.name)
    shutil.copytree(whole.path, run.path)
    run.set_state("preempted")
    damaged = damage(run.path, 0.5)
    assert damaged is not None and damaged.parent.name == f"step-{STEPS:08d}"
    file = root / "again.yaml"
    file.write_text(config(root, "lora", "lora").read_text().replace(f"{root}/runs", f"{root}/again"))
    start = Start(file, ranks=1, stage=0, workers=0)
    assert start.wait(240) == 0, start.told()
    compare(run.path, whole, {group_of(run.path)})
    assert f"{damaged} was changed or damaged: going on from the checkpoint before it" in run.log(0).read_text()
    assert (run.checkpoints / f"damaged-{damaged.parent.name}").is_dir()


def config(root: Path, name: str, kind: str) -> Path:
    file = root / f"{name}.yaml"
    file.write_text(TRAIN.format(name=name, root=root, steps=STEPS, **KINDS[kind]))
    return file


@dataclass
class Start:
    """The command, once."""

    config: Path
    ranks: int
    stage: int
    workers: int
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.output = self.config.with_suffix(".out")
        command = [sys.executable, "launcher/submit.py", "--cluster", "local", "--nodes", "1"]
        command += ["--tasks-per-node", str(self.ranks), f"config={self.config}", f"engine.stage={self.stage}"]
        command += [f"data.workers={self.workers}"]
        environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)

    @property
    def what(self) -> str:
        return f"{self.ranks} ranks of {self.workers} workers at stage {self.stage}"

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self, seconds: float) -> int:
        return self.process.wait(seconds)

    def told(self) -> str:
        return self.output.read_text(errors="replace")


@dataclass(frozen=True)
class Kill:
    """What to kill, and when."""

    moment: str
    victim: str
    steps: int
    """So many more than the run had when it was started again."""
    delay_s: float
    """After the moment."""
    draw: float
    """Which of several ranks or workers."""

    @classmethod
    def drawn(cls, chance: random.Random) -> Kill:
        moment = chance.choice(MOMENTS)
        longest_s = {"start": 12.0, "step": 0.1, "write": 0.02, "seal": 0.003, "export": 0.5}[moment]
        return cls(moment, chance.choice(VICTIMS), chance.randint(1, 8), chance.uniform(0, longest_s), chance.random())

    def carry_out(self, start: Start, link: Path, groups: set[int]) -> str:
        """Wait, kill; in words, what was. `groups` takes the process group of the run."""
        steps = STEPS if self.moment == "export" else min(steps_done(link) + self.steps, STEPS)
        until = time.monotonic() + 240
        while self.moment != "start" and steps_done(link) < steps and not start.has_ended():
            assert time.monotonic() < until, f"no step {steps} in 240 s\n{start.told()}"
            time.sleep(0.002)
        sealed, until = latest(link), time.monotonic() + 2  # the last checkpoint may be through already
        while not self._has_come(link, sealed) and not start.has_ended() and time.monotonic() < until:
            time.sleep(0.0005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            start.wait(self.delay_s)
        group, state = group_of(link), RunDir(link).state
        groups.add(group)
        pids = self._pids(start, group)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        whom = "the command" if pids == [start.process.pid] else f"{self.victim} ({len(pids)} processes)"
        return f"{whom if pids else 'nothing'} of a run that was {state}"

    def _has_come(self, link: Path, sealed: str) -> bool:
        if self.moment == "write":
            return any(link.glob("checkpoints/.step-*"))
        if self.moment == "seal":
            return any(link.glob("checkpoints/.step-*/*s*.json")) or latest(link) != sealed
        return True

    def _pids(self, start: Start, group: int) -> list[int]:
        """Where there is no such process, as no worker, the run's command itself."""
        mine = [] if start.has_ended() else [start.process.pid]
        members = group_members(group) if group else []
        ranks = [pid for pid in members if pid != group and is_rank(pid)]
        kinds = {"rank": ranks, "worker": [pid for pid in members if pid != group and pid not in ranks]}
        if self.victim == "all":
            return [*members, *mine]
        if self.victim == "controller":
            return [group] if group in members else mine
        one_of = kinds.get(self.victim)
        return [one_of[int(self.draw * len(one_of))]] if one_of else mine


def damage(link: Path, draw: float) -> Path | None:
    """Change a byte of a file of the newest checkpoint, where there is one before it and nobody reads it."""
    run = RunDir(link)
    newest, whole = run.latest_checkpoint(), sorted(run.checkpoints.glob("step-*/state.json"))
    if newest is None or len(whole) < 2 or newest == whole[0].parent or group_members(group_of(link)):
        return None
    files = sorted(path for path in newest.iterdir() if path.suffix != ".json" and path.stat().st_size)
    file = files[int(draw * len(files))]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file.relative_to(link)


def is_rank(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"submitit.core._submit" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def group_of(link: Path) -> int:
    """The controller's pid and process group; 0 before there is one."""
    with contextlib.suppress(FileNotFoundError):
        return int(read_json(RunDir(link).ticket)["pid"])
    return 0


def latest(link: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return (link / "checkpoints/latest").read_text()
    return ""


def steps_done(link: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return (link / "metrics.jsonl").read_text().count("\n")
    return 0


def compare(link: Path, whole: RunDir, groups: set[int]) -> str:
    """Asserts that the run is as the undisturbed one; the largest differences, in words."""
    run = RunDir(link.resolve())
    assert run.state == "done" and not run.error.exists()
    until = time.monotonic() + 15
    while any(group_members(group) for group in groups - {0}) and time.monotonic() < until:
        time.sleep(0.1)
    assert not {group: found for group in groups - {0} if (found := group_members(group))}, "processes are left"
    left = [str(path.relative_to(run.path)) for path in run.path.rglob(".*") if "code" not in path.parts]
    assert [name for name in left if name.startswith("checkpoints/")] == []
    mine, theirs = ([json.loads(line) for line in one.metrics.read_text().splitlines()] for one in (run, whole))
    assert [line["step"] for line in mine] == list(range(1, STEPS + 1)), "every step once"
    rows = [line for file in run.ledger.glob("*.tsv") for line in file.read_text().splitlines()]
    assert sorted(rows) == sorted(row for file in whole.ledger.glob("*.tsv") for row in file.read_text().splitlines())
    furthest = {
        name: max(abs(a[name] - b[name]) / abs(b[name]) for a, b in zip(mine, theirs, strict=True))
        for name in ("loss", "grad_norm")
    }
    for file in ("model.safetensors", "centres.safetensors"):
        ours, wanted = load_file(run.export / file), load_file(whole.export / file)
        assert ours.keys() == wanted.keys()
        gaps = (float((ours[name].float() - wanted[name].float()).abs().max()) for name in wanted)
        furthest[file] = max(gaps)  # absolute: AdamW steps weights whose gradient is all but rounding as far as others
    assert (run.export / "classes.txt").read_text() == (whole.export / "classes.txt").read_text()
    assert all(gap < NEAR for gap in furthest.values()), furthest
    return ", ".join([*(f"{name} {gap:.1e}" for name, gap in furthest.items()), *(f"left: {name}" for name in left)])
