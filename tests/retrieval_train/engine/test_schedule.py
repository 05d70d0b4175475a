"""Learning rates against values written out by hand, and lengths in epochs, steps and images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from retrieval_train.config import ConfigError, Section, check, dump, load
from retrieval_train.engine.length import Length
from retrieval_train.engine.schedule import Schedule, ScheduleConfig


class Run(Section):
    """As a job has them."""

    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate."""
    length: Length = Length(steps=10)
    """How long."""


def built(num_steps: int, **fields: Any) -> Schedule:
    """10 steps an epoch, 32 images a step."""
    return ScheduleConfig.model_validate(fields).build(num_steps, epoch_steps=10, batch=32)


def factors(num_steps: int, **fields: Any) -> list[float]:
    schedule = built(num_steps, **fields)
    return [schedule.factor(step) for step in range(num_steps)]


@pytest.mark.parametrize("num_steps", [1, 2, 7, 300])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.9])
def test_the_cosine_is_half_a_period_after_a_linear_warmup(num_steps: int, warmup: float) -> None:
    warm = warmup * num_steps
    expected = []
    for step in range(num_steps):
        share = (step - warm) / max(num_steps - 1 - warm, 1)
        down = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        expected.append((step + 1) / (warm + 1) if step < warm else down)
    assert factors(num_steps, warmup=warmup) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": "constant", "warmup": 0.4}, [1 / 3, 2 / 3, 1, 1, 1]),
        ({"name": "poly", "warmup": 0, "min_ratio": 0}, [1, 0.75, 0.5, 0.25, 0]),
        ({"name": "poly", "warmup": 0, "min_ratio": 0.2, "power": 2}, [1, 0.65, 0.4, 0.25, 0.2]),
        ({"name": "poly", "warmup": {"steps": 1}, "min_ratio": 0}, [0.5, 1, 2 / 3, 1 / 3, 0]),
        ({"name": "multistep", "warmup": 0, "at": [1, 3], "factor": 0.5}, [1, 0.5, 0.5, 0.25, 0.25]),
        ({"name": "multistep", "warmup": 0, "at": [0.4]}, [1, 1, 0.1, 0.1, 0.1]),
        ({"name": "cosine", "warmup": 0, "min_ratio": 0}, [1, 0.5 + 2**-1.5, 0.5, 0.5 - 2**-1.5, 0]),
    ],
)
def test_each_shape_has_these_values_over_five_steps(fields: dict[str, Any], expected: list[float]) -> None:
    assert factors(5, **fields) == pytest.approx(expected, abs=1e-12)


def test_multistep_drops_at_a_third_and_two_thirds_where_nothing_is_said() -> None:
    expected = [1.0] * 3 + [0.1] * 3 + [0.01] * 3
    assert factors(9, name="multistep", warmup=0) == pytest.approx(expected)


def test_an_exponential_warmup_multiplies_the_shape_from_the_first_step_on() -> None:
    shape = factors(50, name="poly", warmup=0)
    warm = factors(50, name="poly", warmup={"steps": 10}, warmup_shape="exponential")
    assert warm == pytest.approx([(1 - math.exp(-(step + 1) / 10)) * shape[step] for step in range(50)])
    assert factors(50, name="poly", warmup=0, warmup_shape="exponential") == shape


@pytest.mark.parametrize("warmup", [{"steps": 5}, {"epochs": 0.5}, {"images": 160}, {"images": 129}, 0.25])
def test_a_warmup_is_as_long_in_steps_epochs_images_or_a_share(warmup: Any) -> None:
    assert factors(20, warmup=warmup) == factors(20, warmup={"steps": 5})


@pytest.mark.parametrize(
    ("length", "steps"),
    [({"epochs": 2.5}, 25), ({"epochs": 0.01}, 1), ({"steps": 7}, 7), ({"images": 64}, 2), ({"images": 65}, 3)],
)
def test_a_length_is_a_number_of_steps(length: dict[str, Any], steps: int) -> None:
    assert Length.model_validate(length).num_steps(10, 32) == steps


@pytest.mark.parametrize(
    ("length", "told"), [({}, "none of them"), ({"epochs": 1, "steps": 2}, "epochs=1.0 and steps=2")]
)
def test_a_length_is_given_exactly_once(length: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=f"exactly one of epochs, steps and images, not {told}"):
        Length.model_validate(length)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"warmup": {"steps": 20}}, "warmup is 20 steps long and the whole run 20"),
        ({"warmup": {"epochs": 3}}, "warmup is 30 steps long and the whole run 20"),
        ({"name": "multistep", "at": [5, 20]}, r"at step 20, which is not between the end of the warmup \(1\)"),
        (
            {"name": "multistep", "at": [2], "warmup": {"steps": 4}},
            r"at step 2, .* warmup \(4\) and that of the run \(20\)",
        ),
    ],
)
def test_a_run_too_short_for_its_schedule_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        built(20, **fields)


@pytest.mark.parametrize(
    ("fields", "path", "told"),
    [
        ({"warmup": 3}, "schedule.warmup", "3 is not in .*{steps: 3}"),
        ({"warmup": -0.1}, "schedule.warmup", "-0.1 is not in"),
        ({"warmup": "0.1"}, "schedule.warmup", "'0.1' is text where a number is needed"),
        ({"warmup": {"step": 3}}, "schedule.warmup.step", "did you mean schedule.warmup.steps"),
        ({"warmup": {"steps": 3, "images": 9}}, "schedule.warmup", "not steps=3 and images=9"),
        ({"name": "multistep", "at": [0.6, 0.5]}, "schedule", r"\[0.6, 0.5\] is not allowed: .*ascending"),
        ({"name": "multistep", "at": [0.5, 100]}, "schedule", "shares .* or whole numbers of steps"),
        ({"name": "multistep", "at": []}, "schedule", "is not allowed"),
        ({"power": 2.0}, "schedule", "power is for poly, and the name is cosine"),
        ({"name": "constant", "min_ratio": 0.1}, "schedule", "min_ratio is for cosine and poly"),
    ],
)
def test_a_mistake_is_told_once_with_its_path(fields: dict[str, Any], path: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        check(Run, {"schedule": fields}, where="run.yaml")
    assert [where for where, _ in error.value.problems] == [path]


@pytest.mark.parametrize("warmup", [0.1, {"images": 100}])
def test_a_schedule_outlives_being_written_to_a_file(warmup: Any, tmp_path: Path) -> None:
    run = Run.model_validate({"schedule": {"name": "multistep", "warmup": warmup}, "length": {"images": 1000}})
    (tmp_path / "run.yaml").write_text(dump(run))
    assert load(Run, tmp_path / "run.yaml") == run
