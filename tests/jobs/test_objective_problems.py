"""Heads, losses and data that do not fit together are told before anything starts, each in a line with its key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import job, train
from jobs.training import objective
from jobs.training.figures import load_of
from retrieval_train import config as configs
from retrieval_train.config import ConfigError
from retrieval_train.data.foreign import ForeignConfig
from retrieval_train.engine.memory import memory_of
from retrieval_train.rundir import RunDir
from retrieval_train.world import Alone, World
from shards.cli import main
from tests.jobs.test_objectives import values
from tests.processes import run_ranks
from tests.retrieval_train.data.conftest import draw, make_sets, make_tags

ARC: dict[str, Any] = {"name": "arcface"}
DATA: dict[str, Any] = {"mixture": {"shapes": 1.0}, "batch": 8, "workers": 0}
STRONG: dict[str, Any] = {**DATA, "strong": {"flip": 0.5}}
PAIR = "compares the rows of a micro-batch with each other: with engine.accumulate 2 it would be another loss"


def aux(loss: str | dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"x": {"loss": {"name": loss} if isinstance(loss, str) else loss, **more}}


def given(sets: Path, **more: Any) -> dict[str, Any]:
    """A config without a mistake, but for `more`."""
    return values(sets, more.pop("engine", {"name": "plain"}), **{"head": ARC, "data": DATA, "evaluate": None, **more})


CASES: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "a margin in degrees": (
        {"head": {"name": "arcface", "margin": 28.6}},
        [("head.margin", "28.6 is not in [0, pi/2); margins are radians (28.6 degrees would be 0.499)")],
    ),
    "a margin in degrees beside the main loss": (
        {"aux": aux("softmax", head={"name": "arcface", "margin": 30})},
        [("aux.x.head.margin", "30 is not in [0, pi/2); margins are radians (30 degrees would be 0.524)")],
    ),
    "an unknown loss": (
        {"loss": {"name": "tripplet"}},
        [("loss.name", "'tripplet' is unknown; did you mean triplet?")],
    ),
    "an unknown loss beside the main one": (
        {"aux": aux("consistancy")},
        [("aux.x.loss.name", "'consistancy' is unknown; did you mean consistency?")],
    ),
    "an unknown head": ({"head": {"name": "arcfase"}}, [("head.name", "'arcfase' is unknown; did you mean arcface?")]),
    "a key of another loss": (
        {"loss": {"name": "softmax", "margn": 0.2}},
        [("loss.margn", "unknown key; there are: label_smoothing, name, over")],
    ),
    "a weight of 0": ({"aux": aux("bce", weight=0)}, [("aux.x.weight", "0 is not allowed")]),
    "a name that is no key of figures": (
        {"aux": {"A/b": {"loss": {"name": "bce"}}}},
        [("aux.A/b.[key]", "'A/b' is not allowed: string should match pattern")],
    ),
    "the main loss's name": (
        {"aux": {"main": {"loss": {"name": "bce"}}}},
        [("aux.main", "is a name of the main loss; choose another one")],
    ),
    "the name of the main loss's own classes": (
        {"loss": {"name": "distillation"}, "aux": {"teacher": {"loss": {"name": "softmax"}}}},
        [("aux.teacher", "is a name of the main loss; choose another one")],
    ),
    "no classes for a loss that needs them": (
        {"head": None},
        [("loss", "'softmax' compares with class centres: give head, such as {name: arcface}")],
    ),
    "no classes for a loss beside the main one": (
        {"head": None, "loss": {"name": "triplet"}, "aux": aux("bce")},
        [("aux.x.loss", "'bce' compares with class centres: give aux.x.head, such as {name: arcface}")],
    ),
    "classes that nobody needs": (
        {"loss": {"name": "triplet"}},
        [("head", "no loss here compares with its class centres ('triplet' does not); set head: null")],
    ),
    "classes that nobody needs, for the other loss has its own": (
        {"loss": {"name": "triplet"}, "aux": aux("softmax", head=ARC)},
        [("head", "no loss here compares with its class centres ('triplet' does not); set head: null")],
    ),
    "classes of a loss that compares with none": (
        {"aux": aux("contrastive", head=ARC)},
        [("aux.x.head", "'contrastive' compares with no class centres; leave it out")],
    ),
    "lengths where angles are needed": (
        {"head": {"name": "linear"}, "loss": {"name": "proxy_anchor"}},
        [("loss", "'proxy_anchor' needs cosines, and 'linear' compares lengths too; take head.name=normface")],
    ),
    "two views that nobody takes": (
        {"data": STRONG},
        [("data.strong", "no loss here takes it (softmax); leave it out or add one under aux")],
    ),
    "unlabelled rows that nobody takes": (
        {"data": {**DATA, "unlabelled": {"mixture": {"tags": 1.0}, "batch": 4}}, "aux": aux("triplet")},
        [("data.unlabelled", "no loss here takes it (softmax, triplet); leave it out or add one under aux")],
    ),
    "one view for a loss of two": (
        {"head": None, "loss": {"name": "simsiam"}},
        [("loss", "'simsiam' compares two views of an image; say with data.strong how the second looks")],
    ),
    "a loss of pairs in parts": (
        {"head": None, "loss": {"name": "triplet"}, "engine": {"name": "plain", "accumulate": 2}},
        [("loss", f"'triplet' {PAIR}; set engine.accumulate=1")],
    ),
    "a memory in parts": (
        {"aux": aux("xbm"), "engine": {"name": "plain", "accumulate": 2}},
        [("aux.x.loss", f"'xbm' {PAIR}; set engine.accumulate=1")],
    ),
    "unlabelled rows in unequal parts": (
        {
            "data": {**STRONG, "unlabelled": {"mixture": {"tags": 1.0}, "batch": 5}},
            "aux": aux("consistency"),
            "engine": {"name": "plain", "accumulate": 2},
        },
        [("data.unlabelled.batch", "5 rows make no 2 equal micro-batches")],
    ),
    "a sample of classes with sam": (
        {"head": {**ARC, "sample_rate": 0.5}, "optimizer": {"sam": {"rho": 0.05}}},
        [("head.sample_rate", "sam steps all classes twice; set it to 1 or leave optimizer.sam out")],
    ),
    "a sample of classes with lamb": (
        {"aux": aux("bce", head={"name": "linear", "sample_rate": 0.5}), "optimizer": {"name": "lamb"}},
        [("aux.x.head.sample_rate", "lamb scales a table as a whole; set it to 1 or take optimizer.name=adamw")],
    ),
    "a sample of classes where all are needed": (
        {"head": {**ARC, "sample_rate": 0.5}, "data": STRONG, "aux": aux("consistency")},
        [("aux.x.loss", "'consistency' needs the logits of all classes; set head.sample_rate=1")],
    ),
    "a sample of classes of its own where all are needed": (
        {"data": STRONG, "aux": aux("consistency", head={**ARC, "sample_rate": 0.5})},
        [("aux.x.loss", "'consistency' needs the logits of all classes; set aux.x.head.sample_rate=1")],
    ),
    "pairs within a node": (
        {"head": {**ARC, "shard_within": "node"}, "aux": aux("triplet")},
        [("aux.x.loss", "'triplet' compares the rows of all nodes; set head.shard_within=world")],
    ),
    "a sample of classes that differs from node to node": (
        {"head": {**ARC, "shard_within": "node", "sample_rate": 0.5}},
        [("head.sample_rate", "nodes would sample other classes; set it to 1 or shard_within: world")],
    ),
    "unlabelled rows within a node": (
        {
            "head": {**ARC, "shard_within": "node"},
            "data": {**STRONG, "unlabelled": {"mixture": {"tags": 1.0}, "batch": 4}},
            "aux": aux("consistency"),
        },
        [("aux.x.loss", "'consistency' takes the unlabelled rows of all nodes; set head.shard_within=world")],
    ),
    "heads of two ways to share": (
        {"aux": aux("bce", head={"name": "linear", "shard_within": "node"})},
        [("aux.x.head.shard_within", "must be that of head: the rows are gathered once; set it to world")],
    ),
    "a node's classes without a main head": (
        {"head": None, "loss": {"name": "triplet"}, "aux": aux("bce", head={"name": "linear", "shard_within": "node"})},
        [
            (
                "aux.x.head.shard_within",
                "must be world where there is no main head: the rows are gathered once; set it to",
            )
        ],
    ),
    "shared labels where images have one": (
        {
            "head": None,
            "loss": {"name": "triplet", "min_shared": 2},
            "aux": aux({"name": "triplet", "min_shared": 4}),
        },
        [
            (
                "loss.min_shared",
                "is 2, and images of these sets have one label each: no two would be alike; set it to 1",
            ),
            ("aux.x.loss.min_shared", "is 4, and images of these sets have one label each"),
        ],
    ),
    "KL of what is no probability": (
        {"data": STRONG, "aux": aux({"name": "consistency", "kind": "kl", "on": "logits"})},
        [("aux.x.loss.on", "KL compares probabilities, not logits; set kind: mse or on: probabilities")],
    ),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards_root with `shapes`, `more` and, with several labels an image, `tags`."""
    return make_tags(make_sets(tmp_path_factory.mktemp("sets")))


def test_the_config_without_a_mistake_has_none(here: Path) -> None:
    job.check(given(here), where="my.yaml")


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_with_its_key(here: Path, name: str) -> None:
    more, wanted = CASES[name]
    with pytest.raises(ConfigError) as told:
        job.check(given(here, **more), where="my.yaml")
    assert [key for key, _ in told.value.problems] == [key for key, _ in wanted]
    for (_, text), (_, begins) in zip(told.value.problems, wanted, strict=True):
        assert text.startswith(begins) and "\n" not in text


def test_margins_by_numbers_of_images_need_sets_that_tell_them(here: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cats\ndogs\n")
    (tmp_path / "0.tar").write_bytes(b"")
    foreign = {"urls": [f"{tmp_path}/0.tar"], "classes": str(tmp_path / "classes.txt"), "domain": "pets", "samples": 9}
    assert ForeignConfig.model_validate(foreign)
    with pytest.raises(ConfigError) as told:
        job.check(
            given(here, head={"name": "dynamic_arcface"}, data={"foreign": foreign, "batch": 4, "workers": 0}),
            where="my.yaml",
        )
    [(key, text)] = told.value.problems
    assert key == "head" and text.startswith(
        "'dynamic_arcface' sets margins by the classes' numbers of images, which data"
    )


def test_all_mistakes_are_told_at_once_and_a_config_that_was_dumped_is_the_same(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"my.yaml: 3 problems"):
        job.check(given(here, head=None, aux=aux("bce", weight=2), data=STRONG), where="my.yaml")
    values = given(here, aux=aux("bce", head={"name": "linear"}, weight=0.05), data=DATA)
    config = job.check(values, where="my.yaml")
    assert configs.check(train.Config, yaml.safe_load(configs.dump(config)), where="x") == config


@pytest.mark.parametrize("loss", ["triplet", "softmax"])
def test_a_head_for_one_label_is_told_once_whichever_losses_compare_with_it(here: Path, loss: str) -> None:
    """With triplet it is the loss under aux alone that does."""
    tags, curricular = {**DATA, "mixture": {"tags": 1.0}}, {"name": "curricularface"}
    with pytest.raises(ConfigError) as told:
        job.check(given(here, data=tags, head=curricular, loss={"name": loss}, aux=aux("bce")), where="my.yaml")
    assert [key for key, _ in told.value.problems] == ["head"]
    job.check(given(here, data=tags, loss={"name": "triplet", "min_shared": 2}, head=None), where="my.yaml")


def test_few_images_of_a_class_in_a_batch_are_a_warning(
    here: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pk = {**DATA, "order": {"name": "pk", "classes": 4, "images": 2, "short_class": "repeat"}}
    cases: list[tuple[dict[str, Any], int]] = [
        ({"head": None, "loss": {"name": "triplet"}}, 1),
        ({"head": None, "loss": {"name": "triplet"}, "data": pk}, 0),
        ({"head": None, "loss": {"name": "triplet"}, "data": {**DATA, "batch": 24}}, 0),
        ({"aux": aux("xbm")}, 0),
        ({}, 0),
    ]
    for number, (more, wanted) in enumerate(cases):
        caplog.clear()
        config = job.check(given(here, **more), where="my.yaml")
        assert isinstance(config, train.Config)
        train.build(config, RunDir(tmp_path / str(number)), Alone())
        assert sum("compares images of a class with each other" in line for line in caplog.messages) == wanted, more


def uneven_nodes(world: World, sets: Path) -> str:
    """Two ranks on one node, one on another."""
    os.environ["LOCAL_WORLD_SIZE"] = str((2, 2, 1)[world.rank])
    config = job.check(given(sets, head={**ARC, "shard_within": "node"}), where="my.yaml")
    assert isinstance(config, train.Config)
    with pytest.raises(ValueError, match="shard_within: node needs as many ranks on every node") as told:
        objective._groups(config, world)
    return str(told.value)


def too_many_ranks(world: World, root: Path, sets: Path) -> str:
    config = job.check(given(sets, data={**DATA, "mixture": {"few": 1.0}, "batch": 4}), where="my.yaml")
    assert isinstance(config, train.Config)
    try:
        train.build(config, RunDir(root), world)
    except ValueError as error:
        return str(error)
    return ""


def check_share_of_a_node(world: World, root: Path, sets: Path) -> None:
    """Three nodes of one rank: each has all centres, and memory is reckoned so."""
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    config = job.check(given(sets, head={**ARC, "shard_within": "node"}, data={**DATA, "batch": 9}), where="my.yaml")
    assert isinstance(config, train.Config)
    learner = train.build(config, RunDir(root / "nodes"), world).learner
    load = load_of(config, learner)
    assert (load.ranks, load.nodes) == (3, 3) and learner.head is not None
    assert memory_of(load).centres == learner.head.centre_CKD.nbytes * (2 + load.moments)


def not_these_ranks(world: World, root: Path, sets: Path) -> tuple[str, str]:
    check_share_of_a_node(world, root, sets)
    return too_many_ranks(world, root, sets), uneven_nodes(world, sets)


def test_ranks_that_do_not_fit_are_one_message_on_every_rank(tmp_path: Path, here: Path) -> None:
    draw(tmp_path / "drawn", domains={"warm": 2}, images=3)
    made = ["make", "folder", str(tmp_path / "drawn"), "--levels", "domain/class", "--train-only"]
    assert main([*made, "--out", str(here / "few")]) == 0
    few, uneven = zip(*run_ranks(not_these_ranks, 3, tmp_path, here), strict=True)
    assert few == ("2 classes cannot be shared by 3 ranks; use fewer ranks",) * 3
    assert len(set(uneven)) == 1 and "here nodes have 1 and 2; start as many on each" in uneven[0]
    assert not too_many_ranks(Alone(), tmp_path / "alone", here)
