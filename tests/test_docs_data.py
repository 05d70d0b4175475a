"""docs/data.md is true of the code: its configs are valid, its keys exist, and no order, preset or metric is missing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from retrieval_train.choice import Chosen
from retrieval_train.data.augment.presets import PRESETS
from retrieval_train.data.config import DataConfig

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
ORDERS = Chosen("retrieval_train.data.order").configs()
MIXTURE = {"food": 1.0, "cars": 1.0}


def inline_values() -> list[str]:
    """What stands in backticks and begins with a field of the data part: `order: {name: mixed}`."""
    fields = "|".join(DataConfig.model_fields)
    return sorted(set(re.findall(rf"`((?:{fields}): [^`]+)`", TEXT)))


def read(values: dict[str, Any]) -> DataConfig:
    return DataConfig.model_validate(values if "foreign" in values else {"mixture": MIXTURE, **values})


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_of_yaml_is_a_valid_data_part(block: str) -> None:
    values = yaml.safe_load(block)
    assert set(values) == {"data"}
    read(values["data"])


@pytest.mark.parametrize("text", inline_values())
def test_every_value_in_backticks_is_valid(text: str) -> None:
    read(yaml.safe_load(text))


def test_a_wrong_value_would_be_found() -> None:
    with pytest.raises(ValueError, match="streems"):
        read({"order": {"name": "mixed", "streems": 2}})


@pytest.mark.parametrize("key", sorted(set(re.findall(r"`(data\.[a-z_.]+[a-z])", TEXT))))
def test_every_dotted_key_is_a_field(key: str) -> None:
    models: list[type[BaseModel]] = [DataConfig]
    for name in key.split(".")[1:]:
        fields = [model.model_fields[name] for model in models if name in model.model_fields]
        assert fields, f"{key}: no field {name}"
        models = [part for field in fields for part in models_of(field.annotation)]
        if name == "order":
            models += ORDERS.values()


def models_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in models_of(part)]


def test_every_order_and_every_preset_is_told_of() -> None:
    assert [name for name in ORDERS if f"`order: {{name: {name}" not in TEXT] == []
    assert [name for name in PRESETS if not re.search(rf"^\|[^|]*`{name}`", TEXT, re.MULTILINE)] == []


def test_every_metric_of_the_page_is_written_by_a_run() -> None:
    engine, data = (Path(__file__).parents[1] / "retrieval_train" / part for part in ("engine", "data"))
    source = (engine / "watchers.py").read_text("utf-8") + (data / "intake.py").read_text("utf-8")
    named = set(re.findall(r"`(data_[a-z_]+|bad_samples|step_s)`", TEXT))
    assert len(named) >= 6
    assert [name for name in named if f'"{name}"' not in source] == []


def test_every_link_and_picture_of_the_page_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links
    assert [link for link in links if not (DOCS / link).exists()] == []
