"""Sets whose images have several labels are refused before anything starts, not trained on as if they had none."""

from __future__ import annotations

from pathlib import Path

from jobs import evaluate
from retrieval_train.data.config import DataConfig
from shards.cli import main
from tests.shards.conftest import picture


def test_training_and_evaluation_refuse_them(tmp_path: Path) -> None:
    lines = ["image,labels"]
    for n in range(20):
        (tmp_path / f"{n}.jpg").write_bytes(picture(n))
        lines.append(f'{n}.jpg,"all,tag{n % 3}"')
    (tmp_path / "tags.csv").write_text("\n".join(lines))
    table = ["make", "table", str(tmp_path / "tags.csv"), "--labels-column", "labels"]
    assert main([*table, "--out", str(tmp_path / "sets/tags")]) == 0
    [(where, why)] = DataConfig(mixture={"tags": 1.0}, batch=2).problems(tmp_path / "sets")
    assert (where, why[:31]) == ("data.mixture.tags", "has images with several labels,")
    config = evaluate.Config.model_construct(
        shards_root=tmp_path / "sets",
        data=evaluate.EvaluationData(set="tags"),
        model=tmp_path,
        compare={},
        baselines=(),
    )
    assert ("data.set", "set 'tags' has images with several labels, and no metric here takes them") in config.problems()
