"""Sets whose images have several labels: losses and rules that cannot take them are refused, and so is evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import evaluate, job
from retrieval_train.config import ConfigError
from tests.jobs.test_objectives import values
from tests.retrieval_train.data.conftest import make_sets, make_tags

ONE = "takes images with one label each, and a set of data.mixture has several; take another"
ARCFACE = {"name": "arcface"}
CURRICULAR = {"name": "curricularface"}


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards_root with `tags` and, with one label an image, `more`."""
    return make_tags(make_sets(tmp_path_factory.mktemp("sets")))


def problems(sets: Path, **more: Any) -> list[tuple[str, str]]:
    data = {"mixture": {"tags": 1.0, "more": 1.0}, "batch": 4}
    try:
        job.check(values(sets, {"name": "plain"}, evaluate=None, data=data, **more), where="a config")
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    ("objective", "key", "name"),
    [
        ({"head": ARCFACE, "loss": {"name": "focal"}}, "loss", "focal"),
        ({"head": None, "loss": {"name": "xbm"}}, "loss", "xbm"),
        ({"head": CURRICULAR}, "head", "curricularface"),
        ({"head": CURRICULAR, "aux": {"more": {"loss": {"name": "bce"}}}}, "head", "curricularface"),
        ({"head": None, "loss": {"name": "triplet"}, "aux": {"x": {"loss": {"name": "xbm"}}}}, "aux.x.loss", "xbm"),
        (
            {"head": ARCFACE, "aux": {"x": {"head": CURRICULAR, "loss": {"name": "bce"}}}},
            "aux.x.head",
            "curricularface",
        ),
    ],
)
def test_what_takes_one_label_an_image_is_told_once(
    tagged: Path, objective: dict[str, Any], key: str, name: str
) -> None:
    assert problems(tagged, **objective) == [(key, f"'{name}' {ONE}")]


@pytest.mark.parametrize("loss", ["softmax", "bce", "proxy_anchor", "triplet", "supcon", "multi_similarity"])
def test_what_takes_several_is_not_refused(tagged: Path, loss: str) -> None:
    has_head = loss in ("softmax", "bce", "proxy_anchor")
    assert problems(tagged, head=ARCFACE if has_head else None, loss={"name": loss}) == []


def test_evaluation_on_them_is_refused(tagged: Path) -> None:
    text = "set 'tags' has images with several labels, and no metric here takes them"
    assert ("set", text) in evaluate.EvaluationData(set="tags").problems(tagged)
    assert ("evaluate.set", text) in problems_of_judge(tagged)


def problems_of_judge(sets: Path) -> list[tuple[str, str]]:
    data = {"mixture": {"tags": 1.0}, "batch": 4}
    with pytest.raises(ConfigError) as told:
        job.check(values(sets, {"name": "plain"}, data=data, head=ARCFACE, evaluate={"set": "tags"}), where="a config")
    return told.value.problems
