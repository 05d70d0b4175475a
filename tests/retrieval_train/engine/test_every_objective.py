"""Every file of heads/ and losses/ trains on two ranks, is saved, and goes on on three like one process that never stopped.

The cases are made from the two folders: a new file has one by being there. Its settings are its defaults, or what SMALL says.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from jobs import train
from jobs.training import objective
from retrieval_train import config as configs
from retrieval_train.choice import Chosen
from retrieval_train.data.batch import Batch
from retrieval_train.data.labels import Labels
from retrieval_train.data.view import View
from retrieval_train.engine import plain
from retrieval_train.engine.checkpoint import persistent_buffers
from retrieval_train.engine.optimizers import sgd
from retrieval_train.engine.schedule import ScheduleConfig
from retrieval_train.engine.stepper import Stepper
from retrieval_train.models.backbones.backbone import BackboneConfig, Built
from retrieval_train.models.batch_norm import sync_batch_norm
from retrieval_train.models.embedder import build_embedder
from retrieval_train.models.necks import linear
from retrieval_train.world import Alone, World
from tests.processes import ROOT, run_ranks
from tests.retrieval_train.engine.test_engines import save

RULES, LOSSES = (Chosen(f"retrieval_train.{folder}").configs() for folder in ("heads", "losses"))
STEPS, HALF = 4, 2
ROWS, UNLABELLED = 11, 5  # divisible by neither 2 nor 3
DOMAINS = ("cars", "toys")
CLASSES = tuple(f"{domain}/{number}" for domain in DOMAINS for number in "abcdef")[:-1]
LABELS = Labels(CLASSES, np.arange(1, 1 + len(CLASSES)), (), DOMAINS)

SMALL: dict[
    str, dict[str, Any]
] = {  # where the defaults are large, or so slow or so far off that nothing would be seen
    "rule adaface": {"momentum": 0.3},
    "rule curricularface": {"momentum": 0.3},
    "rule magface": {"norm_min": 0.5, "norm_max": 4, "norm_weight": 2},
    "loss distillation": {"teacher_dim": 6},
    "loss simsiam": {"projection": 12, "hidden": 4},
    "loss xbm": {"bank": 16},  # a step and a half
}


class Case(NamedTuple):
    head: dict[str, Any] | None
    loss: dict[str, Any]


def settings(kind: str, name: str) -> dict[str, Any]:
    return {"name": name, **SMALL.get(f"{kind} {name}", {})}


def case_of_loss(name: str) -> Case:
    loss: Any = LOSSES[name](**settings("loss", name))
    rule = "linear" if name == "bce" else "normface"
    return Case({"name": rule} if loss.needs_head else None, settings("loss", name))


def cases() -> dict[str, Case]:
    rules = {f"rule {name}": Case(settings("rule", name), {"name": "softmax"}) for name in RULES}
    return rules | {f"loss {name}": case_of_loss(name) for name in LOSSES}


# --- one case in one world


class TinyBackbone(BackboneConfig):
    name: Literal["tiny"] = "tiny"

    @property
    def is_pretrained(self) -> bool:
        return False

    def build(self, *, with_weights: bool = True) -> Built:
        module = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 16))
        return Built(module, 16, (0.5,) * 3, (0.25,) * 3, View())


@cache
def config_of(name: str) -> train.Config:
    """What a run of the case would have, though its images and its embedder are ours."""
    given = {
        "job": "train",
        "run": {"name": "one"},
        "shards_root": "none",
        "backbone": {"name": "timm", "model": "none"},
        "data": {"mixture": {"none": 1.0}, "batch": ROWS},
        "engine": {"name": "plain"},
        "length": {"steps": STEPS},
        **cases()[name]._asdict(),
    }
    return configs.check(train.Config, given, where=name)


def engine_of(name: str, world: World) -> Stepper:
    embedder = build_embedder(TinyBackbone(), linear.Config(out=8), seed=0)
    learner = objective.build(config_of(name), embedder, LABELS, world)
    sync_batch_norm(embedder, world)
    # not AdamW: where batch norm takes a gradient away, it makes whole steps of what rounding left
    optimizer = sgd.Config(lr=0.1)
    rates = ScheduleConfig().build(STEPS, epoch_steps=STEPS, batch=ROWS)
    return plain.Config().build(learner, optimizer, rates, seed=0)


def rows_of(rows: int, seed: int, world: World) -> dict[str, Any]:
    """This rank's of `rows` random images, seen twice."""
    cuts = [rows * rank // world.size for rank in range(world.size + 1)]
    mine = slice(cuts[world.rank], cuts[world.rank + 1])
    generator = torch.Generator().manual_seed(seed)
    weak, strong = torch.randint(0, 255, (2, rows, 3, 2, 2), generator=generator, dtype=torch.uint8)
    numbers = tuple(range(rows))[mine]
    return {
        "image_NCHW": weak[mine],
        "strong_NCHW": strong[mine],
        "counts": tuple(stop - start for start, stop in zip(cuts, cuts[1:], strict=False)),
        "weight": 1.0,
        "row_N": numbers,
        "key_N": tuple(f"row{number}" for number in numbers),
    }


def batch_of(name: str, step: int, world: World) -> Batch:
    """Two or three images of each of four classes, in any order: a class is spread over ranks."""
    generator = torch.Generator().manual_seed(step)
    classes = torch.randperm(len(CLASSES), generator=generator)[:4]
    label = classes.repeat(3)[torch.randperm(12, generator=generator)][:ROWS]
    domain = torch.tensor([DOMAINS.index(class_name.split("/")[0]) for class_name in CLASSES])[label]
    found, rest = rows_of(ROWS, step, world), rows_of(UNLABELLED, 100 + step, world)
    mine, loss = list(found["row_N"]), config_of(name).loss
    if not loss.needs_strong:
        found["strong_NCHW"] = None
    if loss.takes_unlabelled:
        found["unlabelled"] = Batch(**rest, label_N=torch.full((len(rest["row_N"]),), -1))
    return Batch(**found, label_N=label[mine], domain_N=domain[mine])


def steps(engine: Stepper, name: str, until: int) -> list[list[float]]:
    """Of every step the loss, and its mean over the rows of each domain."""
    figures = []
    while engine.step < until:
        report = engine.train_step([batch_of(name, engine.step, engine.learner.world)])
        assert not report.skipped, f"{name}: the step was left out for its {report.skipped}"
        figures.append([report.loss, *report.loss_of_domain.values()])
    return figures


def state_of(engine: Stepper) -> dict[str, Tensor]:
    """What a step leaves behind beside trained weights: running state of rules and losses, batch norm's means."""
    found = {**engine.learner.running(), **persistent_buffers(engine.learner.embedder)}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


# --- all cases in all worlds


def first_half(world: World, folder: Path) -> dict[str, list[list[float]]]:
    logging.disable(logging.WARNING)
    found = {}
    for name in cases():
        engine = engine_of(name, world)
        found[name] = steps(engine, name, HALF)
        save(engine, folder / name, {}, world)
    return found


def second_half(world: World, folder: Path) -> dict[str, tuple[list[list[float]], dict[str, Tensor]]]:
    logging.disable(logging.WARNING)
    found = {}
    for name in cases():
        engine = engine_of(name, world)
        engine.load(folder / name)
        found[name] = steps(engine, name, STEPS), state_of(engine)
    return found


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


def test_every_rule_and_every_loss_goes_on_on_three_ranks_from_the_checkpoint_of_two(tmp_path: Path) -> None:
    assert SMALL.keys() <= cases().keys(), "settings of what is not there"
    wanted, state = {}, {}
    for name in cases():
        engine = engine_of(name, Alone())
        before = {key: tensor for key, tensor in state_of(engine).items() if tensor.numel()}
        wanted[name] = steps(engine, name, STEPS)
        state[name] = state_of(engine)
        assert all(not torch.equal(tensor, state[name][key]) for key, tensor in before.items()), f"{name}: stands still"
    for of_rank in run_ranks(first_half, 2, tmp_path):
        check_figures(of_rank, {name: figures[:HALF] for name, figures in wanted.items()})
    for of_rank in run_ranks(second_half, 3, tmp_path):
        check_figures(
            {name: figures for name, (figures, _) in of_rank.items()},
            {name: figures[HALF:] for name, figures in wanted.items()},
        )
        for name, (_, found) in of_rank.items():
            assert found.keys() == state[name].keys(), name
            for key, tensor in found.items():
                assert torch.allclose(tensor, state[name][key], rtol=1e-5, atol=1e-6), f"{name}: {key}"


def check_figures(found: dict[str, list[list[float]]], wanted: dict[str, list[list[float]]]) -> None:
    assert found.keys() == wanted.keys()
    # abs: SimSiam's rows are in [-1, 1] and their mean can be near 0, where float32 has no 1e-5 of it
    wrong = {
        name: (figures, wanted[name])
        for name, figures in found.items()
        if len(figures) != HALF or figures != [pytest.approx(step, rel=1e-5, abs=2e-7) for step in wanted[name]]
    }
    assert not wrong, f"of {list(wrong)}: {wrong}"


# --- where people look for them


def named(key: str, tree: Any) -> set[str]:
    """Every `name` under a `key`, anywhere."""
    if not isinstance(tree, dict):
        return set()
    own = {tree[key]["name"]} if isinstance(tree.get(key), dict) else set()
    return own.union(*(named(key, value) for value in tree.values()))


@pytest.mark.parametrize(("key", "there"), [("head", RULES), ("loss", LOSSES)])
def test_every_rule_and_every_loss_is_in_the_sweep_and_in_the_docs(key: str, there: dict[str, Any]) -> None:
    points = yaml.safe_load((ROOT / "configs/sweep/heads.yaml").read_text(encoding="utf-8"))["points"]
    assert named(key, points) == set(there), "points of configs/sweep/heads.yaml"
    paragraphs = (ROOT / "docs/heads.md").read_text(encoding="utf-8").split("\n\n")
    tables = [text for text in paragraphs if text.startswith(f"| `{key}.name` |")]
    assert set(re.findall(r"^\| `(\w+)` \|", "\n".join(tables), re.MULTILINE)) == set(there), "tables of docs/heads.md"
