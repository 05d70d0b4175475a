"""Each margin rule against its formula in plain floats, its slopes at the ends, its running state, its refusals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import pytest
import torch
from torch import Tensor

from retrieval_train.choice import Chosen
from retrieval_train.config import ConfigError, Section, check, dump, load
from retrieval_train.heads import (
    adacos,
    adaface,
    arcface,
    cosface,
    curricularface,
    dynamic_arcface,
    li_arcface,
    linear,
    magface,
    normface,
)
from retrieval_train.heads.rule import RuleConfig, Targets

COSINES = [-0.999, -0.95, -0.88, -0.87, -0.3, 0.0, 0.4, 0.9, 0.999]
NORMS = [0.0001, 3.0, 10.0, 18.0, 25.0, 60.0, 90.0, 150.0, 20.0]
STATE = {"scale": 9.5, "t": 0.35, "norm_mean": 21.0, "norm_std": 14.0}
MARGINS = [0.1, 0.45, 0.3, 0.2, 0.5, 0.0, 0.25, 0.35, 0.4]

RULES: list[RuleConfig] = [
    linear.Config(scale=2.0),
    normface.Config(),
    cosface.Config(),
    arcface.Config(),
    arcface.Config(easy=True),
    arcface.Config(gradient="straight_through"),
    li_arcface.Config(),
    adacos.Config(),
    curricularface.Config(),
    adaface.Config(),
    magface.Config(),
    magface.Config(easy=True),
    dynamic_arcface.Config(),
    dynamic_arcface.Config(easy=True, gradient="straight_through"),
]
ONE_PIECE = [rule for rule in RULES if not getattr(rule, "easy", False)]


class Run(Section):
    head: Annotated[RuleConfig, Chosen("retrieval_train.heads")]


def short(rule: RuleConfig) -> str:
    return rule.name + "".join(
        f"-{key}" for key in ("easy", "gradient") if getattr(rule, key, None) in (True, "straight_through")
    )


def each_rule(rules: Sequence[RuleConfig]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("rule", rules, ids=short)


def state_of(rule: RuleConfig, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {name: torch.tensor(STATE[name], dtype=dtype) for name in rule.first_state(100)}


def targets(
    cosines: Any,
    *,
    rows: Sequence[int] | None = None,
    norms: Any = None,
    margins: Any = None,
    dtype: Any = torch.float64,
) -> Targets:
    cosine_P = cosines if isinstance(cosines, Tensor) else torch.tensor(cosines, dtype=dtype)
    row_P = torch.arange(len(cosine_P)) if rows is None else torch.tensor(rows, dtype=torch.int64)
    num_rows = int(row_P.max()) + 1 if len(row_P) else 0
    norm_B = norms if isinstance(norms, Tensor) else torch.tensor(norms or [20.0] * num_rows, dtype=cosine_P.dtype)
    margin_P = torch.tensor(margins or [0.3] * len(cosine_P), dtype=torch.float64)
    return Targets(cosine_P, row_P, norm_B, margin_P)


def never(scale: Tensor) -> Tensor:
    raise AssertionError("a pass over all classes that this rule does not need")


# --- the formulas


def with_angle(cosine: float, margin: float, *, easy: bool) -> float:
    angle = math.acos(cosine)
    if easy:
        return math.cos(angle + margin) if cosine > 0 else cosine
    return math.cos(angle + margin) if angle + margin < math.pi else cosine - margin * math.sin(margin)


def target_written_out(rule: RuleConfig, cosine: float, norm: float, margin: float) -> float:
    match rule:
        case linear.Config() | normface.Config():
            return rule.scale * cosine
        case cosface.Config():
            return rule.scale * (cosine - rule.margin)
        case arcface.Config():
            return rule.scale * with_angle(cosine, rule.margin, easy=rule.easy)
        case li_arcface.Config():
            return rule.scale * (math.pi - 2 * (math.acos(cosine) + rule.margin)) / math.pi
        case adacos.Config():
            return STATE["scale"] * cosine
        case curricularface.Config():
            return rule.scale * with_angle(cosine, rule.margin, easy=False)
        case adaface.Config():
            clipped = min(max(norm, 0.001), 100)
            z = min(max(rule.h * (clipped - STATE["norm_mean"]) / (STATE["norm_std"] + 0.001), -1), 1)
            angle = min(max(math.acos(cosine) - rule.margin * z, 0.001), math.pi - 0.001)
            return rule.scale * (math.cos(angle) - (rule.margin + rule.margin * z))
        case magface.Config():
            share = (min(max(norm, rule.norm_min), rule.norm_max) - rule.norm_min) / (rule.norm_max - rule.norm_min)
            wide = rule.margin_min * (1 - share) + rule.margin_max * share
            return rule.scale * with_angle(cosine, wide, easy=rule.easy)
        case dynamic_arcface.Config():
            return rule.scale * with_angle(cosine, margin, easy=rule.easy)
    raise AssertionError(rule)


def other_written_out(rule: RuleConfig, cosine: float, target_cosine: float) -> float:
    match rule:
        case li_arcface.Config():
            return rule.scale * (math.pi - 2 * math.acos(cosine)) / math.pi
        case adacos.Config():
            return STATE["scale"] * cosine
        case curricularface.Config():
            hard = cosine > math.cos(math.acos(target_cosine) + rule.margin)
            return rule.scale * (cosine * (STATE["t"] + cosine) if hard else cosine)
    return rule.scale * cosine


def test_every_rule_of_the_folder_is_in_these_tests() -> None:
    assert {rule.name for rule in RULES} == set(Chosen("retrieval_train.heads").configs())


@each_rule(RULES)
def test_the_logits_of_targets_are_the_formula(rule: RuleConfig) -> None:
    for shift in range(len(NORMS)):  # each cosine meets each norm
        norms, margins = NORMS[shift:] + NORMS[:shift], MARGINS[shift:] + MARGINS[:shift]
        logit_P = rule.target(targets(COSINES, norms=norms, margins=margins), state_of(rule))
        wanted = [target_written_out(rule, *one) for one in zip(COSINES, norms, margins, strict=True)]
        assert logit_P.tolist() == pytest.approx(wanted, rel=1e-12, abs=1e-12)


@each_rule(RULES)
def test_the_logits_of_other_classes_are_the_formula(rule: RuleConfig) -> None:
    cosine_BC = torch.tensor([COSINES] * len(COSINES), dtype=torch.float64)
    state = state_of(rule)
    logit_BC = rule.others(cosine_BC, targets(COSINES, norms=NORMS), state)
    wanted = [[other_written_out(rule, cosine, of_target) for cosine in COSINES] for of_target in COSINES]
    for row in range(len(COSINES)):
        assert logit_BC[row].tolist() == pytest.approx(wanted[row], rel=1e-12, abs=1e-12)
    if rule.only_scales:
        assert torch.equal(logit_BC, rule.factor(state) * cosine_BC)


@each_rule([rule for rule in RULES if rule.many_labels])
def test_an_image_with_several_labels_has_the_logits_of_each_alone(rule: RuleConfig) -> None:
    rows, norms = [0, 0, 0, 1, 2, 2, 4, 4, 4], [15.0, 30.0, 70.0, 1.0, 45.0]
    together_P = rule.target(targets(COSINES, rows=rows, norms=norms, margins=MARGINS), state_of(rule))
    for pair, row in enumerate(rows):
        alone = targets([COSINES[pair]], norms=[norms[row]], margins=[MARGINS[pair]])
        assert together_P[pair] == rule.target(alone, state_of(rule))[0]


def test_only_curricularface_refuses_several_labels() -> None:
    assert [rule.name for rule in RULES if not rule.many_labels] == ["curricularface"]


def test_curricularface_changes_nothing_for_rows_without_a_label() -> None:
    rule, cosine_BC = curricularface.Config(), torch.tensor([COSINES] * 3, dtype=torch.float64)
    nobody = targets([], rows=[], norms=[1.0, 1.0, 1.0])
    assert torch.equal(rule.others(cosine_BC, nobody, state_of(rule)), rule.scale * cosine_BC)
    only_row_1 = targets([0.2], rows=[1], norms=[1.0, 1.0, 1.0])
    logit_BC = rule.others(cosine_BC, only_row_1, state_of(rule))
    assert torch.equal(logit_BC[[0, 2]], rule.scale * cosine_BC[[0, 2]])
    assert logit_BC[1].tolist() == pytest.approx([other_written_out(rule, c, 0.2) for c in COSINES])


# --- slopes


def slopes(
    function: Callable[[Tensor], Tensor], cosines: Any, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    cosine_P = torch.tensor(cosines, dtype=dtype).requires_grad_()
    value_P = function(cosine_P)
    (slope_P,) = torch.autograd.grad(value_P.sum(), cosine_P)
    return value_P.detach(), slope_P


@each_rule(RULES)
@pytest.mark.parametrize("norm", [0.0, 20.0, 1e6])
def test_value_and_slope_are_finite_at_cosine_plus_and_minus_one_in_float32(rule: RuleConfig, norm: float) -> None:
    state = state_of(rule, torch.float32)
    ends = [1.0, -1.0, math.nextafter(1, 0), 1 - 6e-8, -1 + 6e-8]
    norm_B = torch.full((5,), norm)
    value_P, slope_P = slopes(lambda c: rule.target(targets(c, norms=norm_B), state), ends, torch.float32)
    assert value_P.dtype == torch.float32 and value_P.isfinite().all() and slope_P.isfinite().all()
    of_targets = targets(torch.tensor(ends), norms=norm_B)
    beyond = [[1.0, -1.0, 1 + 2e-7, -1 - 2e-7, 0.0]] * 5  # products of rounded unit vectors may be above 1
    value_BC, slope_BC = slopes(lambda c: rule.others(c, of_targets, state), beyond, torch.float32)
    assert value_BC.dtype == torch.float32 and value_BC.isfinite().all() and slope_BC.isfinite().all()


@each_rule(RULES)
def test_slopes_are_bounded_however_near_the_ends(rule: RuleConfig) -> None:
    """1 / sqrt(1 - c^2) would be 2e7 at the last of these; the floor of the sine makes it 3162 at most."""
    near = [sign * (1 - 10.0**-power) for power in range(1, 16) for sign in (1, -1)]
    state, limit = state_of(rule), 3200 * float(rule.factor(state_of(rule)))
    _, slope_P = slopes(lambda c: rule.target(targets(c), state), near)
    _, slope_BC = slopes(lambda c: rule.others(c, targets(near), state), [near] * len(near))
    assert float(slope_P.abs().max()) < limit and float(slope_BC.abs().max()) < limit


@each_rule(ONE_PIECE)
@pytest.mark.parametrize("norm", [5.0, 20.0, 35.0, 200.0])
def test_a_larger_target_cosine_never_lowers_its_logit(rule: RuleConfig, norm: float) -> None:
    cosine_P = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    norm_B = torch.full_like(cosine_P, norm)
    logit_P = rule.target(targets(cosine_P, norms=norm_B), state_of(rule))
    assert (logit_P.diff() >= 0).all()


@each_rule([rule for rule in ONE_PIECE if rule.name in ("arcface", "curricularface", "magface", "dynamic_arcface")])
def test_where_the_margin_reaches_pi_the_logit_steps_down_to_the_straight_line(rule: RuleConfig) -> None:
    """c - m sin(m) is what all authors use; it lies cos(m) + m sin(m) - 1 below the -1 that it goes on from."""
    margin = {"magface": 0.45, "dynamic_arcface": 0.3}.get(rule.name, 0.5)
    at = -math.cos(margin)
    near = targets([at - 1e-9, at + 1e-9], norms=[1.0, 1.0], margins=[margin, margin])
    below, above = (rule.target(near, state_of(rule)) / rule.scale).tolist()
    assert above == pytest.approx(-1, abs=1e-8)
    assert above - below == pytest.approx(math.cos(margin) + margin * math.sin(margin) - 1, abs=1e-8)
    assert 0 < above - below < 0.15


@each_rule([rule for rule in RULES if hasattr(rule, "gradient")])
def test_straight_through_has_the_same_logits_and_the_slope_of_no_margin(rule: RuleConfig) -> None:
    values = rule.model_dump()
    exact, through = (type(rule)(**values | {"gradient": kind}) for kind in ("exact", "straight_through"))
    value_P, slope_P = slopes(lambda c: exact.target(targets(c), {}), COSINES)
    through_value_P, through_slope_P = slopes(lambda c: through.target(targets(c), {}), COSINES)
    torch.testing.assert_close(through_value_P, value_P, rtol=1e-14, atol=1e-14)
    assert (through_slope_P == rule.scale).all()
    assert (slope_P[6:] > rule.scale).any() and not torch.equal(slope_P, through_slope_P)


def test_curricularface_takes_t_and_the_choice_of_the_hard_classes_as_constants() -> None:
    rule = curricularface.Config()
    of_target_P = torch.tensor([0.6], dtype=torch.float64).requires_grad_()
    _, slope_BC = slopes(lambda c: rule.others(c, targets(of_target_P, norms=[1.0]), state_of(rule)), [[0.1, 0.5]])
    assert slope_BC.flatten().tolist() == pytest.approx([rule.scale, rule.scale * (STATE["t"] + 2 * 0.5)])
    cosine_BC = torch.tensor([[0.1, 0.5]], dtype=torch.float64)
    assert not rule.others(cosine_BC, targets(of_target_P, norms=[1.0]), state_of(rule)).requires_grad


# --- running state


def seen(
    rule: RuleConfig, batches: Sequence[Targets], others: Callable[[Tensor], Tensor] = never
) -> list[dict[str, float]]:
    """The state after each batch."""
    state = {name: value.double() for name, value in rule.first_state(11).items()}
    states = []
    for batch in batches:
        state = rule.observe(batch, state, others)
        states.append({name: value.item() for name, value in state.items()})
    return states


def test_curricularface_follows_the_mean_cosine_of_the_targets() -> None:
    batches = [targets([0.1, 0.3]), targets([0.8]), targets([-0.4, 0.0, 0.1])]
    found = [state["t"] for state in seen(curricularface.Config(), batches)]
    assert found == pytest.approx(
        [0.002, 0.00998, 0.0088802]
    )  # 0.01 x 0.2; 0.008 + 0.99 x 0.002; -0.001 + 0.99 x 0.00998
    assert seen(curricularface.Config(), [targets([], rows=[], norms=[1.0])]) == [{"t": 0.0}]


def test_adaface_follows_mean_and_standard_deviation_of_clipped_norms() -> None:
    batches = [
        targets([0.1] * 2, norms=[10.0, 30.0]),  # mean 20, std sqrt(200)
        targets([0.1] * 3, norms=[0.0, 50.0, 999.0]),  # clipped to 0.001, 50, 100: mean 50.000333, std 49.9995
        targets([0.1], norms=[60.0]),  # one row has no standard deviation
    ]
    found = seen(adaface.Config(momentum=0.5), batches)
    assert [state["norm_mean"] for state in found] == pytest.approx([20.0, 35.0001666667, 47.5000833333])
    stds = [(100 + math.sqrt(200)) / 2]
    stds.append((stds[0] + 49.9995) / 2)
    assert [state["norm_std"] for state in found] == pytest.approx([*stds, stds[1]], rel=1e-8)


def test_adaface_is_slow_unless_told_otherwise() -> None:
    """UniFEx's t_alpha of 1 forgot all batches but the last."""
    (state,) = seen(adaface.Config(), [targets([0.1] * 2, norms=[40.0, 60.0])])
    assert state["norm_mean"] == pytest.approx(20 + 0.01 * 30)
    assert state["norm_std"] == pytest.approx(100 + 0.01 * (math.sqrt(200) - 100))


def test_running_states_start_as_in_the_papers() -> None:
    first = {rule.name: {k: float(v) for k, v in rule.first_state(11).items()} for rule in RULES}
    assert {name: state for name, state in first.items() if state} == {
        "adacos": {"scale": pytest.approx(math.sqrt(2) * math.log(10))},
        "curricularface": {"t": 0.0},
        "adaface": {"norm_mean": 20.0, "norm_std": 100.0},
    }


def cosines_of_others(cosine_BC: list[list[float]]) -> Callable[[Tensor], Tensor]:
    return lambda scale: (scale * torch.tensor(cosine_BC, dtype=torch.float64)).logsumexp(1)


def test_adacos_sets_its_scale_as_written_in_the_paper() -> None:
    others = [[0.1, -0.2, 0.3], [0.0, 0.5, -0.1], [0.2, 0.2, 0.4], [0.1, 0.1, 0.1]]
    scale, wanted = math.sqrt(2) * math.log(10), []
    batches = [[0.9, 0.2, 0.95, 0.8], [0.1, 0.3, -0.2, 0.4], [0.99, 0.98, 0.97, 1.0]]
    for cosines in batches:  # medians of 4 angles: between the 2nd and 3rd; above pi/4 in the second batch
        angles = sorted(math.acos(cosine) for cosine in cosines)
        mean = sum(math.exp(scale * cosine) for row in others for cosine in row) / 4
        scale = math.log(mean) / math.cos(min(math.pi / 4, (angles[1] + angles[2]) / 2))
        wanted.append(scale)
    found = seen(adacos.Config(), [targets(cosines) for cosines in batches], cosines_of_others(others))
    assert [state["scale"] for state in found] == pytest.approx(wanted, rel=1e-6)


def test_adacos_counts_only_rows_with_a_label_and_those_once() -> None:
    others, cosines = [[0.1, 0.4], [0.9, 0.9], [0.3, -0.2]], [0.9, 0.8, 0.7]
    (found,) = seen(adacos.Config(), [targets(cosines, rows=[0, 0, 2], norms=[1.0] * 3)], cosines_of_others(others))
    scale = math.sqrt(2) * math.log(10)
    mean = sum(math.exp(scale * cosine) for cosine in [0.1, 0.4, 0.3, -0.2]) / 2
    assert found["scale"] == pytest.approx(math.log(mean) / 0.8, rel=1e-6)  # acos(0.8) is the median, below pi/4


def test_adacos_stays_finite_where_the_sum_itself_overflows() -> None:
    rule, state = adacos.Config(), {"scale": torch.tensor(64.0)}
    state = rule.observe(targets([0.9, 0.9], dtype=torch.float32), state, lambda scale: torch.tensor([150.0, 140.0]))
    assert float(state["scale"]) == pytest.approx((150 - math.log(2) + math.log1p(math.exp(-10))) / 0.9)


@pytest.mark.parametrize("log_sum", [-math.inf, math.nan, -3.0, 0.0])
def test_adacos_keeps_its_scale_where_a_batch_gives_none_above_zero(log_sum: float) -> None:
    first = math.sqrt(2) * math.log(10)
    for batch in (targets([0.5, 0.5]), targets([], rows=[], norms=[1.0, 1.0])):
        (state,) = seen(adacos.Config(), [batch], lambda scale: torch.full((2,), log_sum, dtype=torch.float64))
        assert state["scale"] == pytest.approx(first)


def test_fixed_adacos_never_looks_at_the_other_classes() -> None:
    (state,) = seen(adacos.Config(dynamic=False), [targets([0.5, 0.1])], never)
    assert state["scale"] == pytest.approx(math.sqrt(2) * math.log(10))


@each_rule(RULES)
def test_a_batch_leaves_names_types_and_the_given_state_alone(rule: RuleConfig) -> None:
    """Whoever keeps the state copies the new values over the old ones, in place."""
    state = state_of(rule, torch.float32)
    before = {name: value.clone() for name, value in state.items()}
    after = rule.observe(targets(COSINES, norms=NORMS), state, lambda scale: torch.full((9,), 5.0))
    assert {n: (v.dtype, v.shape) for n, v in after.items()} == {n: (v.dtype, v.shape) for n, v in state.items()}
    assert all(torch.equal(state[name], before[name]) for name in state)
    assert all(not torch.equal(after[name], before[name]) for name in state), "a batch must change the state"


# --- norms


def test_no_gradient_goes_through_adafaces_norm() -> None:
    norm_B = torch.tensor([15.0, 30.0], dtype=torch.float64).requires_grad_()
    cosine_P = torch.tensor([0.3, 0.7], dtype=torch.float64).requires_grad_()
    logit_P = adaface.Config().target(targets(cosine_P, norms=norm_B), state_of(adaface.Config()))
    grads = torch.autograd.grad(logit_P.sum(), [cosine_P, norm_B], allow_unused=True)
    assert grads[0] is not None and grads[1] is None


def test_magface_is_differentiated_through_the_norm_of_the_row() -> None:
    rule, cosines, rows = magface.Config(), [0.3, -0.97, 0.7, 0.5], [0, 0, 1, 2]
    norm_B = torch.tensor([40.0, 5.0, 110.5], dtype=torch.float64).requires_grad_()  # the last two are clipped
    logit_P = rule.target(targets(cosines, rows=rows, norms=norm_B), {})
    (slope_B,) = torch.autograd.grad(logit_P.sum(), norm_B)
    step = 1e-5
    by_hand = sum(
        target_written_out(rule, cosine, 40 + step, 0) - target_written_out(rule, cosine, 40 - step, 0)
        for cosine in cosines[:2]
    ) / (2 * step)
    assert slope_B.tolist() == pytest.approx([by_hand, 0.0, 0.0], rel=1e-6)
    assert by_hand < 0


def test_magfaces_penalty_rewards_length_up_to_the_limit() -> None:
    rule = magface.Config()
    norm_B = torch.tensor([0.0, 10.0, 40.0, 110.0, 500.0], dtype=torch.float64).requires_grad_()
    penalty_B = rule.penalty(norm_B)
    assert penalty_B is not None
    wanted = [35 * (a / 110**2 + 1 / a) for a in (10, 10, 40, 110, 110)]
    assert penalty_B.tolist() == pytest.approx(wanted)
    (slope_B,) = torch.autograd.grad(penalty_B.sum(), norm_B)
    assert slope_B.isfinite().all() and slope_B[[0, 4]].tolist() == [0, 0]
    assert float(slope_B[2]) == pytest.approx(35 * (1 / 110**2 - 1 / 40**2)) and float(slope_B[2]) < 0
    assert all(other.penalty(norm_B) is None for other in RULES if not isinstance(other, magface.Config))


# --- margins of classes


def margins_written_out(rule: dynamic_arcface.Config, counts: list[int]) -> list[float]:
    low, high = rule.margin_min, rule.margin_max
    if rule.law == "cosine":
        shares = [(n - min(counts)) / (max(counts) - min(counts)) for n in counts]
        return [low + 0.5 * (high - low) * (1 + math.cos(math.pi * share)) for share in shares]
    powers = [n**-0.25 for n in counts]
    return [low + (high - low) * (p - min(powers)) / (max(powers) - min(powers)) for p in powers]


LAWS = [dynamic_arcface.Config(law="cosine"), dynamic_arcface.Config(law="power", margin_min=0.05, margin_max=0.45)]
BY_LAW = pytest.mark.parametrize("rule", LAWS, ids=["cosine", "power"])


@BY_LAW
def test_a_class_has_the_margin_of_its_own_count(rule: dynamic_arcface.Config) -> None:
    """UniFEx took the margins in the order in which classes were first seen and looked them up by label."""
    counts = [7, 3, 120, 3, 40, 1, 55]
    margin_C = rule.margins(torch.tensor(counts))
    assert margin_C.tolist() == pytest.approx(margins_written_out(rule, counts), abs=1e-12)
    order = [4, 0, 6, 5, 2, 1, 3]
    assert torch.equal(rule.margins(torch.tensor(counts)[order]), margin_C[order])


@BY_LAW
def test_the_rarer_a_class_the_larger_its_margin(rule: dynamic_arcface.Config) -> None:
    margin_C = rule.margins(torch.tensor([1, 2, 5, 30, 31, 5000]))
    assert (margin_C.diff() < 0).all()
    assert margin_C[[0, -1]].tolist() == pytest.approx([rule.margin_max, rule.margin_min])


@BY_LAW
def test_equally_large_classes_and_those_without_images_have_finite_margins(rule: dynamic_arcface.Config) -> None:
    """min-max of equal counts is 0 / 0."""
    assert rule.margins(torch.tensor([9, 9, 9])).tolist() == pytest.approx([rule.margin_max] * 3)
    assert rule.margins(torch.tensor([9])).tolist() == pytest.approx([rule.margin_max])
    assert torch.equal(rule.margins(torch.tensor([0, 1, 9])), rule.margins(torch.tensor([1, 1, 9])))
    assert all(other.margins(torch.tensor([1, 2])) is None for other in RULES if other.name != "dynamic_arcface")


def test_the_easy_margin_has_no_step_but_at_cosine_zero() -> None:
    """S1's easy flag put arcface's straight line, which is lower by m sin(m), below cosine 0."""
    for rule in (arcface.Config(margin=0.15, easy=True), magface.Config(easy=True)):
        logit_P = rule.target(targets([-0.9, -1e-9, 0.0], norms=[10.0] * 3), {})
        assert logit_P.tolist() == pytest.approx([-0.9 * rule.scale, 0.0, 0.0], abs=1e-6)


# --- what is refused


@pytest.mark.parametrize("num_classes", [1, 2])
def test_adacos_refuses_so_few_classes_that_its_scale_is_zero(num_classes: int) -> None:
    with pytest.raises(ValueError, match=rf"{num_classes} classes: .*from 3 on; use normface"):
        adacos.Config().first_state(num_classes)


@pytest.mark.parametrize(
    ("values", "path", "message"),
    [
        ({"name": "adacos", "sample_rate": 0.5}, "head", "sample_rate is 0.5, but dynamic adacos finds its scale from"),
        ({"name": "adacos", "scale": 30}, "head.scale", "30 is given, but adacos finds its scale itself; leave it out"),
        (
            {"name": "li_arcface", "margin": 28.6},
            "head.margin",
            r"28.6 is not in \[0, pi/2\).*28.6 degrees would be 0.499",
        ),
        ({"name": "curricularface", "margin": -0.1}, "head.margin", r"-0.1 is not in \[0, pi/2\)"),
        ({"name": "adaface", "momentum": 0}, "head.momentum", "0 is not allowed"),
        ({"name": "magface", "norm_min": 50, "norm_max": 50}, "head", "norm_min 50 must be below norm_max 50"),
        ({"name": "magface", "margin_max": 1.6}, "head.margin_max", r"1.6 is not in \[0, pi/2\)"),
        ({"name": "dynamic_arcface", "margin_min": 0.6}, "head", "margin_min 0.6 must not be above margin_max 0.5"),
        ({"name": "dynamic_arcface", "margin": 0.6}, "head.margin", "unknown key"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check(Run, {"head": values}, where="a config")
    assert [problem[0] for problem in caught.value.problems] == [path]


@each_rule(RULES)
def test_a_rule_is_read_back_as_it_was_written(rule: RuleConfig, tmp_path: Any) -> None:
    config = check(Run, {"head": rule.model_dump()}, where="a config")
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load(Run, tmp_path / "config.yaml") == config
