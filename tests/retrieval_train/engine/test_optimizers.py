"""Every file of engine/optimizers/ resumes exactly, whatever cuts its tensors; groups, layer decay and SAM."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retrieval_train.choice import Chosen
from retrieval_train.config import ConfigError, Section, check, dump, load
from retrieval_train.engine.optimizers import adamw, lamb, sgd
from retrieval_train.engine.optimizers.optimizer import AnyOptimizer, OptimizerConfig
from retrieval_train.engine.optimizers.sam import Sam
from retrieval_train.heads import arcface
from retrieval_train.heads.centres import Head
from retrieval_train.models.backbones import timm
from retrieval_train.models.embedder import Embedder, build_embedder
from retrieval_train.models.lora import Config as Lora
from retrieval_train.models.necks import linear
from retrieval_train.world import Alone, World
from tests.processes import run_ranks

FOLDER = Chosen("retrieval_train.engine.optimizers").configs()
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in FOLDER},
    "sgd-nesterov": {"name": "sgd", "nesterov": True},
    "sgd-plain": {"name": "sgd", "momentum": 0.0},
}
SHAPES = [(6, 5), (3, 7), (11,)]
STEPS = 6


def config_of(variant: str, **fields: Any) -> OptimizerConfig:
    found = FOLDER[VARIANTS[variant]["name"]].model_validate({"lr": 0.01, **VARIANTS[variant], **fields})
    assert isinstance(found, OptimizerConfig)
    return found


def drawn(seed: int, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


class Stepped:
    """Two groups, as of matrices and of vectors, stepped with drawn gradients."""

    def __init__(self, config: OptimizerConfig, weights: list[Tensor]) -> None:
        self.weights = [nn.Parameter(weight.clone()) for weight in weights]
        parts = {"weights": self.weights[:-1], "biases": self.weights[-1:]}
        decays = {"weights": config.weight_decay, "biases": 0.0}
        self.optimizer = config.build(
            [
                {"name": name, "params": tensors, "lr": config.lr, "peak_lr": config.lr, "weight_decay": decays[name]}
                for name, tensors in parts.items()
            ]
        )

    def run(self, steps: range) -> Stepped:
        for step in steps:
            for weight, grad in zip(self.weights, drawn(100 + step, SHAPES), strict=True):
                weight.grad = grad
            self.optimizer.step()
        return self

    def equals(self, other: Stepped) -> bool:
        return all(torch.equal(a, b) for a, b in zip(self.weights, other.weights, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_optimizer_equals_the_uninterrupted_one(variant: str) -> None:
    config = config_of(variant)
    whole = Stepped(config, drawn(0, SHAPES)).run(range(STEPS))
    half = Stepped(config, drawn(0, SHAPES)).run(range(2))
    resumed = Stepped(config, [weight.detach() for weight in half.weights])
    for old, new in zip(half.weights, resumed.weights, strict=True):
        moments = {name: half.optimizer.state[old][name] for name in config.moments}
        config.make_state(resumed.optimizer, new, step=2, moments=moments)
    assert not resumed.equals(whole)
    assert resumed.run(range(2, STEPS)).equals(whole)
    for mine, theirs in zip(resumed.weights, whole.weights, strict=True):  # and nothing is kept that is not named
        state, other = resumed.optimizer.state[mine], whole.optimizer.state[theirs]
        assert {k: (v.dtype, v.device) for k, v in state.items()} == {k: (v.dtype, v.device) for k, v in other.items()}
        assert all(torch.equal(state[name], other[name]) for name in other)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_state_of_zeros_steps_as_none_does(variant: str) -> None:
    config = config_of(variant)
    filled = Stepped(config, drawn(0, SHAPES))
    for weight in filled.weights:
        config.make_state(filled.optimizer, weight, step=0, moments=None)
    assert filled.run(range(STEPS)).equals(Stepped(config, drawn(0, SHAPES)).run(range(STEPS)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_flat_pieces_step_as_whole_tensors_do_unless_zero_is_refused(variant: str) -> None:
    config = config_of(variant)
    weight, *grads = drawn(0, [(40, 25)] * (STEPS + 1))

    def stepped(cut: int) -> Tensor:
        """The weight after some steps as flat pieces of `cut` numbers."""
        pieces = [nn.Parameter(piece.clone()) for piece in weight.flatten().split(cut)]
        optimizer = config.build([{"params": pieces, "lr": 0.01, "peak_lr": 0.01, "weight_decay": 0.1}])
        for grad in grads:
            for piece, its_grad in zip(pieces, grad.flatten().split(cut), strict=True):
                piece.grad = its_grad.clone()
            optimizer.step()
        return torch.cat([piece.detach() for piece in pieces])

    assert torch.equal(stepped(1000), stepped(37)) == (config.problem("zero", 1) is None)


def test_lamb_steps_a_matrix_by_its_own_length_and_class_centres_as_adam() -> None:
    config = lamb.Config(lr=0.1, weight_decay=0.02)
    weights, grads = drawn(0, SHAPES), drawn(100, SHAPES)
    stepped = Stepped(config, weights).run(range(1))
    for index, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
        update = grad / (grad.abs() + config.eps)  # both moments are the gradient's after their bias is corrected
        if index < 2:
            update = update + 0.02 * weight
            update = update * weight.norm() / update.norm()
        torch.testing.assert_close(stepped.weights[index].detach(), weight - 0.1 * update, rtol=1e-5, atol=1e-6)
        moment = stepped.optimizer.state[stepped.weights[index]]["exp_avg"]
        torch.testing.assert_close(moment, 0.1 * grad)  # not clipped: that is the engine's to do


# --- groups


def embedder_of(model: str = "test_vit", lora: Lora | None = None) -> Embedder:
    embedder = build_embedder(timm.Config(model=model, image_px=32, weights="none"), linear.Config(out=8), seed=0)
    if lora:
        lora.apply(embedder, seed=0)
    return embedder


def names_of(embedder: Embedder) -> dict[int, str]:
    return {id(parameter): name for name, parameter in embedder.named_parameters()}


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=2)])
def test_every_trained_parameter_is_in_one_group(layer_decay: float | None, lora: Lora | None) -> None:
    embedder = embedder_of(lora=lora)
    groups = adamw.Config(layer_decay=layer_decay).groups(embedder)
    listed = [id(tensor) for group in groups for tensor in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in embedder.parameters() if p.requires_grad}
    for group in groups:
        assert all((tensor.ndim > 1) == (group["weight_decay"] > 0) for tensor in group["params"])
        assert group["lr"] == group["peak_lr"]


def test_each_part_has_its_own_learning_rate_and_name() -> None:
    config = adamw.Config(lr=1e-3, backbone_lr=1e-4, head_lr=1e-2, weight_decay=0.3)
    embedder = embedder_of()
    names = names_of(embedder)
    for group in config.groups(embedder):
        assert {names[id(p)].partition(".")[0] for p in group["params"]} == {group["name"]}
    head = Head(arcface.Config(), ["toys/a", "toys/b"], dim=8, world=Alone(), seed=0)
    found = {group["name"]: group["lr"] for group in [*config.groups(embedder), config.head_group(head)]}
    assert found == {"backbone": 1e-4, "neck": 1e-3, "centres": 1e-2}
    assert config.head_group(head)["weight_decay"] == 0
    assert {group["lr"] for group in adamw.Config(lr=2e-3).groups(embedder)} == {2e-3}


def test_layer_decay_lowers_the_rate_block_by_block_down_to_the_stem() -> None:
    embedder = embedder_of()
    names = names_of(embedder)
    last = max(int(name.split("blocks.")[1].split(".")[0]) for name in names.values() if "blocks." in name)
    assert last > 0
    seen: dict[str, float] = {}
    for group in adamw.Config(lr=1.0, backbone_lr=0.8, layer_decay=0.5).groups(embedder):
        seen[group["name"]] = group["lr"]
        for name in (names[id(p)] for p in group["params"]):
            if "blocks." in name:
                number = int(name.split("blocks.")[1].split(".")[0])
                assert group["name"] == f"backbone.block{number:02d}"
            elif name.startswith("backbone."):
                after_blocks = "patch_embed" not in name and "cls_token" not in name and "pos_embed" not in name
                assert group["name"] == (f"backbone.block{last:02d}" if after_blocks else "backbone.stem"), name
    blocks = {f"backbone.block{number:02d}": 0.8 * 0.5 ** (last - number) for number in range(last + 1)}
    assert seen == pytest.approx({"neck": 1.0, "backbone.stem": 0.8 * 0.5 ** (last + 1), **blocks})


def test_layer_decay_counts_frozen_blocks_too() -> None:
    embedder = embedder_of(lora=Lora(rank=2, alpha=2, last_blocks=1))
    last = max(name for name in names_of(embedder).values() if "blocks." in name).split("blocks.")[1].split(".")[0]
    groups = adamw.Config(lr=1.0, layer_decay=0.5).groups(embedder)
    adapted = {(group["name"], group["lr"]) for group in groups if group["name"] != "neck"}
    assert adapted == {(f"backbone.block{int(last):02d}", 1.0)}


def test_layer_decay_on_a_backbone_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer_decay is 0.5, but this backbone has no blocks"):
        adamw.Config(layer_decay=0.5).groups(embedder_of("test_resnet"))


# --- config


class Run(Section):
    """As a job has it."""

    optimizer: AnyOptimizer = adamw.Config()
    """How the weights are stepped."""


@pytest.mark.parametrize("fields", [{}, {"name": "lion"}, {"name": "sgd", "sam": {"rho": 0.1}}])
def test_an_optimizer_outlives_being_written_to_a_file(fields: dict[str, Any], tmp_path: Path) -> None:
    run = Run.model_validate({"optimizer": fields})
    assert run.optimizer.name == fields.get("name", "adamw")
    (tmp_path / "run.yaml").write_text(dump(run))
    assert load(Run, tmp_path / "run.yaml") == run


@pytest.mark.parametrize(
    ("fields", "path", "told"),
    [
        ({"lrr": 1.0}, "optimizer.lrr", "did you mean optimizer.lr?"),
        ({"betas": [0.9, 1.0]}, "optimizer.betas.1", "1.0 is not allowed"),
        ({"name": "sgd", "betas": [0.9, 0.99]}, "optimizer.betas", "unknown key"),
        ({"name": "adamm"}, "optimizer.name", "'adamm' is unknown; did you mean adam"),
        ({"name": "sgd", "momentum": 0, "nesterov": True}, "optimizer", "looks ahead by the momentum, which is 0"),
        ({"name": "lamb", "weight_decay": 0}, "optimizer.weight_decay", "greater than 0"),
    ],
)
def test_a_mistake_is_told_once_with_its_path(fields: dict[str, Any], path: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(Run, {"optimizer": fields}, where="run.yaml")
    (problem,) = error.value.problems
    assert problem[0] == path and told in problem[1]


def test_what_needs_whole_tensors_is_refused_where_zero_cuts_them() -> None:
    sam = adamw.Config(sam=Sam())
    for stage in (None, 0):
        assert not lamb.Config().problem("zero", stage) and not sam.problem("zero", stage)
    for stage in (1, 2, 3):
        assert "whole tensor's norm, and zero at stage" in str(lamb.Config().problem("zero", stage))
        assert "engine.stage=0 or engine.name=plain" in str(sam.problem("zero", stage))
        assert sgd.Config().problem("zero", stage) is None


# --- SAM


def test_a_climb_reaches_the_worst_point_near_the_weights_and_comes_back_to_the_last_bit() -> None:
    weight, grad_unit = drawn(0, [(50,), (50,)])
    curvature = grad_unit.abs() + 0.1
    parameter = nn.Parameter(weight.clone())
    (0.5 * curvature * parameter.square()).sum().backward()  # its gradient is curvature * w
    climbed = Sam(rho=0.3).climb([parameter], [], scale=1.0, world=Alone())
    slope = curvature * weight
    torch.testing.assert_close(parameter.detach(), weight + 0.3 * slope / slope.norm())
    climbed.descend()
    assert torch.equal(parameter, weight)


def test_an_adaptive_climb_is_in_proportion_to_each_weight() -> None:
    weight, grad = drawn(0, [(50,), (50,)])
    parameter = nn.Parameter(weight.clone())
    parameter.grad = grad
    Sam(rho=0.5, adaptive=True).climb([parameter], [], scale=1.0, world=Alone())
    torch.testing.assert_close(parameter.detach(), weight + 0.5 * weight**2 * grad / (weight * grad).norm())


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_loss_scale_does_not_change_a_climb(adaptive: bool) -> None:
    ends = []
    for scale in (1.0, 2.0**12):
        replicated, sharded = (nn.Parameter(tensor) for tensor in drawn(0, [(20,), (30,)]))
        replicated.grad, sharded.grad = drawn(1, [(20,), (30,)])
        replicated.grad.mul_(scale)
        Sam(adaptive=adaptive).climb([replicated], [sharded], scale=scale, world=Alone())
        ends.append(torch.cat([replicated.detach(), sharded.detach()]))
    torch.testing.assert_close(*ends)


def climbed_on(world: World) -> list[Tensor]:
    """Where a replicated tensor and this rank's rows of a sharded one climb to."""
    cuts = [7 * rank // world.size for rank in range(world.size + 1)]
    mine = slice(cuts[world.rank], cuts[world.rank + 1])
    (replicated, rows), (grad, row_grads) = drawn(0, [(5,), (7, 3)]), drawn(1, [(5,), (7, 3)])
    parameters = [nn.Parameter(replicated), nn.Parameter(rows[mine].clone())]
    parameters[0].grad, parameters[1].grad = grad, row_grads[mine].clone()
    Sam(adaptive=True).climb(parameters[:1], parameters[1:], scale=1.0, world=world)
    return [parameter.detach() for parameter in parameters]


def test_a_climb_is_the_same_on_any_number_of_ranks() -> None:
    replicated, rows = climbed_on(Alone())
    ranks = run_ranks(climbed_on, 2)
    assert all(torch.allclose(found[0], replicated) for found in ranks)
    torch.testing.assert_close(torch.cat(list(itertools.chain(*(found[1:] for found in ranks)))), rows)


def test_weights_without_a_gradient_do_not_climb() -> None:
    parameter, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    other.grad = torch.zeros(3)
    Sam().climb([parameter, other], [], scale=1.0, world=Alone()).descend()
    assert torch.equal(parameter, torch.ones(3)) and torch.equal(other, torch.ones(3))
