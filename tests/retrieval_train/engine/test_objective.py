"""Heads, losses in parallel and running state under the engines: any number of ranks trains, loses a step, saves and goes on
like one process."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from retrieval_train.data.batch import Batch
from retrieval_train.engine import plain, zero
from retrieval_train.engine.diagnosis import look_again
from retrieval_train.engine.engine import EngineConfig
from retrieval_train.engine.optimizers import adamw, sam
from retrieval_train.engine.schedule import ScheduleConfig
from retrieval_train.engine.state_file import CheckpointError
from retrieval_train.engine.stepper import Stepper
from retrieval_train.heads import adacos, adaface, curricularface, linear
from retrieval_train.heads.centres import Head
from retrieval_train.heads.rule import RuleConfig
from retrieval_train.learner import Learner, Term
from retrieval_train.losses import bce, consistency, softmax, triplet, xbm
from retrieval_train.losses.loss import LossConfig
from retrieval_train.world import Alone, World
from tests.processes import run_ranks
from tests.retrieval_train.engine.test_engines import CLASSES, ROWS, Tiny, micro_batches, save

STEPS, HALF, BAD = 6, 3, 1  # of that one step the embeddings are no numbers
DIM = 8
WITH_STATE: list[RuleConfig] = [adaface.Config(), curricularface.Config(sub_centres=2), adacos.Config()]
ENGINES: list[EngineConfig] = [plain.Config(), zero.Config(stage=2), zero.Config(stage=3)]


class Trained(NamedTuple):
    """What one process and many must have in common."""

    figures: list[list[float]]
    """Of each step that was made: loss, norm, and each loss without its weight."""
    running: dict[str, Tensor]
    centres: dict[str, Tensor]
    """Of all ranks."""


def learner_of(
    rule: RuleConfig | None,
    world: World,
    *,
    nodes: bool = False,
    rows_compared: bool = True,
    names: list[str] = CLASSES,
) -> Learner:
    """With class centres of its own under a second loss, some of them sampled, and a memory of embeddings as a third."""
    if rule is None:
        return Learner(Tiny(), None, triplet.Config(mining="all"), world)
    inner, outer = world.split(2) if nodes else (world, None)
    head = Head(rule, names, dim=DIM, world=inner, seed=3, nodes=outer)
    second = linear.Config(scale=2, sample_rate=1 if nodes or not rows_compared else 0.5)
    own = Head(second, names, dim=DIM, world=inner, seed=4, nodes=outer)
    aux = {"classifier": Term(bce.Config(), own, 0.7)}
    if rows_compared:
        memory = xbm.Config(bank=10)
        aux["memory"] = Term(memory, weight=0.5, state=memory.first_state(dim=DIM))
    return Learner(Tiny(), head, softmax.Config(), world, aux=aux)


def engine_of(learner: Learner, config: EngineConfig, *, rho: float | None = None) -> Stepper:
    optimizer = adamw.Config(lr=0.03, backbone_lr=0.01, sam=sam.Sam(rho=rho) if rho else None)
    engine: Any = config.build(learner, optimizer, ScheduleConfig().build(STEPS, epoch_steps=STEPS, batch=ROWS), seed=0)
    found: Stepper = engine
    return found


def running_of(engine: Stepper) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in engine.learner.running().items()}


def bad_step(engine: Stepper, world: World) -> None:
    """Left out, and looked at again: the running state is as before, to the last bit."""
    before, batches = running_of(engine), micro_batches(engine.step, 1, world)
    neck = engine.learner.embedder.get_submodule("neck")
    hook = neck.register_forward_hook(lambda module, inputs, out: out * (math.nan if world.rank == 0 else 1))
    report = engine.train_step(batches)
    assert report.skipped in ("loss", "gradient"), "triplets of no numbers are none, and their mean is 0"
    for when in ("it was left out", "it was looked at again"):
        for name, tensor in running_of(engine).items():
            assert torch.equal(tensor, before[name]), f"{name} after {when}"
        told = [text for text in world.every(look_again(engine, engine.learner, batches)) if text]
        assert told and "first in the output of neck" in told[0]
    hook.remove()


def train(engine: Stepper, world: World, *, until: int = STEPS, is_bad: bool = True) -> list[list[float]]:
    figures = []
    while engine.step < until:
        if engine.step == BAD and is_bad:
            bad_step(engine, world)
        elif engine.step == BAD:
            engine.step += 1  # as if those rows had never come
        else:
            report = engine.train_step(micro_batches(engine.step, 1, world))
            figures.append([report.loss, report.grad_norm, *report.loss_of_term.values()])
    return figures


def trained(engine: Stepper, world: World, **how: Any) -> Trained:
    figures = train(engine, world, **how)
    heads = engine.learner.heads.items()
    centres = {name: torch.cat(head.world.every(head.centre_CKD.detach().clone())) for name, head in heads}
    found = Trained(figures, running_of(engine), centres)
    engine.close()
    return found


def check_equal(found: Trained, wanted: Trained, told: str, *, since: int = 0) -> None:
    assert len(found.figures) == len(wanted.figures) - since and found.running.keys() == wanted.running.keys(), told
    for one, other in zip(found.figures, wanted.figures[since:], strict=True):
        assert [one[0], *one[2:]] == pytest.approx([other[0], *other[2:]], rel=1e-5), told
        assert one[1] == pytest.approx(other[1], rel=5e-5), (
            f"{told}: a norm is less smooth than what it is the slope of"
        )
    for mine, theirs in ((found.running, wanted.running), (found.centres, wanted.centres)):
        for name, tensor in theirs.items():
            difference = (mine[name] - tensor).abs() - 1e-4 * tensor.abs()
            assert float(difference.max()) <= 2e-6, f"{told}: {name}"


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Any:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


# --- training, losing a step, saving, going on

RULES: dict[str, RuleConfig | None] = {rule.name: rule for rule in WITH_STATE} | {"triplet": None}


def cases() -> list[tuple[str, EngineConfig]]:
    return [("curricularface", config) for config in ENGINES] + [("triplet", config) for config in ENGINES[:2]]


def place(folder: Path, ranks: int, rule: str, config: EngineConfig) -> Path:
    return folder / f"{ranks}-{rule}-{config.name}-{getattr(config, 'stage', '')}"


def on_three(world: World, folder: Path) -> dict[str, Trained]:
    """From the start, saved half-way; and half of it from one process's checkpoint."""
    logging.disable(logging.WARNING)
    found = {}
    for rule in ("adaface", "adacos"):
        found[rule] = trained(engine_of(learner_of(RULES[rule], world), plain.Config()), world)
    found["sam"] = trained(engine_of(learner_of(RULES["curricularface"], world), plain.Config(), rho=0.05), world)
    for rule, config in cases():
        engine = engine_of(learner_of(RULES[rule], world), config)
        first = train(engine, world, until=HALF)
        save(engine, place(folder, 3, rule, config), {}, world)
        rest = trained(engine, world)
        found[f"{rule} {config}"] = rest._replace(figures=first + rest.figures)
    for rule, config in (("curricularface", ENGINES[2]), ("triplet", ENGINES[1])):
        resumed = engine_of(learner_of(RULES[rule], world), config)
        resumed.load(place(folder, 1, rule, plain.Config()))
        found[f"{rule} {config} from one"] = trained(resumed, world)
    return found


def on_two(world: World, folder: Path) -> dict[str, Trained]:
    """From the checkpoints of three, saved after a step more."""
    logging.disable(logging.WARNING)
    found = {}
    for rule, config in cases():
        resumed = engine_of(learner_of(RULES[rule], world), config)
        resumed.load(place(folder, 3, rule, config))
        first = train(resumed, world, until=HALF + 1)
        save(resumed, place(folder, 2, rule, config), {}, world)
        rest = trained(resumed, world)
        found[f"{rule} {config} from three"] = rest._replace(figures=first + rest.figures)
    return found


def test_any_number_of_ranks_trains_loses_a_step_and_goes_on_from_any_others_checkpoint(tmp_path: Path) -> None:
    alone, wanted = Alone(), {}
    for name, rule in RULES.items():
        undisturbed = trained(engine_of(learner_of(rule, alone), plain.Config()), alone, is_bad=False)
        engine = engine_of(learner_of(rule, alone), plain.Config())
        first = train(engine, alone, until=HALF)
        save(engine, place(tmp_path, 1, name, plain.Config()), {}, alone)
        rest = trained(engine, alone)
        wanted[name] = rest._replace(figures=first + rest.figures)
        check_equal(wanted[name], undisturbed, f"{name}: a step left out is a step that never was")
    wanted["sam"] = trained(engine_of(learner_of(RULES["curricularface"], alone), plain.Config(), rho=0.05), alone)
    assert wanted["sam"].figures[1] != pytest.approx(wanted["curricularface"].figures[1], rel=1e-5)
    for ranks, function in ((3, on_three), (2, on_two)):
        for of_rank in run_ranks(function, ranks, tmp_path):
            for key, found in of_rank.items():
                since = HALF - 1 if " from " in key else 0  # one of the first steps was left out
                check_equal(found, wanted[key.split()[0]], f"{key} on {ranks} ranks", since=since)
    for name, config in cases():
        resumed = engine_of(learner_of(RULES[name], alone), plain.Config())
        resumed.load(place(tmp_path, 2, name, config))
        check_equal(trained(resumed, alone), wanted[name], f"{name} {config} from two", since=HALF)


def test_class_centres_and_their_moments_go_by_name_into_another_order(tmp_path: Path) -> None:
    world, rule = Alone(), RULES["curricularface"]
    engine = engine_of(learner_of(rule, world), plain.Config())
    train(engine, world, until=HALF)
    save(engine, tmp_path / "saved", {}, world)
    turned = engine_of(learner_of(rule, world, names=CLASSES[::-1]), plain.Config())
    turned.load(tmp_path / "saved")
    stored, taken = engine.centres.tensors(), turned.centres.tensors()
    assert len(stored) == 6, "centre and two moments of two heads"
    for name, tensor in stored.items():
        assert torch.equal(tensor.flip(0), taken[name]) and not torch.equal(tensor, taken[name]), name


def test_with_new_classes_a_head_that_is_new_is_told_and_a_heads_running_state_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a second loss has the name `loss`. What losses remember of classes begins anew."""
    world = Alone()

    def engine(*names: str) -> Stepper:
        heads = {name: Head(adaface.Config(), CLASSES, dim=DIM, world=world, seed=3) for name in ("", *names)}
        aux = {name: Term(softmax.Config(), heads[name]) for name in names}
        memory = xbm.Config(bank=10)
        aux["memory"] = Term(memory, state=memory.first_state(dim=DIM))
        return engine_of(Learner(Tiny(), heads[""], softmax.Config(), world, aux=aux), plain.Config())

    saved = engine("loss")
    train(saved, world, until=2, is_bad=False)
    save(saved, tmp_path / "saved", {}, world)
    wanted, taken = running_of(saved), engine("loss", "more")
    logging.disable(logging.NOTSET)
    taken.load(tmp_path / "saved", new_classes=True)
    logging.disable(logging.WARNING)
    assert [text for text in caplog.messages if "all begin at random" in text] == [
        f"{tmp_path / 'saved'} has no centres of head 'more': all begin at random"
    ]
    found = running_of(taken)
    for name in ("head.norm_mean", "loss.head.norm_mean"):
        assert torch.equal(found[name], wanted[name]) and not torch.equal(found[name], running_of(engine("loss"))[name])
    assert int(wanted["memory.loss.bank_at"]) > 0 and int(found["memory.loss.bank_at"]) == 0
    with pytest.raises(CheckpointError, match="has no centres for"):
        engine("loss", "more").load(tmp_path / "saved")


# --- nodes that have all classes each


def on_nodes(world: World, folder: Path) -> dict[str, Trained]:
    logging.disable(logging.WARNING)
    found = {}
    for name, rule, config, rho in nodes_cases():
        engine = engine_of(learner_of(rule, world, nodes=True, rows_compared=False), config, rho=rho)
        first = train(engine, world, until=HALF)
        if name == "curricularface":
            save(engine, folder / "nodes", {}, world)
        rest = trained(engine, world)
        found[name] = rest._replace(figures=first + rest.figures)
    return found


def nodes_cases() -> list[tuple[str, RuleConfig, EngineConfig, float | None]]:
    cases: list[Any] = [(rule.name, rule, plain.Config(), None) for rule in WITH_STATE]
    return [*cases, ("zero", WITH_STATE[0], zero.Config(stage=2), None), ("sam", WITH_STATE[0], plain.Config(), 0.05)]


def test_two_nodes_of_two_ranks_that_have_all_classes_each_are_one_process(tmp_path: Path) -> None:
    world, wanted = Alone(), {}
    for name, rule, _, rho in nodes_cases():
        engine = engine_of(learner_of(rule, world, rows_compared=False), plain.Config(), rho=rho)
        wanted[name] = trained(engine, world)
    of_ranks = run_ranks(on_nodes, 4, tmp_path)
    for of_rank in of_ranks:
        for name, found in of_rank.items():
            check_equal(found, wanted[name], name)
            assert found.figures == of_ranks[0][name].figures, (
                f"{name}: the norm to the last bit, or copies drift apart"
            )
    assert len(list((tmp_path / "nodes").glob("classes-*.txt"))) == 2, "one node's ranks save them"
    resumed = engine_of(learner_of(RULES["curricularface"], world, rows_compared=False), plain.Config())
    resumed.load(tmp_path / "nodes")
    check_equal(trained(resumed, world), wanted["curricularface"], "from nodes", since=HALF - 1)


# --- running state


def test_the_second_pass_of_sam_sees_the_state_of_the_first_and_leaves_none() -> None:
    """Seen twice, these rows would be in the memory when the second pass compares with it, and in every mean twice."""
    world, found = Alone(), []
    for rho in (None, 0.05):
        engine = engine_of(learner_of(RULES["adaface"], world), plain.Config(), rho=rho)
        starts: list[dict[str, Tensor]] = []
        hook = engine.learner.embedder.register_forward_pre_hook(
            lambda module, inputs, starts=starts, engine=engine: starts.append(running_of(engine))
        )
        engine.train_step(micro_batches(0, 1, world))
        hook.remove()
        assert len(starts) == (2 if rho else 1)
        for start in starts[1:]:
            assert all(torch.equal(tensor, starts[0][name]) for name, tensor in start.items())
        found.append(running_of(engine))
    once, twice = found
    assert int(once["memory.loss.bank_at"]) == ROWS
    for name, tensor in once.items():
        assert torch.equal(twice[name], tensor), name


def test_evaluation_changes_no_running_state() -> None:
    world = Alone()
    for rule in WITH_STATE:
        engine = engine_of(learner_of(rule, world), plain.Config())
        train(engine, world, until=1)
        before = running_of(engine)
        assert len(before) >= 4
        with engine.embedding() as embed, torch.no_grad():
            engine.learner.forward(embed, micro_batches(5, 1, world)[0])
        assert all(torch.equal(tensor, before[name]) for name, tensor in running_of(engine).items())
        engine.train_step(micro_batches(1, 1, world))
        assert all(not torch.equal(tensor, before[name]) for name, tensor in running_of(engine).items()), (
            "training does"
        )


# --- several views


def test_a_second_look_goes_backward_through_all_views_of_the_images() -> None:
    world, loss = Alone(), consistency.Config()
    aux: dict[str, LossConfig] = {"consistency": loss}
    head = Head(adaface.Config(), CLASSES, dim=DIM, world=world, seed=3)
    learner = Learner(Tiny(), head, softmax.Config(), world, aux={name: Term(loss) for name, loss in aux.items()})
    engine = engine_of(learner, plain.Config())
    (batch,) = micro_batches(0, 1, world)
    keys = tuple(f"toys/{row}" for row in range(ROWS))
    rest = Batch(
        batch.image_NCHW[:3], torch.full((3,), -1), (3,), 1.0, strong_NCHW=batch.image_NCHW[3:6], row_N=(0, 1, 2)
    )
    batch = replace(batch, strong_NCHW=255 - batch.image_NCHW, unlabelled=rest, key_N=keys)
    bias = learner.embedder.get_parameter("neck.bias")
    hook = bias.register_hook(lambda grad: grad * math.inf)
    assert engine.train_step([batch]).skipped == "gradient"
    assert look_again(engine, learner, [batch]) == "rank 0: first in the gradient of neck.bias"
    hook.remove()
    batch = replace(batch, unlabelled=replace(rest, key_N=("a", "b", "c")))
    assert batch.unlabelled is not None
    first = [0, ROWS, 2 * ROWS, 2 * ROWS + 3]  # of each view
    for rows, told in {
        (first[0] + 2,): "; samples toys/2",
        (first[1] + 1,): "; strong view: samples toys/1",
        (first[0], first[2] + 1, first[3] + 2): (
            "; samples toys/0; unlabelled view: samples b; unlabelled_strong view: samples c"
        ),
    }.items():
        scale_N1 = torch.ones(2 * ROWS + 6, 1)
        scale_N1[list(rows)] = math.nan
        spoil = learner.embedder.get_submodule("neck").register_forward_hook(lambda *told, by=scale_N1: told[2] * by)
        assert look_again(engine, learner, [batch]) == f"rank 0: first in the output of neck{told}"
        spoil.remove()
    assert not engine.train_step([batch]).skipped
