"""Options of ZeRO say where things lie and how they travel: none changes a number, and all read each other's state."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from retrieval_train.engine import plain, zero
from retrieval_train.world import Alone, World
from tests.processes import run_ranks
from tests.retrieval_train.engine.test_engines import (
    HALF,
    STEPS,
    engine_of,
    leave_a_poisoned_step_out,
    save,
    steps,
)

OPTIONS: dict[str, dict[str, Any]] = {
    "optimizer on the CPU, stage 1": {"stage": 1, "offload": {"optimizer": "cpu"}},
    "optimizer on the CPU, stage 2": {"stage": 2, "offload": {"optimizer": "cpu"}, "accumulate": 2},
    "optimizer and weights on the CPU": {"stage": 3, "offload": {"optimizer": "cpu", "weights": "cpu"}},
    "nothing stays gathered": {"stage": 3, "live_mb": 0},
    "overlap, stage 1": {"stage": 1, "overlap": True},
    "overlap, stage 3": {"stage": 3, "overlap": True},
    "weights whole within a node": {"stage": 3, "plus_plus": {"ranks_with_all_weights": 2}},
}


def every_option(world: World, folder: Path) -> dict[str, Any]:
    """Train with each; the next one goes on from its half-way state."""
    logging.disable(logging.WARNING)
    out: dict[str, Any] = {}
    names = list(OPTIONS)
    for number, name in enumerate(names):
        config = zero.Config(clip_norm=0.5, **OPTIONS[name])
        engine = engine_of(config, world)
        first = steps(engine, world, until=HALF, accumulate=config.accumulate)
        save(engine, folder / str(number), {}, world)
        out[name] = first + steps(engine, world, until=STEPS, accumulate=config.accumulate)
        leave_a_poisoned_step_out(engine, world, accumulate=config.accumulate)
        engine.close()
        heir = zero.Config(clip_norm=0.5, **OPTIONS[names[(number + 1) % len(names)]])
        resumed = engine_of(heir, world)
        resumed.load(folder / str(number))
        out[f"what goes on from {name}"] = steps(resumed, world, until=STEPS, accumulate=heir.accumulate)
        resumed.close()
    return out


def test_no_option_changes_a_number(tmp_path: Path) -> None:
    world = Alone()
    dense = steps(engine_of(plain.Config(clip_norm=0.5), world), world, until=STEPS)
    for out in run_ranks(every_option, 2, tmp_path):
        for case, figures in out.items():
            assert figures == [pytest.approx(f, rel=1e-5) for f in dense[-len(figures) :]], case


@pytest.mark.parametrize(
    ("values", "key", "told"),
    [
        ({"stage": 0, "offload": {"optimizer": "cpu"}}, "offload.optimizer", "stage 0 leaves the optimizer to torch"),
        (
            {"stage": 2, "offload": {"optimizer": "nvme", "nvme": "/scratch"}},
            "offload.optimizer",
            "nvme is for stage 3, this is stage 2",
        ),
        ({"stage": 2, "offload": {"weights": "cpu"}}, "offload.weights", "only stage 3 shares the weights out"),
        ({"stage": 3, "offload": {"weights": "nvme"}}, "offload.nvme", "a folder on a local disk"),
        ({"stage": 1, "plus_plus": {"ranks_with_all_weights": 8}}, "plus_plus", "is for stage 3, this is stage 1"),
        ({"stage": 3, "compile": True}, "compile", "torch.compile cannot see"),
        ({"precision": "bf16", "loss_scale": 8.0}, "loss_scale", "is for precision fp16, this is bf16"),
    ],
)
def test_options_that_do_not_go_together_are_told_on_the_login_node(
    values: dict[str, Any], key: str, told: str
) -> None:
    (found,) = zero.Config(**values).problems()
    assert found[0] == key and told in found[1]
