"""Losses between two views of an image, and between two embeddings of it, against loops over rows and over ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from retrieval_train.heads import normface
from retrieval_train.heads.centres import Head
from retrieval_train.losses import consistency, distillation, simsiam
from retrieval_train.losses.layers import ProjectAndPredict, Teachers
from retrieval_train.losses.loss import LossConfig, Seen
from retrieval_train.world import Alone, World
from tests.processes import run_ranks

NAMES = ["a/0", "a/1", "a/2", "b/0", "b/1", "c/0", "c/1"]
LABELS = [0, 3, 5, 1, 1, 4, 6, 0, -1]
DOMAINS = [0, 1, 2, 0, 0, 1, 2, 0, 3]  # nothing is known of the last row, and its domain has no classes
ROWS, UNLABELLED, DIM, TEACHER_DIM, PROJECTION = len(LABELS), 3, 5, 3, 4
SCALE = 6.0

CASES: dict[str, LossConfig] = {
    "probabilities": consistency.Config(),
    "kl": consistency.Config(kind="kl"),
    "logits": consistency.Config(on="logits"),
    "embeddings": consistency.Config(on="embeddings"),
    "simsiam": simsiam.Config(projection=PROJECTION),
    "distillation": distillation.Config(
        teacher_dim=TEACHER_DIM,
        teacher_scale=8,
        classification=0.7,
        logits=0.5,
        relations=3,
        temperature=0.4,
    ),
    "relations": distillation.Config(teacher_dim=TEACHER_DIM, classification=0, logits=0, relations=2),
}
LEAVES = ("emb", "strong", "unlabelled", "unlabelled_strong", "extra", "strong_extra", "centres", "teacher_centres")


def drawn(case: str) -> dict[str, Tensor]:
    """The whole batch, the same in every process."""
    generator = torch.Generator().manual_seed(7)
    columns = 2 * PROJECTION if case == "simsiam" else 4 * TEACHER_DIM
    shapes = {"emb": (ROWS, DIM), "strong": (ROWS, DIM), "extra": (ROWS, columns), "strong_extra": (ROWS, columns)}
    shapes |= {"unlabelled": (UNLABELLED, DIM), "unlabelled_strong": (UNLABELLED, DIM)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def head(world: World, dim: int, scale: float, seed: int) -> Any:
    return Head(normface.Config(scale=scale), NAMES, dim=dim, world=world, seed=seed).double()


def seen_of(
    world: World, case: str, counts: tuple[int, ...], unlabelled_counts: tuple[int, ...]
) -> tuple[Seen, dict[str, Tensor]]:
    """One rank's view of the batch, and the leaves of its graph."""
    leaves = {}
    for name, whole in drawn(case).items():
        parts = whole.split(list(unlabelled_counts if name.startswith("unlabelled") else counts))
        leaves[name] = parts[world.rank].clone().requires_grad_()
    student, teacher = head(world, DIM, SCALE, seed=1), head(world, TEACHER_DIM, 8, seed=2)
    label_B = torch.tensor(LABELS)
    seen = Seen(
        world=world,
        counts=counts,
        emb_ND=leaves["emb"],
        emb_BD=world.gather(leaves["emb"], list(counts)),
        label_B=label_B,
        domain_B=torch.tensor(DOMAINS),
        row_P=(label_B >= 0).nonzero(as_tuple=True)[0],
        class_P=label_B[label_B >= 0],
        classes=student,
        own_classes={"teacher": teacher},
        extra_NE=leaves["extra"],
        strong_ND=leaves["strong"],
        strong_extra_NE=leaves["strong_extra"],
        unlabelled_UD=leaves["unlabelled"],
        unlabelled_strong_UD=leaves["unlabelled_strong"],
        unlabelled_counts=unlabelled_counts,
    )
    return seen, leaves | {"centres": student.centre_CKD, "teacher_centres": teacher.centre_CKD}


def outcome(
    world: World, case: str, counts: tuple[int, ...] = (ROWS,), unlabelled: tuple[int, ...] = (UNLABELLED,)
) -> dict[str, Tensor]:
    seen, leaves = seen_of(world, case, counts, unlabelled)
    value = CASES[case].value(seen)
    value.loss.backward()
    assert value.row_B is not None
    told = {"loss": value.loss.detach(), "row_B": value.row_B}
    return told | {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaves.items()}


def outcomes(world: World, counts: tuple[int, ...], unlabelled: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Of every loss, as numpy: tensors would be shared through files of a process that ends."""
    all_of_them = {case: outcome(world, case, counts, unlabelled) for case in CASES}
    return {case: {name: x.numpy() for name, x in told.items()} for case, told in all_of_them.items()}


# --- the formulas written out


def cosine(a_D: Tensor, b_D: Tensor) -> Tensor:
    return (a_D * b_D).sum() / (a_D.square().sum() * b_D.square().sum()).sqrt()


def probabilities(scores: list[Tensor]) -> list[Tensor]:
    total = sum(score.exp() for score in scores)
    return [score.exp() / total for score in scores]


def divergence(p: list[Tensor], q: list[Tensor]) -> Any:
    return sum(one.detach() * (one.detach().log() - other.log()) for one, other in zip(p, q, strict=True))


def consistency_by_hand(config: consistency.Config, x: dict[str, Tensor]) -> Any:
    def made(emb_D: Tensor) -> list[Tensor]:
        if config.on == "embeddings":
            return list(emb_D / emb_D.square().sum().sqrt())
        logits = [SCALE * cosine(emb_D, centre_D) for centre_D in x["centres"][:, 0]]
        return logits if config.on == "logits" else probabilities(logits)

    weak, strong = [*x["emb"], *x["unlabelled"]], [*x["strong"], *x["unlabelled_strong"]]
    total: Any = 0.0
    for one, other in zip(map(made, weak), map(made, strong), strict=True):
        if config.kind == "kl":
            total += divergence(one, other)
        else:
            total += sum((a.detach() - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one)
    return total / len(weak)


def simsiam_by_hand(config: simsiam.Config, x: dict[str, Tensor]) -> Any:
    total: Any = 0.0
    for one, other in zip(x["extra"], x["strong_extra"], strict=True):
        z1, p1, z2, p2 = one[:PROJECTION], one[PROJECTION:], other[:PROJECTION], other[PROJECTION:]
        total += -(cosine(p1, z2.detach()) + cosine(p2, z1.detach())) / 2
    return total / ROWS


def distillation_by_hand(config: distillation.Config, x: dict[str, Tensor]) -> Any:
    teacher = [x["extra"][i, domain * TEACHER_DIM : (domain + 1) * TEACHER_DIM] for i, domain in enumerate(DOMAINS)]
    classes_of = [[c for c, name in enumerate(NAMES) if name[0] == "abcd"[domain]] for domain in DOMAINS]
    classified: Any = 0.0
    logits: Any = 0.0
    relations: Any = 0.0
    pairs = 0
    for i, mine in enumerate(classes_of):
        of_teacher = [cosine(teacher[i], x["teacher_centres"][c, 0]) for c in mine]
        of_student = [cosine(x["emb"][i], x["centres"][c, 0]) for c in mine]
        if LABELS[i] >= 0:
            classified -= probabilities([8 * score for score in of_teacher])[mine.index(LABELS[i])].log()
        p, q = ([score / config.temperature for score in scores] for scores in (of_teacher, of_student))
        logits += divergence(probabilities(p), probabilities(q))
        for j in range(ROWS):
            if DOMAINS[i] == DOMAINS[j]:
                pairs += 1
                relations += (cosine(teacher[i], teacher[j]).detach() - cosine(x["emb"][i], x["emb"][j])) ** 2
    parts = config.classification * classified / ROWS + config.logits * logits / ROWS
    return parts + config.relations * relations / pairs


BY_HAND: dict[type[LossConfig], Callable[[Any, dict[str, Tensor]], Any]] = {
    consistency.Config: consistency_by_hand,
    simsiam.Config: simsiam_by_hand,
    distillation.Config: distillation_by_hand,
}


def assert_same(found: Any, expected: Tensor, what: str) -> None:
    tell = f"{what}: {{}}".format
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-10, atol=1e-13, msg=tell)


@pytest.mark.parametrize("case", CASES)
def test_a_loss_and_its_gradient_are_those_of_the_formula_written_out(case: str) -> None:
    told = outcome(Alone(), case)
    _, leaves = seen_of(Alone(), case, (ROWS,), (UNLABELLED,))
    by_hand = BY_HAND[type(CASES[case])](CASES[case], leaves)
    by_hand.backward()
    assert told["loss"].abs() > 1e-3
    assert_same(told["loss"], by_hand.detach(), "loss")
    for name, leaf in leaves.items():
        assert_same(told[name], torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, name)


@pytest.mark.parametrize(
    ("counts", "unlabelled"),
    [((4, 5), (0, 3)), ((3, 1, 5), (2, 0, 1)), ((2, 3, 1, 3), (1, 1, 1, 0))],
    ids=["2 ranks", "3 ranks", "4 ranks"],
)
def test_ranks_have_the_loss_and_the_gradient_of_one_process(
    counts: tuple[int, ...], unlabelled: tuple[int, ...]
) -> None:
    ranks = run_ranks(outcomes, len(counts), counts, unlabelled)
    for case in CASES:
        alone = outcome(Alone(), case)
        for rank in ranks:
            assert_same(rank[case]["loss"], alone["loss"], f"{case}, loss")
            assert_same(rank[case]["row_B"], alone["row_B"], f"{case}, rows")
        for name in LEAVES:
            together = torch.cat([torch.from_numpy(rank[case][name]) for rank in ranks])
            assert_same(together, alone[name], f"{case}, {name}")


# --- what a step may meet


def backward(config: LossConfig, seen: Seen) -> Tensor:
    value = config.value(seen)
    value.loss.backward()
    return value.loss.detach()


@pytest.mark.parametrize("case", ["probabilities", "kl", "logits", "embeddings"])
def test_two_views_that_are_equal_are_consistent(case: str) -> None:
    seen, leaves = seen_of(Alone(), case, (ROWS,), (UNLABELLED,))
    seen = replace(seen, strong_ND=leaves["emb"], unlabelled_strong_UD=leaves["unlabelled"])
    assert backward(CASES[case], seen).abs() < 1e-15
    assert leaves["emb"].grad is not None and leaves["emb"].grad.abs().max() < 1e-14


def test_without_unlabelled_images_only_the_labelled_ones_count() -> None:
    seen, _ = seen_of(Alone(), "probabilities", (ROWS,), (UNLABELLED,))
    alone = replace(seen, unlabelled_UD=None, unlabelled_strong_UD=None, unlabelled_counts=())
    value = CASES["probabilities"].value(alone)
    rows = CASES["probabilities"].value(seen).row_B
    assert rows is not None and value.loss.item() == pytest.approx(rows.mean().item(), rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_rows_that_are_all_equal_or_all_zero_or_alone_leave_gradients_finite(case: str) -> None:
    for value, num in ((1.0, ROWS), (0.0, ROWS), (1.0, 1)):
        seen, _ = seen_of(Alone(), case, (ROWS,), (UNLABELLED,))
        names = {"emb_ND": DIM, "strong_ND": DIM, "extra_NE": drawn(case)["extra"].shape[1]}
        names |= {"strong_extra_NE": names["extra_NE"]}
        flat = {name: torch.full((num, size), value, requires_grad=True) for name, size in names.items()}
        label_B = seen.label_B[:num]
        classes, teacher = head(Alone(), DIM, SCALE, seed=1).float(), head(Alone(), TEACHER_DIM, 8, seed=2).float()
        few = Seen(
            world=Alone(),
            counts=(num,),
            emb_BD=flat["emb_ND"],
            label_B=label_B,
            domain_B=seen.domain_B[:num],
            row_P=(label_B >= 0).nonzero(as_tuple=True)[0],
            class_P=label_B[label_B >= 0],
            classes=classes,
            own_classes={"teacher": teacher},
            **flat,  # type: ignore[arg-type]
        )
        assert math.isfinite(backward(CASES[case], few))
        grads = [x.grad for x in (*flat.values(), classes.centre_CKD, teacher.centre_CKD) if x.grad is not None]
        assert grads and all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("case", CASES)
def test_a_forward_without_second_views_and_layers_adds_nothing(case: str) -> None:
    seen, leaves = seen_of(Alone(), case, (ROWS,), (UNLABELLED,))
    assert backward(CASES[case], replace(seen, strong_ND=None, extra_NE=None, strong_extra_NE=None)) == 0
    assert leaves["emb"].grad is not None and not leaves["emb"].grad.any()


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="KL compares probabilities, not embeddings"):
        consistency.Config(kind="kl", on="embeddings")
    with pytest.raises(ValidationError, match="all 0: nothing would be learned"):
        distillation.Config(classification=0, logits=0, relations=0)
    assert consistency.Config().needs_head and not consistency.Config(on="embeddings").needs_head


# --- the layers


def test_a_projection_is_normal_over_the_batch_and_the_predictor_sees_nothing_else() -> None:
    torch.manual_seed(0)
    layers = simsiam.Config(projection=6, hidden=3).layers(num_features=4, dim=DIM, num_domains=2)
    assert isinstance(layers, ProjectAndPredict)
    emb_ND = 5 + torch.randn(50, DIM)
    z_NZ, p_NZ = layers(torch.randn(50, 4), emb_ND).chunk(2, dim=1)
    torch.testing.assert_close(z_NZ.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(z_NZ.var(0, unbiased=False), torch.ones(6), atol=1e-2, rtol=0)
    torch.testing.assert_close(p_NZ, layers.predictor(z_NZ))


def test_each_domain_has_a_teacher_of_its_own_that_sees_features_of_length_1() -> None:
    torch.manual_seed(0)
    config = distillation.Config(teacher_dim=TEACHER_DIM)
    layers = config.layers(num_features=4, dim=DIM, num_domains=3)
    assert isinstance(layers, Teachers)
    features_NF = torch.randn(5, 4)
    teacher_NX = layers(features_NF, torch.randn(5, DIM))
    assert teacher_NX.shape == (5, 3 * TEACHER_DIM)
    torch.testing.assert_close(layers(7 * features_NF, torch.zeros(5, DIM)), teacher_NX)
    teacher_NX[:, TEACHER_DIM : 2 * TEACHER_DIM].sum().backward()
    grad = layers.projection.weight.grad
    assert grad is not None
    assert grad.any(dim=1).tolist() == [False] * TEACHER_DIM + [True] * TEACHER_DIM + [False] * TEACHER_DIM
    assert config.heads(dim=DIM) == {"teacher": ({"name": "normface", "scale": 16.0}, TEACHER_DIM)}
