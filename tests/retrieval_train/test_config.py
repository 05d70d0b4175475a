"""A config is read, checked and written: every mistake at once, each with its path and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import evaluate, train
from retrieval_train.config import ConfigError, check, dump, identity, load, read

GOOD = """
job: train
run: {name: tiny}
backbone: {name: timm, model: eva02_tiny_patch14_224, image_px: 56, weights: none}
head: {name: arcface, margin: 0.3}
data: {mixture: {toys: 1.0}, batch: 8}
engine: {name: zero, stage: 2}
length: {epochs: 2}
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def problems_of(path: Path, *overrides: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        check(train.Config, read(path, overrides=overrides), where="here.yaml")
    assert str(caught.value).startswith("here.yaml: ")
    return dict(caught.value.problems)


def test_what_was_dumped_loads_as_the_same_config(good: Path, tmp_path: Path) -> None:
    config = check(train.Config, read(good), where="good")
    (tmp_path / "dumped.yaml").write_text(dump(config))
    assert load(train.Config, tmp_path / "dumped.yaml") == config


def test_an_override_and_a_base_change_the_value(good: Path) -> None:
    (good.parent / "child.yaml").write_text("base: good.yaml\nhead: {scale: 12}\n")
    values = read(good.parent / "child.yaml", overrides=["head.margin=0.4"])
    config = check(train.Config, values, where="child")
    assert (config.head.scale, config.head.margin) == (12, 0.4)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "overrides",
    [["head.name=cosface"], ["head=cosface"], ["head={name: cosface}"], ["head.scale=20", "head.name=cosface"]],
)
def test_another_rule_or_loss_begins_anew(good: Path, overrides: list[str]) -> None:
    (good.parent / "child.yaml").write_text("base: good.yaml\nhead: {scale: 12}\nloss: {label_smoothing: 0.1}\n")
    values = read(good.parent / "child.yaml", overrides=[*overrides, "loss=focal"])
    config = check(train.Config, values, where="child")
    assert config.head.model_dump()["margin"] == 0.35, "ArcFace's 0.3 is no margin of CosFace"  # type: ignore[union-attr]
    assert config.head.scale == (20 if len(overrides) == 2 else 30)  # type: ignore[union-attr]
    assert config.loss.name == "focal"


def test_a_loss_without_a_name_is_a_softmax_and_the_same_name_keeps_what_was_said(good: Path) -> None:
    values = read(good, overrides=["loss.over=domain", "head.name=arcface"])
    config = check(train.Config, values, where="good")
    assert config.loss.model_dump() == {"name": "softmax", "label_smoothing": 0.0, "over": "domain"}
    assert config.head.model_dump()["margin"] == 0.3  # type: ignore[union-attr]
    assert problems_of(good, "loss.ovr=domain") == {"loss.ovr": "unknown key; did you mean loss.over?"}


def test_every_mistake_is_told_at_once(good: Path) -> None:
    found = problems_of(good, "head.margn=0.3", "head.margin=28.6", "data.batch=many", "engine.stage=7", "lenght=3")
    assert found == {
        "head.margn": "unknown key; did you mean head.margin?",
        "head.margin": "28.6 is not in [0, pi/2); margins are radians (28.6 degrees would be 0.499)",
        "data.batch": "'many' is text where a number is needed",
        "engine.stage": "7 is not allowed: input should be 0, 1, 2 or 3",
        "lenght": "unknown key; did you mean length?",
    }


def test_an_unknown_name_lists_the_names_there_are(good: Path) -> None:
    found = problems_of(good, "head.name=arcfaec", "engine.name=fsdp")
    assert found["head.name"].startswith(
        "'arcfaec' is unknown; did you mean arcface? there are: adacos, adaface, arcface"
    )
    assert found["engine.name"] == "'fsdp' is unknown; there are: plain, zero"


def test_a_missing_part_is_named(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.yaml"
    path.write_text("job: train\nrun: {name: x}\nhead: {margin: 0.3}\n")
    found = problems_of(path)
    assert found["backbone"] == "is required and missing"
    assert found["head.name"].startswith("is required and missing; one of: adacos, adaface, arcface")


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("data.batch=true", "data.batch"),
        ("seed='3'", "seed"),
        ("data.mixture.toys=true", "data.mixture"),
        ("optimizer.betas=['0.9',0.99]", "optimizer.betas"),
        ("optimizer.lr=.inf", "optimizer.lr"),
    ],
)
def test_numbers_are_numbers(good: Path, override: str, path: str) -> None:
    assert "number" in problems_of(good, override)[path]


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("data.mixture={../../etc: 1.0}", "data.mixture"),
        ("run.name=../x", "run.name"),
        ("optimizer.betas=[0.9,1.5]", "optimizer.betas"),
        ("data.augment.crop_scale=[0.5,7]", "data.augment.crop_scale"),
    ],
)
def test_names_stay_in_their_folder_and_values_in_their_range(good: Path, override: str, path: str) -> None:
    assert any(found.startswith(path) for found in problems_of(good, override))


def test_a_missing_file_suggests_the_nearest(good: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; did you mean .*good\.yaml"):
        read(good.parent / "goood.yaml")


def test_an_unset_environment_variable_is_named(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETRIEVAL_NOWHERE", raising=False)
    with pytest.raises(ConfigError, match="RETRIEVAL_NOWHERE, which is not set"):
        read(good, overrides=["backbone.weights=${oc.env:RETRIEVAL_NOWHERE}/x.safetensors"])


def test_malformed_yaml_and_overrides_are_told(good: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        read(tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match=r"head +not of the form key=value"):
        read(good, overrides=["head"])


def test_the_same_experiment_elsewhere_is_the_same_run(good: Path) -> None:
    def run_of(*overrides: str, inputs: str = "digest") -> str:
        return identity(check(train.Config, read(good, overrides=overrides), where="x"), {"data": inputs})

    here = run_of()
    assert here == run_of("runs_root=/elsewhere", "run.device=cpu", "tracking.wandb.mode=offline", "data.workers=4")
    assert here != run_of("head.margin=0.31")
    assert here != run_of("seed=1")
    assert here != run_of(inputs="other data")


def test_the_name_of_a_column_is_not_taken_twice(tmp_path: Path) -> None:
    values = {"job": "evaluate", "run": {"name": "e"}, "model": "m", "data": {"set": "s"}, "compare": {"trained": "x"}}
    with pytest.raises(ConfigError, match="'trained' is the name of another column"):
        check(evaluate.Config, values, where="x")
