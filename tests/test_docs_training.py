"""docs/training.md is true of the code: its configs are valid, its keys exist, and no optimizer is missing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import find_lr, train
from retrieval_train.choice import Chosen
from retrieval_train.engine import zero

TEXT = (Path(__file__).resolve().parents[1] / "docs/training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
LEAST: dict[str, Any] = {
    "job": "train",
    "run": {"name": "x"},
    "backbone": {"name": "timm", "model": "test_vit", "weights": "none"},
    "head": {"name": "arcface"},
    "data": {"mixture": {"food": 1.0}},
    "engine": {"name": "zero"},
    "length": {"steps": 10},
}
SECTIONS = {
    "engine": zero.Config,
    "run": train.Config.model_fields["run"].annotation,
    "checkpoint": train.CheckpointConfig,
    "faults": train.FaultsConfig,
    "find": find_lr.FindConfig,
}


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_of_yaml_is_part_of_a_valid_config(block: str) -> None:
    config = train.Config.model_validate(LEAST | yaml.safe_load(block))
    lacking = {"offload.nvme"}  # told on the login node where nvme is asked for
    assert not [key for key, _ in config.engine.problems() if key not in lacking]
    assert config.optimizer.problem(config.engine.name, getattr(config.engine, "stage", None)) is None


@pytest.mark.parametrize("key", sorted(set(re.findall(rf"`((?:{'|'.join(SECTIONS)})\.[a-z_]+)", TEXT))))
def test_every_dotted_key_is_a_field(key: str) -> None:
    section, _, field = key.partition(".")
    assert field in SECTIONS[section].model_fields, key  # type: ignore[union-attr]


def test_every_optimizer_is_there() -> None:
    assert not [name for name in Chosen("retrieval_train.engine.optimizers").configs() if f"`{name}`" not in TEXT]
